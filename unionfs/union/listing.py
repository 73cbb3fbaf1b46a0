"""Listings: what a directory shows, from a position on, with attributes or without.

Positions belong to names, not to a stream (``snapshot``), so that nobody need open a
directory to list it. A snapshot is kept while somebody may be in the midst of it, and is
taken anew from the present state by those who begin.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections import OrderedDict
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Final

from unionfs.fuse.interface import DirectoryEntry, ListedName
from unionfs.layer import xattrs
from unionfs.union import merge
from unionfs.union.adopt import adopt
from unionfs.union.emptiness import AT_ONCE, version_of
from unionfs.union.lookup import look
from unionfs.union.snapshot import DOTS, Snapshot
from unionfs.waiting import blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.union.nodes import DirNode, Node
    from unionfs.union.tree import MergedTree

#: Snapshots, and names in all of them, that are kept for those in the midst of a listing.
_MOST_SNAPSHOTS: Final = 64
_MOST_NAMES: Final = 500_000
#: Seconds until nobody is thought to be in the midst of a listing any more.
_PATIENCE: Final = 60.0


class Listings:
    """The snapshots of directories that are being listed, and who has opened them."""

    def __init__(self, tree: MergedTree) -> None:
        self._tree = tree
        #: The one that was read longest ago comes first.
        self._kept: OrderedDict[DirNode, Snapshot] = OrderedDict()
        self._total = 0

    async def entries(self, node: DirNode, offset: int) -> Iterator[DirectoryEntry | ListedName]:
        """Return what follows *offset*, with attributes. Gives way while it gathers many names."""
        return self._entries(node, await self._snapshot(node, offset), offset)

    async def names(self, node: DirNode, offset: int) -> Iterator[ListedName]:
        """Return what follows *offset*, without attributes. Gives way as ``entries``."""
        return self._names(node, await self._snapshot(node, offset), offset)

    # Snapshots

    async def _snapshot(self, node: DirNode, offset: int) -> Snapshot:
        """Return names to go on with after *offset*, those of now when it is the beginning."""
        snapshot = self._kept.get(node)
        if snapshot is not None and offset == 0:
            old = snapshot.taken + self._tree.sieves.lifetime < monotonic()
            if old or not self._is_fresh(node, snapshot):
                snapshot = None
        if snapshot is None:
            snapshot = await self._gather(node)
        snapshot.used = monotonic()
        self._keep(node, snapshot)
        return snapshot

    def _is_fresh(self, node: DirNode, snapshot: Snapshot) -> bool:
        """Say whether every name still lies where *snapshot* has it."""
        if snapshot.stale or not self._tree.sieves.lifetime:
            return False
        return snapshot.version == version_of(node)

    async def _gather(self, node: DirNode) -> Snapshot:
        places, version = node.places(), version_of(node)
        read: list[list[bytes]] = []
        snapshot = Snapshot(places)
        source = merge.look_through(places, read)
        while snapshot.add(itertools.islice(source, AT_ONCE)) == AT_ONCE:
            await blocking(os.sched_yield)
        snapshot.sort()
        snapshot.version, snapshot.taken = version, monotonic()
        if version == version_of(node) and not node.removed:
            self._tree.sieves.learn(node, read)
        return snapshot

    def _keep(self, node: DirNode, snapshot: Snapshot) -> None:
        self.drop(node)
        node.listing = self._kept[node] = snapshot
        self._total += len(snapshot)
        while len(self._kept) > 1:
            oldest, first = next(iter(self._kept.items()))
            few = len(self._kept) <= _MOST_SNAPSHOTS and self._total <= _MOST_NAMES
            if few and first.used + _PATIENCE > snapshot.used:
                break
            self.drop(oldest)

    def drop(self, node: DirNode) -> None:
        """Forget the snapshot of *node*."""
        snapshot = self._kept.pop(node, None)
        if snapshot is not None:
            self._total -= len(snapshot)
            node.listing = None

    def _done(self, node: DirNode, snapshot: Snapshot) -> None:
        """Forget a snapshot that was read to its end."""
        if node.listing is snapshot:
            self.drop(node)

    # With attributes

    def _entries(
        self, node: DirNode, snapshot: Snapshot, offset: int
    ) -> Iterator[DirectoryEntry | ListedName]:
        yield from _dots(node, offset)
        tree = self._tree
        names, positions = snapshot.names, snapshot.positions
        first = snapshot.after(offset)
        if first == len(names):
            self._done(node, snapshot)
        with nullcontext() if tree.exports is None else tree.exports.together():
            for index in range(first, len(names)):
                name = names[index]
                try:
                    child, status = self._look(node, snapshot, index)
                    if child is None:
                        continue
                    entry = tree.entry(child, status)
                except FileNotFoundError:
                    continue
                except OSError:
                    # It is listed all the same: whoever asks for it gets the error, not
                    # whoever lists the directory.
                    yield DirectoryEntry(name, positions[index], None)
                    continue
                try:
                    yield DirectoryEntry(name, positions[index], entry)
                finally:
                    if child.lookups <= 0:
                        tree.nodes.drop_unknown(child)  # the kernel did not take it

    def _look(
        self, node: DirNode, snapshot: Snapshot, index: int
    ) -> tuple[Node | None, os.stat_result | None]:
        """Return a name's node and attributes as ``look`` does, from where it was seen first."""
        name = snapshot.names[index]
        tree = self._tree
        if node.removed:
            return None, None
        if (
            name not in node.children
            and snapshot.kinds[index] != stat.S_IFDIR
            and self._is_fresh(node, snapshot)
        ):
            place = snapshot.places[snapshot.tops[index]]
            found = merge.find(tree.stack.lowers, (place,), name)
            if found is not None and not found.is_directory:
                return adopt(tree, node, name, found)
        return look(tree, node, name)

    # Without

    def _names(self, node: DirNode, snapshot: Snapshot, offset: int) -> Iterator[ListedName]:
        yield from _dots(node, offset)
        first = snapshot.after(offset)
        if first == len(snapshot):
            self._done(node, snapshot)
        for index in range(first, len(snapshot)):
            found = None if node.removed else self._identify(node, snapshot, index)
            if found is not None:
                yield ListedName(snapshot.names[index], snapshot.positions[index], *found)

    def _identify(self, node: DirNode, snapshot: Snapshot, index: int) -> tuple[int, int] | None:
        """Return the number and type of a name, ``None`` for one that is gone.

        The number is the one that stat(2) shows. What cannot be looked at has the one that
        its layer lists.
        """
        kind = snapshot.kinds[index]
        known = node.children.get(snapshot.names[index])
        if known is not None and self._tree.freshness.holds_for(known, node, snapshot.names[index]):
            return known.ino, known.kind
        if kind != stat.S_IFDIR and not self._tree.exports and self._is_fresh(node, snapshot):
            device = self._device(snapshot, index)
            if device is not None:
                real = self._tree.nodes.numbers.number(device, snapshot.inodes[index])
                shown = self._tree.nodes.shown_as(real)
                if shown is not None:
                    return shown, kind
        try:
            child, _ = look(self._tree, node, snapshot.names[index])
        except FileNotFoundError:
            return None
        except OSError:
            return snapshot.inodes[index], kind
        if child is None:
            return None
        found = child.ino, child.kind
        self._tree.nodes.drop_unknown(child)
        return found

    def _device(self, snapshot: Snapshot, index: int) -> int | None:
        """Return the device of the place of a name, if its inode numbers are those to show."""
        top = snapshot.tops[index]
        if top not in snapshot.devices:
            snapshot.devices[top] = self._ask_device(snapshot, index)
        return snapshot.devices[top]

    def _ask_device(self, snapshot: Snapshot, index: int) -> int | None:
        place = snapshot.places[snapshot.tops[index]]
        try:
            status = place.lstat(snapshot.names[index])
            if status is None or status.st_ino != snapshot.inodes[index]:
                return None  # a file system that lists other numbers than it shows
            stack = self._tree.stack
            if place.layer is stack.upper and stack.lowers:
                if self._tree.marks.user:
                    return None  # marks are not everywhere
                path = xattrs.fd_path(place.fd())
                if place.layer.read_mark(path, xattrs.IMPURE, follow=True) is not None:
                    return None  # copies in it show the number of what they were copied from
        except OSError:
            return None
        return status.st_dev


def _dots(node: DirNode, offset: int) -> Iterator[ListedName]:
    for position, above in enumerate((node, node.parent or node), start=1):
        if offset < position:
            yield ListedName(DOTS[position - 1], position, above.ino, stat.S_IFDIR)
