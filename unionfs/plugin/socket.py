"""The Unix socket that a plugin listens on: made by it, or given to it by systemd.

A socket that a killed plugin has left is replaced, one on which somebody listens is not. Both
are told apart by connecting, with the directory locked (flock(2)), so that of two that
start at once one makes the socket and the other finds it in use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, MutableMapping
from typing import Final

from unionfs.errors import PluginError

#: ``sun_path`` of unix(7), without the null byte at its end.
_PATH_LIMIT: Final = 107
#: Engines that have not been answered yet; more have to try again.
_BACKLOG: Final = 128
#: What a plugin does, whoever may write to its socket lets it do.
_MASK: Final = 0o177
#: Seconds in which other plugins are done with the directory. Who has it locked for longer is none,
#: as any user may who can read it (/run), and holds up nobody.
_PATIENCE: Final = 2.0
_LOOK: Final = 0.02
#: The first descriptor that systemd passes on: sd_listen_fds(3).
_FIRST: Final = 3
#: ``struct ucred`` of unix(7): process, user, group.
_CREDENTIALS: Final = struct.Struct("3i")


@contextlib.contextmanager
def listening(
    path: str | None, default: str, environment: MutableMapping[str, str]
) -> Iterator[socket.socket]:
    """Give the socket to listen on, until the end of the block.

    If *environment* says that systemd has opened one, it is that, and stays; a *path* must
    then be its. Else it is made at *path*, by default at *default*, for its owner alone (mode
    0600), and removed at the end. Raises `PluginError`.
    """
    given = activated(environment)
    if given is None:
        with made(default if path is None else path) as own:
            yield own
        return
    with given:
        name = given.getsockname()
        if path is not None and path != name:
            raise PluginError(f"{path}: systemd has opened {name} for us; leave --socket out")
        yield given


def activated(environment: MutableMapping[str, str]) -> socket.socket | None:
    """Return the socket that systemd has opened for this process, ``None`` if it has not.

    *environment* is rid of what says so, which is not for our children.
    Raises `PluginError` unless it is one Unix socket that listens.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal() or count == "0":
        return None
    if count != "1":
        raise PluginError(f"systemd passes on {count} sockets; a plugin has one")
    try:
        given = socket.socket(fileno=_FIRST)
    except OSError as error:
        raise PluginError(f"what systemd passes on is no socket: {error.strerror}") from error
    given.set_inheritable(False)
    kind = given.family, given.type
    if kind != (socket.AF_UNIX, socket.SOCK_STREAM) or not _listens(given):
        given.close()
        raise PluginError("the socket that systemd passes on is not by ListenStream=/PATH")
    return given


def _listens(given: socket.socket) -> bool:
    return given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


@contextlib.contextmanager
def made(path: str) -> Iterator[socket.socket]:
    """Listen on a new socket at *path*, until the end of the block; then it is removed.

    Its directory is made if it is missing. Raises `PluginError`.
    """
    require_short(path)
    try:
        own, identity = _bound(path)
    except OSError as error:
        raise PluginError(f"{path}: {error.strerror}") from error
    try:
        yield own
    finally:
        with contextlib.suppress(OSError), _alone(path):
            if _identity(path) == identity:  # not another's, after somebody removed ours
                os.unlink(path)
        own.close()


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Let what is made in the block, also by other threads, be its owner's alone (mode 0600)."""
    before = os.umask(_MASK)
    try:
        yield
    finally:
        os.umask(before)


def require_short(path: str) -> None:
    """Raise `PluginError` if no socket can be at *path*: it is empty or too long."""
    if not path:
        raise PluginError("--socket: an empty path")
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise PluginError(f"{path}: longer than the {_PATH_LIMIT} bytes of a socket's path")


def _bound(path: str) -> tuple[socket.socket, tuple[int, int]]:
    """Return a new socket that listens at *path*, and which file it is."""
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _alone(path):
            _clear(path)
            with private():
                own.bind(path)
            # From here on it is not taken for one that was left.
            own.listen(_BACKLOG)
            return own, _identity(path)
    except BaseException:
        own.close()
        raise


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _alone(path: str) -> Iterator[None]:
    """Keep other plugins from making or removing sockets beside *path* meanwhile."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _PATIENCE
        while not _try_lock(fd) and time.monotonic() < deadline:
            time.sleep(_LOOK)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear(path: str) -> None:
    """Remove a socket at *path* that nobody listens on. Raises `PluginError` for all else."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise PluginError(f"{path}: is there, and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)  # a queue that is full is somebody's
        code = asking.connect_ex(path)
        if code == errno.ECONNREFUSED:
            os.unlink(path)
            return
        by = ""
        if code == 0:
            size = _CREDENTIALS.size
            found = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            by = f" by process {_CREDENTIALS.unpack(found)[0]}"
    raise PluginError(f"{path}: in use{by}; is the plugin running already?")
