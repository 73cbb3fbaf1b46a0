"""File handles, as an NFS server keeps them: name_to_handle_at(2), open_by_handle_at(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from tests import system

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_ROOM = 128
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000


class _Raw(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _ROOM),
    )


class FileHandle(NamedTuple):
    """What the kernel gives out for an object."""

    kind: int
    data: bytes


def _check(result: int, path: Path | int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    return result


def handle_of(what: Path | int) -> FileHandle:
    """The handle of a path, which is not followed, or of what is open."""
    raw, mount_id = _Raw(_ROOM, 0), ctypes.c_int()
    if isinstance(what, int):
        where = what, b"", _AT_EMPTY_PATH
    else:
        where = _AT_FDCWD, os.fsencode(what), 0
    result = _libc.name_to_handle_at(
        *where[:2], ctypes.byref(raw), ctypes.byref(mount_id), where[2]
    )
    _check(result, what)
    return FileHandle(raw.handle_type, bytes(raw.f_handle[: raw.handle_bytes]))


@contextmanager
def opened(root: Path, handle: FileHandle, flags: int = os.O_PATH) -> Iterator[int]:
    """What *handle* leads to in the mount at *root*, open; ESTALE when it is gone."""
    raw = _Raw(len(handle.data), handle.kind)
    ctypes.memmove(raw.f_handle, handle.data, len(handle.data))
    mount_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags |= os.O_CLOEXEC
        fd = _check(_libc.open_by_handle_at(mount_fd, ctypes.byref(raw), flags), root)
    finally:
        os.close(mount_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def read(root: Path, handle: FileHandle) -> bytes:
    """The content of the file that *handle* leads to."""
    with opened(root, handle, os.O_RDONLY) as fd:
        return os.pread(fd, 1 << 20, 0)


def write(root: Path, handle: FileHandle, data: bytes) -> None:
    """Put *data* at the beginning of the file that *handle* leads to."""
    with opened(root, handle, os.O_WRONLY) as fd:
        os.pwrite(fd, data, 0)


def number(root: Path, handle: FileHandle) -> int:
    """The inode number of what *handle* leads to."""
    with opened(root, handle) as fd:
        return os.fstat(fd).st_ino


def is_stale(root: Path, handle: FileHandle) -> bool:
    """Whether the object of *handle* is gone."""
    try:
        with opened(root, handle):
            return False
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return True


def forget_everything(root: Path) -> None:
    """Let the kernel forget every inode of the mount at *root* that nobody uses.

    A remount, even one that changes nothing, drops the names of a file system, and FUSE keeps
    no inode without. One that was open goes when its RELEASE is answered, a moment later.
    """
    system.mount("none", root, None, system.MS_REMOUNT)
    time.sleep(0.05)
