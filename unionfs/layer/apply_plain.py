"""An archive becomes a plain tree, which has all of the layers below already."""

from __future__ import annotations

import os
import stat

from unionfs.layer.apply import Target
from unionfs.layer.archive import Kind
from unionfs.layer.beneath import split
from unionfs.layer.walk import remove_tree


class PlainTarget(Target):
    """A tree that shows the layers below: what the archive hides is removed."""

    def hide(self, path: bytes) -> None:
        """See `Target.hide`."""
        if path in self.made:
            if self.made[path] is Kind.DIRECTORY:
                self.make_opaque(path)
            return
        self._remove(path)

    def make_opaque(self, path: bytes) -> None:
        """See `Target.make_opaque`: what this archive has put there stays."""
        fd = os.open(b".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.tree.directory(path))
        try:
            names = [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)
        for name in names:
            here = path + b"/" + name if path else name
            if here not in self.made:
                self._remove(here)
            elif self.made[here] is Kind.DIRECTORY:
                self.make_opaque(here)

    def clear(self, path: bytes, *, directory: bool) -> bool:
        """See `Target.clear`: a directory of a layer below takes more in."""
        dirfd, name = self.parent(path), split(path)[1]
        try:
            status = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        except FileNotFoundError:
            self.keep(split(path)[0])
            return False
        if directory and stat.S_ISDIR(status.st_mode):
            return True
        self._remove(path)
        return False

    def _remove(self, path: bytes) -> None:
        parent, name = split(path)
        dirfd = self.parent(path)
        self.keep(parent)
        remove_tree(dirfd, name)

    def made_directory(self, path: bytes) -> None:
        """See `Target.made_directory`: whatever was to be hidden is gone."""
