"""The first process of a container: makes its root, starts the command, reaps and forwards.

It is a fork of this program and goes on without another one, so nothing is imported here
once it is in the container, whose files are somebody else's. Its exit status is the command's,
or 128 and the signal that ended it. What goes on before the command runs it tells through the
*control* socket, and the end of that socket is its own: who started it is gone then. Until it
can look at that, the kernel kills it when who started it is killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import termios
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn

from unionfs.container import rootfs
from unionfs.container.identity import Identity, identify
from unionfs.container.rootfs import Grafted
from unionfs.container.spec import Spec, Tmpfs
from unionfs.container.terminal import Settings
from unionfs.errors import UnionError, exit_status
from unionfs.layer import syscalls

#: Exit statuses as Docker has them: of our own failures, and of commands that cannot be run.
FAILED: Final = 125
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
#: Added to the number of the signal that ended the command.
SIGNALLED: Final = 128

#: What the kernel sends a process about its own doing; it is not for others.
_OWN: Final = frozenset(
    {
        signal.SIGCHLD,
        signal.SIGKILL,
        signal.SIGSTOP,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGTRAP,
        signal.SIGSYS,
        signal.SIGPIPE,
    }
)
#: Sent on to the command, as far as anybody sends them to us.
FORWARDED: Final = frozenset(signal.valid_signals()) - _OWN


class Plan(NamedTuple):
    """All that the first process needs to know and to have open."""

    spec: Spec
    root: str
    """Where the root file system is mounted, in the mount namespace that it begins with."""
    places: Sequence[Grafted | Tmpfs]
    streams: tuple[int, int, int]
    """Descriptors that the command gets as 0, 1 and 2, unless it has a terminal."""
    window: bytes = b""
    """The size of its terminal at the start, a ``struct winsize``; empty if not known."""
    caller: Settings | None = None
    """Those of the caller's own terminal, to put it right if the caller is killed."""


class _FailureError(Exception):
    """The command cannot be run, for the reason that is to be told."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def be_first(plan: Plan, control: socket.socket) -> NoReturn:
    """Be the first process of the PID namespace that this one was forked into."""
    status = FAILED
    try:
        os.setsid()
        os.umask(0o022)
        _keep_only(plan, control)
        _end_with_starter(control)
        status = _run(plan, control)
    except _FailureError as error:
        status = error.status
        _tell(control, failed=status, line=str(error))
    except (UnionError, OSError) as error:
        _tell(control, failed=FAILED, line=exit_status(error)[1])
    except BaseException as error:  # noqa: BLE001 - of a fork nothing may escape upwards
        _tell(control, failed=FAILED, line=f"internal error: {error!r}")
    finally:
        os._exit(status)


def _tell(control: socket.socket, descriptor: int | None = None, **words: Any) -> None:
    text = json.dumps(words).encode()
    with contextlib.suppress(OSError):  # nobody waits any more, and the loop will see it
        socket.send_fds(control, [text], [] if descriptor is None else [descriptor])


def _keep_only(plan: Plan, control: socket.socket) -> None:
    """Let go of what the caller has open: locks, pipes whose end others wait for."""
    # The first three are replaced later: until then nothing else may get these numbers.
    keep = {0, 1, 2, *plan.streams, control.fileno()}
    keep |= {place.mount_fd for place in plan.places if isinstance(place, Grafted)}
    if plan.caller is not None:
        keep.add(plan.caller.descriptor)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _end_with_starter(control: socket.socket) -> None:
    """Wait until who started us is our parent, and from then on be killed when he is."""
    if not control.recv(1):
        os._exit(FAILED)
    syscalls.die_with_parent(signal.SIGKILL)
    # He may have been killed just before.
    with contextlib.suppress(BlockingIOError):
        if not control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            os._exit(FAILED)


def _run(plan: Plan, control: socket.socket) -> int:
    socket.sethostname(plan.spec.hostname)
    rootfs.enter(plan.root, plan.places, terminal=plan.spec.terminal)
    null = os.open("/dev/null", os.O_RDWR)
    streams = plan.streams
    if plan.spec.terminal:
        master, slave = _open_terminal(plan)
        _tell(control, master, terminal=True)
        os.close(master)
        streams = (slave, slave, slave)
    who = _identify(plan.spec)
    if plan.spec.terminal:
        os.fchown(streams[0], who.uid, -1)
    _make_workdir(plan.spec)
    if plan.spec.read_only:
        rootfs.make_read_only()
    wake = _listen()
    # Before it can be heard of in any other way: signals are the command's now.
    _tell(control, starting=True)
    command = _start(plan.spec, who, streams)
    caller = plan.caller
    if caller is not None:
        caller = caller._replace(descriptor=os.dup(caller.descriptor))
    for number in {*streams, *plan.streams} - {0, 1, 2}:
        os.close(number)
    for number in (0, 1, 2):
        os.dup2(null, number)
    _tell(control, started=True)
    # The end of the socket is enough now, and the caller's terminal is to be put right.
    syscalls.die_with_parent(0)
    return _Loop(command, wake, control, caller).run()


def _open_terminal(plan: Plan) -> tuple[int, int]:
    """Return both ends of a new terminal of the container's own."""
    master, slave = os.openpty()
    if plan.window:
        fcntl.ioctl(master, termios.TIOCSWINSZ, plan.window)
    rootfs.bind_console(os.ttyname(slave))
    return master, slave


def _identify(spec: Spec) -> Identity:
    try:
        return identify(spec.user)
    except LookupError as error:
        raise _FailureError(FAILED, str(error)) from error


def _make_workdir(spec: Spec) -> None:
    os.makedirs(os.path.realpath(spec.workdir), 0o755, exist_ok=True)


def _start(spec: Spec, who: Identity, streams: tuple[int, int, int]) -> int:
    """Start the command, and return its number once it runs. Raises `_FailureError`."""
    reader, writer = os.pipe()
    command = os.fork()
    if command == 0:
        _become(spec, who, streams, writer)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="surrogateescape") as pipe:
        said = pipe.read()
    if said:
        status, _, line = said.partition(" ")
        raise _FailureError(int(status), line)
    return command


def _become(spec: Spec, who: Identity, streams: tuple[int, int, int], writer: int) -> NoReturn:
    """Become the command, in the child of a fork; tell *writer* why if that cannot be."""
    status, line = FAILED, "a failure that it could not tell"
    try:
        # Above what is overwritten below.
        writer = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, 10)
        os.setsid()
        if spec.terminal:
            fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
        copies = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in streams]
        for number, copy in enumerate(copies):
            os.dup2(copy, number)
        os.closerange(3, writer)
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
        os.chdir(spec.workdir)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        status, line = _execute(spec.command, {"HOME": who.home, **spec.environment})
    except OSError as error:
        line = exit_status(error)[1]
    except BaseException as error:  # noqa: BLE001 - of a fork nothing may escape upwards
        line = f"internal error: {error!r}"
    finally:
        os.write(writer, f"{status} {line}".encode(errors="surrogateescape"))
        os._exit(status)


def _execute(command: tuple[str, ...], environment: dict[str, str]) -> tuple[int, str]:
    """Execute *command*, found as a shell finds it; return status and reason if none can be."""
    name = command[0]
    directories = environment.get("PATH", "").split(":")
    paths = [name] if "/" in name else [os.path.join(one or ".", name) for one in directories]
    reason = errno.ENOENT
    for path in paths:
        try:
            os.execve(path, command, environment)  # noqa: S606 - no shell is wanted
        except OSError as error:
            missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
            reason = reason if missing else error.errno or reason
    if reason == errno.ENOENT:
        there = [path for path in paths if os.path.exists(path)]
        if there:
            return NOT_FOUND, f"{there[0]}: its interpreter is not in the image"
        return NOT_FOUND, f"{name}: no such command in the image"
    return NOT_EXECUTABLE, f"{name}: cannot be executed: {os.strerror(reason)}"


def _listen() -> int:
    """Have the signals that come written to a pipe; return the end to read them from."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    for number in FORWARDED | {signal.SIGCHLD}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return reader


class _Loop:
    """What the first process does while the command runs."""

    def __init__(
        self, command: int, wake: int, control: socket.socket, caller: Settings | None
    ) -> None:
        self._command = command
        self._wake = wake
        self._control = control
        self._caller = caller
        self._status: int | None = None

    def run(self) -> int:
        """Reap and forward until the command has ended, and return its exit status."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        self._reap()
        while self._status is None:
            for descriptor, _ in poll.poll():
                if descriptor == self._wake:
                    self._take_signals()
                else:
                    self._end_alone()
        return self._status

    def _take_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._wake, 4096):
                if number != signal.SIGCHLD:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._command, number)
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._command:
                    code = os.waitstatus_to_exitcode(status)
                    self._status = SIGNALLED - code if code < 0 else code

    def _end_alone(self) -> NoReturn:
        """End, and all with us: who started us was killed and can put nothing right."""
        if self._caller is not None:
            self._caller.restore()
        os._exit(SIGNALLED + signal.SIGKILL)
