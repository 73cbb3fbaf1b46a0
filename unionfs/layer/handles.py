"""File handles in overlayfs's own form: what ``overlay.origin`` and the index are made of.

The format is ``struct ovl_fb`` of the kernel's fs/overlayfs/overlayfs.h: version 0, magic
0xfb, length, flags, handle type, the file system's UUID and the handle itself. The
flags tell the byte order of the machine that wrote it.
"""

from __future__ import annotations

import errno
import os
import sys
import zlib
from typing import Final

from unionfs.layer import syscalls

_HEADER: Final = 21
_MAGIC: Final = 0xFB
_BIG_ENDIAN: Final = 1
_ANY_ENDIAN: Final = 2
_CPU_FLAGS: Final = _BIG_ENDIAN if sys.byteorder == "big" else 0


def encode(dirfd: int, name: bytes, uuid: bytes | None) -> bytes | None:
    """Return the origin of *name*, or ``None`` where the file system has no handles.

    *uuid* is the file system's, ``None`` where it would not tell it from others.
    """
    if uuid is None:
        return None
    try:
        handle_type, handle = syscalls.name_to_handle(dirfd, name)
    except OSError:
        # EOPNOTSUPP, EOVERFLOW and the like: overlayfs, too, goes without an origin then.
        return None
    length = _HEADER + len(handle)
    if length > 255 or not 0 <= handle_type < 255:
        return None
    return bytes((0, _MAGIC, length, _CPU_FLAGS, handle_type)) + uuid + handle


def is_valid(origin: bytes) -> bool:
    """Say whether *origin* is whole and written on a machine of this byte order."""
    return (
        len(origin) > _HEADER
        and origin[0] == 0
        and origin[1] == _MAGIC
        and origin[2] == len(origin)
        and (origin[3] & _ANY_ENDIAN != 0 or origin[3] & _BIG_ENDIAN == _CPU_FLAGS)
    )


def file_system(origin: bytes) -> bytes:
    """Return the UUID of the file system that *origin* belongs to."""
    return origin[5:_HEADER]


def open_object(mount_fd: int, origin: bytes) -> int:
    """Open what *origin* names, O_PATH; ESTALE when it is gone.

    Needs CAP_DAC_READ_SEARCH.
    """
    if not is_valid(origin):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return syscalls.open_by_handle(mount_fd, origin[4], origin[_HEADER:])


def decode(mount_fd: int, origin: bytes) -> os.stat_result | None:
    """Return the attributes of the object that *origin* names, ``None`` when it is gone.

    A handle that cannot be decoded counts as absent.
    """
    try:
        fd = open_object(mount_fd, origin)
    except OSError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def generation(origin: bytes) -> int:
    """Return what tells the object of *origin* from others that have its inode number in turn.

    A hash, since the kernel keeps 32 bits of it.
    """
    return zlib.crc32(origin)
