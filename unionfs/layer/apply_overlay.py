"""An archive becomes a layer of overlayfs: whiteouts and opaque directories in its form."""

from __future__ import annotations

import os

from unionfs.layer import whiteouts, xattrs
from unionfs.layer.apply import Below, Target
from unionfs.layer.apply_attributes import Dresser
from unionfs.layer.archive import Kind
from unionfs.layer.beneath import split
from unionfs.layer.xattrs import Marks


class OverlayTarget(Target):
    """An empty directory that is to be a layer above *below*.

    The marks of overlayfs are in the namespace of *marks*.
    """

    def __init__(self, root_fd: int, dresser: Dresser, marks: Marks, below: Below | None) -> None:
        super().__init__(root_fd, dresser, below)
        self._marks = marks
        #: Whiteouts that stand there.
        self._hidden: set[bytes] = set()
        #: Directories that were whiteouts: what is below them stays hidden.
        self._cleared: set[bytes] = set()
        self.keep(b"")

    def hide(self, path: bytes) -> None:
        """See `Target.hide`."""
        if self.below is None:
            return
        if path in self.made:
            if self.made[path] is Kind.DIRECTORY:
                self.make_opaque(path)
        elif path not in self._hidden:
            dirfd, name = self.parent(path), split(path)[1]
            if not whiteouts.make_device(dirfd, name):
                whiteouts.make_marked(dirfd, self._marks, dirfd, name)
            self._hidden.add(path)

    def make_opaque(self, path: bytes) -> None:
        """See `Target.make_opaque`. The mark means nothing on the root: all of it is hidden."""
        if self.below is None:
            return
        if path:
            here = xattrs.fd_path(self.tree.directory(path))
            self._marks.write(here, xattrs.OPAQUE, b"y", follow=True)
            return
        for name in self.below.names():
            self.hide(name)

    def clear(self, path: bytes, *, directory: bool) -> bool:
        """See `Target.clear`: nothing but whiteouts can be in the way."""
        if path in self._hidden:
            os.unlink(split(path)[1], dir_fd=self.parent(path))
            self._hidden.remove(path)
            if directory:
                self._cleared.add(path)
        return False

    def made_directory(self, path: bytes) -> None:
        """See `Target.made_directory`."""
        if path in self._cleared:
            self.make_opaque(path)
