"""A process of its own for what serves a mount, and how its start is waited for.

The fork comes before trio and before any thread. The parent learns through a pipe how the
start went: an exit status and a text, with a blank between. Until then the daemon
keeps the caller's stderr, for warnings; after that it keeps nothing of the caller.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING

from unionfs.errors import MountError, UnionError, exit_status
from unionfs.log import OUTPUT, Log, connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    #: Called by the work when it is ready; `BrokenPipeError` when nobody waits any more.
    Ready = Callable[[], None]

log = Log("unionfs")


def start(work: Callable[[Ready], None], *, keep: int | None = None) -> None:
    """Run *work* in a daemon and return when it calls the function it is given.

    The daemon lets go of all descriptors that it inherits except *keep*.
    Raises `UnionError` with the daemon's words and exit status when it ends without that,
    and KeyboardInterrupt, after its end, when the caller is interrupted.
    """
    reader, writer = os.pipe()
    _flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _be_daemon(work, writer, keep)
    os.close(writer)
    try:
        with open(reader, encoding="utf-8", errors="surrogateescape") as pipe:
            report = pipe.read()
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        _wait(pid)
        raise
    if not report:
        raise MountError(f"the daemon died before it was ready ({_wait(pid)})")
    status, _, line = report.partition(" ")
    if status == "0":
        return
    _wait(pid)
    error = UnionError(line)
    error.exit_code = int(status)
    raise error


def _wait(pid: int) -> str:
    """Wait for the end of the child *pid* and return how it ended."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        # Whoever started us ignores SIGCHLD; the kernel has waited already.
        return "its exit status is not known"
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _be_daemon(work: Callable[[Ready], None], writer: int, keep: int | None) -> NoReturn:
    """Do *work* as the child of the fork, which never returns to its caller's code."""
    told = False
    # What the caller dropped and has not collected must not be closed here: what the work
    # opens next would get the number, and lose it to `_let_go`.
    gc.freeze()
    # Nor must signals be written to one that gets the number of the caller's pipe for them.
    signal.set_wakeup_fd(-1)
    # The caller's locks and pipes; those that the work opens come later.
    inherited = _open_descriptors() - {writer, keep}
    # Before the mount, which may hide them.
    null = os.open(os.devnull, os.O_RDWR)
    system_log = connect()

    def tell(status: int, line: str) -> None:
        nonlocal told
        told = True
        try:
            os.write(writer, f"{status} {line}".encode(errors="surrogateescape"))
        finally:
            os.close(writer)

    def ready() -> None:
        OUTPUT.write = system_log
        _let_go(inherited, null)
        tell(0, "")

    status = 4
    try:
        os.setsid()
        work(ready)
        status = 0
        if not told:
            with contextlib.suppress(BrokenPipeError):
                tell(MountError.exit_code, "the daemon was told to end before it was ready")
    except BaseException as error:  # noqa: BLE001 - of a fork nothing may escape upwards
        status, line = exit_status(error)
        if status == 4:
            sys.excepthook(type(error), error, error.__traceback__)
        if told:
            log.critical(line, error)
        else:
            with contextlib.suppress(OSError):
                tell(status, line)
    finally:
        _flush()
        os._exit(status)


def _flush() -> None:
    """Write out what is buffered, which a fork would write twice and `os._exit` never."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            # None where the caller gave us none.
            if stream is not None:
                stream.flush()


def _open_descriptors() -> set[int]:
    listed = {int(name) for name in os.listdir("/proc/self/fd")}
    still_open = set()
    for descriptor in listed:
        # All but the one that was the listing itself.
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            still_open.add(descriptor)
    return still_open


def _let_go(inherited: set[int], null: int) -> None:
    """Give up the caller's working directory, terminal and other *inherited* descriptors."""
    os.chdir("/")
    # Not closed: an object of the caller's program that still has the number would close
    # whatever got it next.
    for descriptor in inherited | {0, 1, 2}:
        try:
            os.dup2(null, descriptor, inheritable=descriptor <= 2)
        except OSError:
            # EBADF: above the limit of our files, where nothing will get its number.
            os.close(descriptor)
    os.close(null)


def fill_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that the caller has closed, lest a layer gets the number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def raise_descriptor_limit() -> None:
    """Allow this process as many open files as it may allow itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
