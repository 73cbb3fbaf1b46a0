"""Room for the metadata on a full disk, so that a snapshot can be removed there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

#: More than the database writes for one verb.
_SIZE: Final = 1 << 20


class Reserve:
    """A file of *path* that is given up when there is no other room, and made again later."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fill()

    def _fill(self) -> None:
        if os.path.exists(self._path):
            return
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, _SIZE)
            finally:
                os.close(fd)
        except OSError:
            # There is no room: it is the same as one that was given up.
            self._give_up()

    def _give_up(self) -> bool:
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
            if error.errno != errno.ENOSPC or not self._give_up():
                raise
            verb()
        self._fill()
