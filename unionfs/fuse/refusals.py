"""What is said to requests that cannot be served, or failed."""

from __future__ import annotations

import errno
import struct
from typing import Final

from unionfs.fuse.protocol import Opcode
from unionfs.log import Log

log = Log(__name__)

#: Errnos that a reply may have are below this.
_ERRNOS: Final = 512

#: Not served, and no surprise: the kernel does these itself, or does without.
NOT_SERVED: Final = frozenset(
    {
        Opcode.FLUSH,
        Opcode.OPEN,
        Opcode.OPENDIR,
        Opcode.RELEASEDIR,
        Opcode.GETLK,
        Opcode.SETLK,
        Opcode.SETLKW,
        Opcode.ACCESS,
        Opcode.BMAP,
        Opcode.DESTROY,
        Opcode.POLL,
    }
)


def errno_of(opcode: int, error: Exception) -> int:
    """Return what to reply to a request that ended with *error*."""
    if isinstance(error, OSError):
        code = error.errno or 0
        # Others are the kernel's own, which leak out of some file systems: it refuses them.
        return code if 0 < code < _ERRNOS else errno.EIO
    if isinstance(error, struct.error | OverflowError):
        # A body that is too short, a number that no system call takes: not the kernel's.
        return errno.EINVAL
    log.exception("%s failed", opcode_name(opcode))  # noqa: LOG004 - of whoever handles it
    return errno.EIO


def opcode_name(opcode: int) -> str:
    """Return the kernel's name of *opcode*, or its number."""
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"opcode {opcode}"
