"""What the layers below a new one show together: an archive may leave directories out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from unionfs.layer import xattrs
from unionfs.layer.archive import Kind, Member
from unionfs.layer.pack import member_of
from unionfs.layer.stack import LayerStack
from unionfs.layer.tree import Directory
from unionfs.options import MountOptions
from unionfs.union import merge


class MergedBelow:
    """The `unionfs.layer.apply.Below` of the layers in *stack*."""

    def __init__(self, stack: LayerStack) -> None:
        self._stack = stack
        self._root: Sequence[Directory] = tuple(layer.root for layer in stack.lowers)

    def directory(self, path: bytes) -> Member | None:
        """Return what the directory *path* is, ``None`` where none shows."""
        places = self._root
        found = None
        for name in path.split(b"/"):
            found = merge.find(self._stack.lowers, places, name)
            if found is None or not found.is_directory:
                return None
            places = found.places
        assert found is not None
        here = xattrs.fd_path(places[0].fd())
        attributes = {}
        for name in xattrs.names(here, follow=True):
            value = xattrs.read(here, name, follow=True)
            if self._stack.marks.shown(name) == name and value is not None:
                attributes[name] = value
        return member_of(path, found.status, Kind.DIRECTORY)._replace(xattrs=attributes)

    def names(self) -> Iterable[bytes]:
        """Return the names in the root."""
        return merge.list_names(self._root)


@contextlib.contextmanager
def merged(lowerdirs: tuple[bytes, ...]) -> Iterator[MergedBelow | None]:
    """Open the layers at *lowerdirs*, topmost first; of none, nothing shows."""
    if not lowerdirs:
        yield None
        return
    with contextlib.closing(LayerStack.inspect(MountOptions(lowerdirs=lowerdirs))) as stack:
        yield MergedBelow(stack)
