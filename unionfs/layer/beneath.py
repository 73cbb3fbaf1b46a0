"""A tree that is written by path, where no path can lead out of it or through a symbolic link."""

from __future__ import annotations

import os
from typing import Final

from unionfs.layer import syscalls

_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_RESOLVE: Final = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV


def split(path: bytes) -> tuple[bytes, bytes]:
    """Return the path of the directory that *path* lies in, and its last name."""
    parent, _, name = path.rpartition(b"/")
    return parent, name


class Beneath:
    """The tree at the directory *root_fd*, which stays the caller's.

    The directory used last stays open: who goes through a tree in order opens each once.
    """

    def __init__(self, root_fd: int) -> None:
        self._root = root_fd
        self._path = b""
        self._fd = root_fd

    def directory(self, path: bytes) -> int:
        """Return a descriptor (O_PATH) of the directory *path*, good until the next is asked for.

        Raises ENOENT, ENOTDIR, ELOOP for a symbolic link on the way, EXDEV for another mount.
        """
        if path != self._path:
            fd = syscalls.openat2(self._root, path, _FLAGS, _RESOLVE) if path else self._root
            self.forget()
            self._path, self._fd = path, fd
        return self._fd

    def lstat(self, path: bytes) -> os.stat_result | None:
        """Return the attributes of *path*, ``None`` where nothing is. Raises as `directory`."""
        if not path:
            return os.fstat(self._root)
        parent, name = split(path)
        try:
            return os.stat(name, dir_fd=self.directory(parent), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, path: bytes, flags: int) -> int:
        """Open the file *path*, which is not followed, for the caller to close."""
        parent, name = split(path)
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self.directory(parent))

    def forget(self) -> None:
        """Close the directory used last; it may be gone."""
        if self._fd != self._root:
            os.close(self._fd)
        self._path, self._fd = b"", self._root
