"""Numbers that mean the same object for as long as it lives: ``nfs_export=on``.

What the kernel makes a file handle of is a number and a generation. The number is the one that
is always shown (``table``), the generation a hash of the object's own handle on its layer: so
who gets its inode number later has another one. What neither tells is where the object lies.
That is written down before the kernel hears of the number, and kept true, for ``reconnect``.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from unionfs.layer import handles, xattrs
from unionfs.layer.tree import Directory
from unionfs.union import lookup, reconnect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.layer.handletable import HandleTable, Row
    from unionfs.union.merge import Found
    from unionfs.union.nodes import DirNode, FileNode, Node
    from unionfs.union.tree import MergedTree


class Sighting(NamedTuple):
    """An object of a layer that a node is about to be made for.

    It shows as *name* in *parent* and lies, under the same name, in *place*. If it shows the
    number of another, *origin* is that one's handle, or the lower directory that merges with it.
    """

    parent: DirNode
    name: bytes
    place: Directory
    status: os.stat_result
    origin: bytes | Directory | None

    def own_handle(self) -> bytes | None:
        """Return the handle of the object itself."""
        return self.place.handle(self.name)

    def handle(self) -> bytes | None:
        """Return the handle of the object whose number it shows."""
        if self.origin is None:
            return self.own_handle()
        return self.origin.own_handle() if isinstance(self.origin, Directory) else self.origin

    def linked(self) -> bytes | None:
        """Return its own handle if it is an upper object that has several names."""
        several = self.status.st_nlink > 1 and not stat.S_ISDIR(self.status.st_mode)
        return self.own_handle() if several and self.place.layer.index == 0 else None


class Exports:
    """What is written down of the nodes of one union.

    Where the disk takes nothing more, handles of what is seen from then on end with the mount.
    """

    def __init__(self, tree: MergedTree, table: HandleTable) -> None:
        self._tree = tree
        self.table = table
        tree.nodes.numbers.begin_anew(table.mounts)

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.filename != self.table.path:
                raise
            self._tree.report_once("%s: handles of new files end with this mount", error)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write down at once what is seen in the block: that costs a fraction."""
        with self._tolerant():
            self.table.begin()
        try:
            yield
        finally:
            with self._tolerant():
                self.table.commit()

    # Objects seen

    def number(
        self,
        sighted: tuple[DirNode, bytes, Directory, os.stat_result],
        origin: bytes | Directory | None,
        numbers: tuple[int, int],
    ) -> int:
        """Return the number for what was *sighted*: see ``MergedTree.number``."""
        nodes = self._tree.nodes
        seen = Sighting(*sighted, origin)
        handle = seen.handle()
        if handle is None:
            return nodes.number_for(*numbers)
        number = -1
        with self._tolerant():
            number, handle = self._written(seen, handle, numbers)
        if number < 0:
            number = nodes.number_for(*numbers)
        nodes.generations[number] = handles.generation(handle)
        return number

    def _written(
        self, seen: Sighting, handle: bytes, numbers: tuple[int, int]
    ) -> tuple[int, bytes]:
        """Return the number that is written down for what was *seen*, and for which handle."""
        row = self.table.of_handle(handle)
        if row is not None and seen.origin is not None and self._is_anothers(row, seen):
            handle = seen.own_handle() or handle
            row = self.table.of_handle(handle)
        if row is None:
            return self._added(self._tree.nodes.number_for(*numbers), handle, seen), handle
        return self._known(row, seen), handle

    def number_nameless(self, fd: int, real: int) -> int:
        """Return the number for the upper object *fd*, which may be given a name (``appeared``)."""
        number = self._tree.nodes.number_for(real, real)
        handle = handles.encode(fd, b"", self._tree.upper_layer.uuid)
        if handle is not None:
            with self._tolerant():
                number = self._unclaimed(number)
            self._tree.nodes.generations[number] = handles.generation(handle)
        return number

    def _added(self, number: int, handle: bytes, seen: Sighting) -> int:
        row = handle, seen.parent.ino, seen.name, seen.linked()
        if not self.table.add(number, *row):
            number = self._unclaimed(number)
            self.table.add(number, *row)
        return number

    def _unclaimed(self, number: int) -> int:
        """Return *number*, or another if that is a living object's of an earlier mount."""
        row = self.table.of_number(number)
        if row is None:
            return number
        if self._tree.stack.lives(row.handle):
            return self._tree.nodes.numbers.fresh()
        self.table.remove(number)
        return number

    def _known(self, row: Row, seen: Sighting) -> int:
        """Return the number in *row*, which now shows as it was *seen*."""
        number = row.number
        if number in self._tree.nodes:
            # Others moved it below us, and the kernel knows it where it was.
            number = self._tree.nodes.numbers.fresh()
            self.table.renumber(row.number, number)
        if (row.parent, row.name) != (seen.parent.ino, seen.name):
            self.table.set_name(number, seen.parent.ino, seen.name)
        if row.linked is None and (linked := seen.linked()) is not None:
            self.table.set_linked(number, linked)
        return number

    def _is_anothers(self, row: Row, seen: Sighting) -> bool:
        """Say whether *row* is of another object that claims the same origin.

        So it is where a layer was copied by hand with its marks. Who was here first keeps it.
        """
        if row.parent is None or row.name is None:
            return False
        if (row.parent, row.name) == (seen.parent.ino, seen.name):
            return False
        index = row.handle.hex().encode()
        if self._tree.stack.work is not None and self._tree.index_status(index, seen.status):
            return False  # of several names, one of which may still be lower
        try:
            parent = reconnect.directory(self._tree, row.parent)
            child = parent.children.get(row.name)
            if child is not None and child.ino == row.number:
                return True
            found = lookup.find(self._tree, parent, row.name)
            if found is None or os.path.samestat(found.status, seen.status):
                return False
            return self._claimed(found) == row.handle
        except OSError:
            return False

    def _claimed(self, found: Found) -> bytes | None:
        """Return the handle of the object whose number what was *found* would show."""
        place = found.places[0]
        if found.is_directory:
            below = found.places[1:] if place.layer is self._tree.stack.upper else ()
            return (below or found.places)[0].own_handle()
        mark: bytes | None = None
        if place.layer is self._tree.stack.upper:
            path = xattrs.entry_path(place.fd(), found.name)
            mark = place.layer.read_mark(path, xattrs.ORIGIN)
        return mark or place.handle(found.name)

    # Names that change

    def appeared(self, node: FileNode, parent: DirNode, name: bytes) -> None:
        """Record that *node* was given its first name."""
        handle = self._tree.upper_of(parent).handle(name)
        if handle is not None:
            with self._tolerant():
                self.table.add(node.ino, handle, parent.ino, name, None)

    def about_to_move(self, node: Node, parent: DirNode, name: bytes) -> None:
        """Record that *node* may be *name* in *parent*, should we be killed now."""
        with self._tolerant():
            self.table.set_next_name(node.ino, parent.ino, name)

    def moved(self, node: Node, parent: DirNode, name: bytes) -> None:
        """Record that *node* is *name* in *parent* now."""
        with self._tolerant():
            self.table.set_name(node.ino, parent.ino, name)

    def lost_name(self, node: FileNode) -> None:
        """Record that *node* has lost a name, and which it has still."""
        with self._tolerant():
            if node.parent is None:
                self.table.set_name(node.ino, None, None)
            else:
                self.table.set_name(node.ino, node.parent.ino, node.name)

    def gone(self, node: Node) -> None:
        """Record that *node* has lost its last name."""
        with self._tolerant():
            self.table.remove(node.ino)
