"""The first process of a container, as the one that started it sees it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from typing import Any, Final, Self

from unionfs.container.init import FAILED, FORWARDED, SIGNALLED, Plan, be_first
from unionfs.errors import CommandError
from unionfs.layer import syscalls

#: A terminal's own, which are for us: its size changes, we are stopped and go on.
_OURS: Final = frozenset(
    {signal.SIGWINCH, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT}
)
_PASSED_ON: Final = FORWARDED - _OURS
#: They end the start of a command, which is not there to be asked.
_ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})


class FirstProcess:
    """Process 1 of a PID namespace, which has the calling process's mount namespace.

    While there is one, signals to the calling process are passed on to the command; as long as
    that is not there, those that would end it end the start.
    """

    def __init__(self, pid: int, control: socket.socket) -> None:
        self._pid = pid
        self._control = control
        control.setblocking(False)
        self._ended: int | None = None
        #: Can be read when the process has ended.
        self.descriptor = os.pidfd_open(pid)
        #: The command's terminal, where it has one.
        self.terminal: int | None = None
        #: What came before the command was there; ``None`` from then on.
        self._early: list[int] | None = []
        self._handlers = {}
        for number in _PASSED_ON:
            with contextlib.suppress(OSError, ValueError):  # the C library keeps some
                self._handlers[number] = signal.signal(number, self._pass_on)

    @classmethod
    def start(cls, plan: Plan) -> Self:
        """Start one. Raises ``OSError`` where namespaces are not to be had."""
        # What waits for us to end must find out, whoever started us.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # From here on signals are for the command, which hears of them once it runs.
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        try:
            return cls(*_start(plan))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)

    def wait_for_command(self) -> None:
        """Wait until the command runs. Raises `CommandError` when it cannot, or is not to."""
        with _woken_by_signals() as wake:
            poll = select.poll()
            poll.register(self._control, select.POLLIN)
            poll.register(wake, select.POLLIN)
            while True:
                # In this order: who asks the command has heard of it, and so can we have.
                early = list(self._early or ())
                if self._listen():
                    return
                self._end_early(early)
                poll.poll()
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)

    def _listen(self) -> bool:
        """Take what the first process has told by now; say whether the command runs."""
        with contextlib.suppress(BlockingIOError):
            while True:
                text, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
                said: dict[str, Any] = json.loads(text or "{}")
                match said:
                    case {"failed": status, "line": line}:
                        raise CommandError(status, line)
                    case {"starting": _}:
                        early, self._early = self._early or [], None
                        for number in early:
                            self.send(number)
                    case {"started": _}:
                        return True
                    case {"terminal": _}:
                        (self.terminal,) = descriptors
                        os.set_inheritable(self.terminal, False)
                    case _:
                        status = self.wait()
                        raise CommandError(FAILED, f"the first process died (status {status})")
        return False

    def _end_early(self, early: list[int]) -> None:
        """Raise `CommandError` if there is no command yet and one of *early* would end it."""
        ending = _ENDING.intersection(early) if self._early is not None else None
        if ending:
            number = min(ending)
            name = signal.Signals(number).name
            raise CommandError(SIGNALLED + number, f"{name} before the command was started")

    def _pass_on(self, number: int, _frame: object) -> None:
        if self._early is None:
            self.send(number)
        else:
            self._early.append(number)

    def send(self, number: int) -> None:
        """Send signal *number* to it, and so to the command; it may have ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, number)

    def wait(self) -> int:
        """Wait for its end, and so for that of all processes and mounts of the container.

        Returns the command's exit status, or 128 and the signal.
        """
        if self._ended is None:
            # Signals are answered while we wait here; in waitpid(2) they may come too early.
            poll = select.poll()
            poll.register(self.descriptor, select.POLLIN)
            poll.poll()
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            self._ended = SIGNALLED - code if code < 0 else code
        return self._ended

    def kill(self) -> None:
        """End it, and all processes of the container with it."""
        self.send(signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        """Give up what the object holds; signals are the caller's again."""
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._control.close()
        os.close(self.descriptor)
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None


@contextlib.contextmanager
def _woken_by_signals() -> Iterator[int]:
    """Give a descriptor that can be read when a signal has come."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def _start(plan: Plan) -> tuple[int, socket.socket]:
    """Start the first process; return its number, and the socket that it tells things through."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # The namespace begins with the first child; so that later ones of ours stay outside,
    # a child makes it, and leaves us its own child.
    syscalls.adopt_orphans()
    reader, writer = os.pipe()
    between = os.fork()
    if between == 0:
        _begin_namespaces(plan, theirs, writer)
    os.close(writer)
    theirs.close()
    with open(reader, encoding="ascii") as pipe:
        said = pipe.read()
    os.waitpid(between, 0)
    if not said.startswith("pid "):
        ours.close()
        code = int(said or 0)
        raise OSError(code, os.strerror(code), "namespaces")
    # Now it is our child.
    with contextlib.suppress(OSError):  # if it is dead, that will be seen
        ours.send(b"1")
    return int(said.removeprefix("pid ")), ours


def _begin_namespaces(plan: Plan, control: socket.socket, writer: int) -> None:
    """Fork the first process of new namespaces, tell *writer* its number, and end."""
    kinds = syscalls.CLONE_NEWPID | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC
    try:
        # Until there is somebody to handle them: process 1 is not hurt by what it ignores.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        syscalls.unshare(kinds)
        pid = os.fork()
        if pid == 0:
            be_first(plan, control)
        os.write(writer, f"pid {pid}".encode())
    except OSError as error:
        os.write(writer, str(error.errno).encode())
    finally:
        os._exit(0)
