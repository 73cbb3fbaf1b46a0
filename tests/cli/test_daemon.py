"""The fork that a daemon starts with, from a program that has been running for a while."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import signal
from collections.abc import Callable

from unionfs import daemon


class Garbage:
    """What closes its descriptor when it is collected, and not before."""

    def __init__(self) -> None:
        self.descriptor = os.open(os.devnull, os.O_RDONLY)
        self.itself = self

    def __del__(self) -> None:
        os.close(self.descriptor)


def told_by(reader: int) -> list[int]:
    """Wait for a daemon's end; the numbers that it has told beside its own."""
    with open(reader, "rb") as pipe:
        pid, *told = map(int, pipe.read().split())
    os.waitpid(pid, 0)
    return told


def test_what_the_caller_has_not_collected_costs_the_daemon_nothing() -> None:
    """It once closed a file of the caller's garbage, and lost what it opened under its number."""
    reader, writer = os.pipe()

    def work(ready: Callable[[], None]) -> None:
        gc.collect()
        own = os.dup(writer)
        ready()
        os.write(own, b"%d" % os.getpid())

    gc.disable()
    try:
        Garbage()
        daemon.start(work)
    finally:
        gc.enable()
        os.close(writer)
        gc.collect()
    told_by(reader)


def test_descriptors_beyond_the_limit_of_files_are_let_go() -> None:
    """A limit may be lowered after they were opened, as bash's own in a script."""
    reader, writer = os.pipe()
    high = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, 500)

    def work(ready: Callable[[], None]) -> None:
        own = os.dup(writer)
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
        ready()
        os.write(own, b"%d %d" % (os.getpid(), os.path.lexists(f"/proc/self/fd/{high}")))

    try:
        daemon.start(work)
    finally:
        os.close(high)
        os.close(writer)
    (is_open,) = told_by(reader)
    assert not is_open


def test_signals_of_the_daemon_are_not_written_to_the_callers_pipe() -> None:
    """Its number is that of another file of the daemon's by then."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def work(ready: Callable[[], None]) -> None:
        own = os.dup(writer)
        ready()
        os.write(own, b"%d %d" % (os.getpid(), signal.set_wakeup_fd(-1)))

    before = signal.set_wakeup_fd(writer)
    try:
        daemon.start(work)
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
    (told,) = told_by(reader)
    assert told == -1
