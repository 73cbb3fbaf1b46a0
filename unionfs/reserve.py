"""Room on a full disk for what gives space back: to list what is there, and to remove it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

#: More than a database writes for one verb.
_SIZE: Final = 1 << 20
#: Others need room, too: with less than this the file is not made.
_PLENTY: Final = 8 * _SIZE


class Reserve:
    """A file of *path* that is given up when there is no other room, and made again later."""

    def __init__(self, path: str) -> None:
        self._path = path

    def fill(self) -> None:
        """Make the file, if there is room for it."""
        if os.path.exists(self._path) or self._free() < _PLENTY:
            return
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, _SIZE)
            finally:
                os.close(fd)
        except OSError:
            # There is no room: it is the same as one that was given up.
            self.give_up()

    def _free(self) -> int:
        """Return the bytes that are free where the file is to be."""
        try:
            status = os.statvfs(os.path.dirname(self._path) or ".")
        except OSError:
            return 0
        return status.f_bavail * status.f_frsize

    def is_needed(self) -> bool:
        """Say whether there is less room than a verb may take."""
        return self._free() < _SIZE // 2

    def give_up(self) -> bool:
        """Remove the file; say whether it was there."""
        try:
            os.unlink(self._path)
        except OSError:
            return False
        return True

    def spend_for(self, verb: Callable[[], None]) -> None:
        """Do *verb*, which frees space; if the disk is full, with the room of this file."""
        try:
            verb()
        except OSError as error:
            if error.errno != errno.ENOSPC or not self.give_up():
                raise
            verb()
        self.fill()
