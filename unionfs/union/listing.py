"""Open directories: a listing is a snapshot of the merged names, renewed by rewinding.

The snapshot belongs to the node and is shared by all who list it while nothing changes;
offsets are positions in it, so that a listing neither repeats nor loses a name, and a
name that is gone by the time it is reached is left out.
"""

from __future__ import annotations

import errno
import itertools
import os
from typing import TYPE_CHECKING, Final

from unionfs.fuse.interface import Attr, DirectoryEntry, Entry
from unionfs.union import merge
from unionfs.union.tree import MergedTree, fail
from unionfs.waiting import blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.union.nodes import DirNode, Node

#: Names gathered before other requests get their turn.
_BATCH: Final = 2000
#: A name that went between gathering and listing.
_GONE: Final = Entry(0, Attr(*[0] * 12))
#: ``.`` and ``..`` come before the names.
_DOTS: Final = 2


class _Listing:
    __slots__ = ("names", "node")

    def __init__(self, node: DirNode) -> None:
        self.node = node
        self.names: list[bytes] | None = None


class Listings:
    """The directories that the kernel has open."""

    def __init__(self, tree: MergedTree) -> None:
        self._tree = tree
        self._listings: dict[int, _Listing] = {}
        self._numbers = itertools.count(1)

    def open(self, node: DirNode) -> int:
        """Return a handle for listing *node*."""
        number = next(self._numbers)
        self._listings[number] = _Listing(node)
        node.listers += 1
        return number

    def get(self, number: int) -> DirNode:
        """Return the directory of a handle; EBADF for one that is not open."""
        listing = self._listings.get(number)
        if listing is None:
            fail(errno.EBADF)
        return listing.node

    def release(self, number: int) -> None:
        """Forget a handle; the last one takes the snapshot along."""
        node = self.get(number)
        del self._listings[number]
        node.listers -= 1
        if node.listers == 0:
            node.listing = None

    async def read(self, number: int, offset: int) -> Iterator[DirectoryEntry]:
        """Return what follows *offset*. Gives way to others while it gathers many names."""
        node = self.get(number)
        listing = self._listings[number]
        if offset == 0 or listing.names is None:
            if node.listing is None:
                node.listing = await self._gather(node)
            listing.names = node.listing
        return self._entries(node, listing.names, offset)

    async def _gather(self, node: DirNode) -> list[bytes]:
        names: list[bytes] = []
        for name in merge.list_names(node.places()):
            names.append(name)
            if len(names) % _BATCH == 0:
                await blocking(os.sched_yield)
        return names

    def _entries(self, node: DirNode, names: list[bytes], offset: int) -> Iterator[DirectoryEntry]:
        for position, name in enumerate((b".", b".."), start=1):
            if offset < position:
                above = node if position == 1 or node.parent is None else node.parent
                yield DirectoryEntry(name, position, self._entry(above))
        for index in range(max(offset - _DOTS, 0), len(names)):
            child, entry = self._look(node, names[index])
            if entry is _GONE:
                continue
            try:
                yield DirectoryEntry(names[index], index + 1 + _DOTS, entry)
            finally:
                if child is not None and child.lookups == 0:
                    self._tree.nodes.drop_unknown(child)  # the kernel did not take it

    def _look(self, node: DirNode, name: bytes) -> tuple[Node | None, Entry | None]:
        """Return *name*'s node and entry: ``_GONE``, or ``None`` for one that answers an error.

        A name that cannot be looked at is listed all the same: whoever asks for it gets
        the error, not whoever lists the directory.
        """
        try:
            child = None if node.removed else self._tree.child(node, name)
            return child, _GONE if child is None else self._entry(child)
        except FileNotFoundError:
            return None, _GONE
        except OSError:
            return None, None

    def _entry(self, node: Node) -> Entry:
        return Entry(node.ino, self._tree.attr(node))
