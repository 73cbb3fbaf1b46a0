"""The fork that a daemon starts with, from a program that has been running for a while."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

from unionfs import daemon


class Garbage:
    """What closes its descriptor when it is collected, and not before."""

    def __init__(self) -> None:
        self.descriptor = os.open(os.devnull, os.O_RDONLY)
        self.itself = self

    def __del__(self) -> None:
        os.close(self.descriptor)


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
    with open(reader, "rb") as pipe:
        pid = int(pipe.read())
    os.waitpid(pid, 0)
