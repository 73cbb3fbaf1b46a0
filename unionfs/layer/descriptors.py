"""Directories of layers that are kept open, and which of them are closed for others."""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from unionfs.layer.tree import Directory

#: Directories of all layers that are kept open at most.
_MOST_DIRECTORIES: Final = 1024


class Descriptors:
    """Open directories: those used lately stay so.

    A descriptor from ``Directory.fd`` stays open until many other directories have been
    used: use it at once, and not across an await.
    """

    __slots__ = ("_limit", "_open")

    def __init__(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Most of what a process may open is for the files that users open.
        self._limit = min(_MOST_DIRECTORIES, soft // 4)
        self._open: OrderedDict[Directory, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def put(self, directory: Directory, fd: int) -> None:
        """Let *directory* be open as *fd*; close another when there are too many."""
        directory.descriptor = fd
        directory.used = True
        self._open[directory] = None
        if len(self._open) > self._limit:
            self._close_one()

    def _close_one(self) -> None:
        """Close the first that was not used since it was last passed over here."""
        while True:
            oldest, _ = self._open.popitem(last=False)
            if not oldest.used:
                break
            oldest.used = False
            self._open[oldest] = None
        os.close(oldest.descriptor)
        oldest.descriptor = -1

    def drop(self, directory: Directory) -> None:
        """Close the descriptor of a directory that is no longer there."""
        if directory in self._open:
            del self._open[directory]
            os.close(directory.descriptor)
            directory.descriptor = -1

    def close(self) -> None:
        """Close all of them."""
        for directory in list(self._open):
            self.drop(directory)
