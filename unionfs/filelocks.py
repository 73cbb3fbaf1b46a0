"""Locks on bytes of files, which threads and processes keep from each other (fcntl(2)).

They belong to the open file description: who closes the last descriptor of it, or is killed,
gives them back. A description is never in its own way.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

#: ``struct flock``: type, whence, start, length, pid.
_FLOCK: Final = struct.Struct("hhqqi4x")


def lock_byte(fd: int, place: int) -> None:
    """Wait until nobody else has the byte at *place* of the file, and have it."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0))


def is_locked(fd: int) -> bool:
    """Say whether somebody else has any byte of the file."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    return bool(_FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)
