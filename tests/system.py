"""System calls that the tests need and the standard library lacks, and children to make them in.

Everything here raises `OSError` with the kernel's errno, as `os` does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import select
import signal
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
PR_SET_PDEATHSIG = 1
AT_FDCWD = -100
CLONE_NEWUSER = 0x10000000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_MOUNT_ATTR_IDMAP = 0x00100000

#: The Linux that has passthrough.
PASSTHROUGH = (6, 9)

Name = str | bytes | Path


def _check(result: int, *names: Name) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), *(os.fspath(name) for name in names[:1]))


def _bytes(name: Name | None) -> bytes | None:
    return None if name is None else os.fsencode(name)


def release() -> tuple[int, int]:
    """The first two numbers of the kernel's release."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


def private_mount_namespace() -> None:
    """Give this process mounts of its own, which end with its last process."""
    _check(_libc.unshare(CLONE_NEWNS))
    mount(None, "/", None, MS_REC | MS_PRIVATE)


def mount(
    source: Name | None, target: Name, kind: str | None, flags: int = 0, data: Name | None = None
) -> None:
    """mount(2)."""
    fstype = None if kind is None else kind.encode()
    _check(
        _libc.mount(_bytes(source), _bytes(target), fstype, ctypes.c_ulong(flags), _bytes(data)),
        target,
    )


def umount(target: Name, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(_bytes(target), flags), target)


def user_namespace(users: str, groups: str) -> int:
    """A descriptor of a user namespace with lines for uid_map and gid_map: inside, outside, length.

    It has no process.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        _libc.unshare(CLONE_NEWUSER)
        os.write(writer, b".")
        signal.pause()
    try:
        os.read(reader, 1)
        Path(f"/proc/{pid}/uid_map").write_text(users)
        Path(f"/proc/{pid}/gid_map").write_text(groups)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        os.close(reader)
        os.close(writer)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def bind_idmapped(source: Name, target: Name, users: str, groups: str) -> None:
    """A bind mount whose owners the kernel maps (mount_setattr(2)); ranges as user_namespace's."""
    tree = _libc.syscall(_OPEN_TREE, AT_FDCWD, _bytes(source), 1)
    _check(min(tree, 0), source)
    namespace = user_namespace(users, groups)
    try:
        change = struct.pack("4Q", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
        _check(_libc.syscall(_MOUNT_SETATTR, tree, b"", 0x1000, change, len(change)), source)
        _check(_libc.syscall(_MOVE_MOUNT, tree, b"", AT_FDCWD, _bytes(target), 4), target)
    finally:
        os.close(namespace)
        os.close(tree)


def renameat2(old: Name, new: Name, flags: int) -> None:
    """renameat2(2) with paths."""
    _check(_libc.renameat2(AT_FDCWD, _bytes(old), AT_FDCWD, _bytes(new), flags), old, new)


def fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    """fallocate(2) on a file that is opened for it."""
    fd = os.open(path, os.O_RDWR)
    try:
        _check(_libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))
    finally:
        os.close(fd)


def die_with_parent() -> None:
    """For a child between fork and exec: be killed when the test process is gone."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Dirent(ctypes.Structure):
    """struct dirent64 as glibc's readdir returns it."""

    _fields_ = [
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    ]


class Listing:
    """An open directory stream (opendir, readdir, telldir, seekdir, rewinddir)."""

    def __init__(self, path: Name) -> None:
        _libc.opendir.restype = ctypes.c_void_p
        _libc.readdir64.restype = ctypes.POINTER(Dirent)
        _libc.telldir.restype = ctypes.c_long
        stream = _libc.opendir(_bytes(path))
        if not stream:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(path))
        self._stream = ctypes.c_void_p(stream)

    def read(self) -> tuple[bytes, int, int] | None:
        """The next (name, d_ino, d_type), or None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir64(self._stream)
        if not entry:
            if code := ctypes.get_errno():
                raise OSError(code, os.strerror(code))
            return None
        return entry.contents.d_name, entry.contents.d_ino, entry.contents.d_type

    def rest(self) -> list[tuple[bytes, int, int]]:
        """Everything up to the end."""
        entries = []
        while (entry := self.read()) is not None:
            entries.append(entry)
        return entries

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


@dataclass(frozen=True)
class Outcome:
    """What an operation came to: a value, or the name of an errno."""

    value: Any = None
    error: str | None = None

    def __str__(self) -> str:
        return self.error if self.error is not None else f"ok {self.value!r}"


def attempt(operation: Callable[..., Any], *args: Any) -> Outcome:
    """Run *operation* and return its outcome; only `OSError` is one, and a path is no value."""
    try:
        value = operation(*args)
        return Outcome(value=None if isinstance(value, Path) else value)
    except OSError as error:
        return Outcome(error=errno.errorcode.get(error.errno or 0, str(error)))


def in_child(
    function: Callable[[], Any],
    *,
    uid: int | None = None,
    gid: int | None = None,
    groups: Sequence[int] = (),
    timeout: float = 60.0,
) -> Any:
    """Run *function* in a forked child, as another user if asked; return or raise what it did."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(function, writer, uid, gid, groups)
    os.close(writer)
    try:
        data = _read_until(reader, time.monotonic() + timeout)
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(reader)
        _, status = os.waitpid(pid, 0)
    if not data:
        raise AssertionError(f"child ended with wait status {status}")
    value, error = pickle.loads(data)
    if error is not None:
        raise error
    return value


def _read_until(reader: int, deadline: float) -> bytes:
    data = b""
    while True:
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError("child did not answer in time")
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return data
        data += chunk


def _child(
    function: Callable[[], Any],
    writer: int,
    uid: int | None,
    gid: int | None,
    groups: Sequence[int],
) -> None:
    code = 1
    try:
        die_with_parent()
        signal.alarm(0)
        if uid is not None or gid is not None:
            os.setgroups(list(groups))
            os.setgid(uid if gid is None else gid)  # type: ignore[arg-type]
        if uid is not None:
            os.setuid(uid)
        result: tuple[Any, BaseException | None]
        try:
            result = (function(), None)
        except BaseException as error:  # noqa: BLE001 - raised again in the parent
            result = (None, error)
        with open(writer, "wb") as pipe:
            pipe.write(pickle.dumps(result))
        code = 0
    finally:
        os._exit(code)
