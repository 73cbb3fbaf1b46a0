"""All nodes by number, and by the objects they stand for.

``Numbers.real`` turns (device, inode) of any layer into one number. A node
shows the number of its *origin*, the object that was copied up, so that it stays the same
over copy-up, rename and (where the origin is recorded on disk) remount. Two objects that
claim one number (a layer copied by hand with its marks, say) get different ones.
"""

from __future__ import annotations

import errno
import itertools
import os
from typing import TYPE_CHECKING, Final

from unionfs.fuse.interface import ROOT_ID
from unionfs.union.nodes import DirNode, FileNode, Node

if TYPE_CHECKING:
    from unionfs.union.freshness import Freshness
    from unionfs.union.sieve import Sieves

#: Below this, numbers are inode numbers of the first device; the bits above name others.
_DEVICE_SHIFT: Final = 51
_MAX_DEVICES: Final = 1 << 10
#: Where numbers are taken that no inode number gave.
_FIRST_FREE: Final = 1 << 62
#: With ``ino32_t`` numbers below this are inode numbers, and those from it on are taken.
_SMALL_BITS: Final = 31


class Numbers:
    """One number for each (device, inode) of all layers.

    With *ino32_t* it fits 32 bits; what an inode number of the first device cannot be is
    counted, and another after a remount.
    """

    def __init__(self, devices: list[int], *, ino32_t: bool = False) -> None:
        self._bits = _SMALL_BITS if ino32_t else _DEVICE_SHIFT
        self._most_devices = 1 if ino32_t else _MAX_DEVICES
        self._devices: dict[int, int] = {}
        for device in devices:
            self._devices.setdefault(device, len(self._devices))
        self._odd: dict[tuple[int, int], int] = {}
        self._free = itertools.count(1 << _SMALL_BITS if ino32_t else _FIRST_FREE)

    def real(self, status: os.stat_result) -> int:
        """Return the number of an object on a layer's file system."""
        return self.number(status.st_dev, status.st_ino)

    def number(self, st_dev: int, inode: int) -> int:
        """Return the number of the object that has *inode* on the device *st_dev*."""
        device = self._devices.get(st_dev)
        if device is None:
            device = len(self._devices)
            if device < self._most_devices:
                self._devices[st_dev] = device
        if inode <= ROOT_ID or inode >> self._bits or device >= self._most_devices:
            key = (st_dev, inode)
            number = self._odd.get(key)
            if number is None:
                number = self._odd[key] = self.fresh()
            return number
        return device << _DEVICE_SHIFT | inode

    def fresh(self) -> int:
        """Return a number that no object has."""
        return next(self._free)


class NodeTable:
    """All nodes by number, and by the objects they stand for."""

    def __init__(
        self, root: DirNode, numbers: Numbers, sieves: Sieves, freshness: Freshness
    ) -> None:
        self.numbers = numbers
        self._sieves = sieves
        self._freshness = freshness
        self.root = root
        root.lookups = 1
        self._nodes: dict[int, Node] = {root.ino: root}
        #: Number of a real object -> the node that stands for it, unless both numbers are one.
        self._by_real: dict[int, Node] = {}
        #: Number of a real object -> what it shows, where that is not to be derived again.
        self._shown: dict[int, int] = {}
        self._reserved: dict[int, int] = {}

    def get(self, ino: int) -> Node:
        """Return the node of *ino*; ESTALE for one the kernel should not know."""
        node = self._nodes.get(ino)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def directory(self, ino: int, *, removed: bool = False) -> DirNode:
        """Return the directory *ino*; ENOTDIR when it is none, ENOENT when it is gone.

        *removed* directories can still be opened by those who are in them.
        """
        node = self.get(ino)
        if not isinstance(node, DirNode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if node.removed and not removed:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return node

    def file(self, ino: int) -> FileNode:
        """Return the object *ino* that is no directory; EISDIR when it is one."""
        node = self.get(ino)
        if not isinstance(node, FileNode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return node

    def by_real(self, real: int) -> Node | None:
        """Return the node that stands for the object with number *real*."""
        node = self._by_real.get(real)
        if node is None:
            node = self._nodes.get(real)
            if node is not None and (node.real != real or node.removed):
                return None
        return node

    def number_for(self, real: int, origin: int) -> int:
        """Return the number to show for object *real*, which came from *origin*."""
        shown = self._shown.get(real, origin)
        holder = self._reserved.get(shown, real)
        if holder == real and shown not in self._nodes:
            return shown
        self._reserve(shown)
        self._shown[real] = number = self.numbers.fresh()
        self._reserved[number] = real
        return number

    def shown_as(self, real: int) -> int | None:
        """Return the number that object *real* shows, ``None`` where a node must be made to tell.

        It is one that was not copied, or came from what was copied: its origin's number is its own.
        """
        known = self.by_real(real)
        if known is not None:
            return known.ino
        shown = self._shown.get(real, real)
        free = self._reserved.get(shown, real) == real and shown not in self._nodes
        return shown if free else None

    def _reserve(self, shown: int) -> None:
        """Give *shown* for good to whoever has it now: it is claimed a second time."""
        node = self._nodes.get(shown)
        if node is not None and node.real >= 0 and shown not in self._reserved:
            self._reserved[shown] = node.real
            self._shown[node.real] = shown

    def add(self, node: Node, *reals: int) -> None:
        """Take a new node in, standing for the objects *reals*.

        Who was known by their numbers before is gone from the layers without our doing.
        """
        self._nodes[node.ino] = node
        self._freshness.found(node)
        for real in reals:
            known = self.by_real(real)
            if known is not None and known is not node:
                self.let_go(known, real)
            if real == node.ino and node.real < 0 and real not in self._by_real:
                node.real = real  # as most are: found by the number that it shows
            else:
                self.stands_for(node, real)

    def stands_for(self, node: Node, real: int) -> None:
        """Let *node* stand for one more object: its copy, or what it was copied from."""
        if self.by_real(real) is None:
            if node.real in (-1, real):
                node.real = real
            else:
                node.more_reals += (real,)
            if real != node.ino or node.real != real:
                self._by_real[real] = node
        if real != node.ino:
            self._shown[real] = node.ino

    def copied(self, node: Node, real: int) -> None:
        """Let *node* stand for its copy alone: what it was copied from may not stay what it is."""
        for other in node.reals:
            self.let_go(node, other)
        known = self.by_real(real)
        if known is not None:
            self.let_go(known, real)
        self.stands_for(node, real)

    def let_go(self, node: Node, real: int) -> None:
        """Let *node* no longer stand for the object *real*."""
        if self._by_real.get(real) is node:
            del self._by_real[real]
        self._shown.pop(real, None)
        left = [other for other in node.reals if other != real]
        node.real, node.more_reals = (left[0], tuple(left[1:])) if left else (-1, ())
        if left and left[0] != node.ino:
            self._by_real[left[0]] = node

    def gone(self, node: Node) -> None:
        """Let *node* no longer be found by its objects: its last name is removed."""
        node.removed = True
        for real in node.reals:
            if self._by_real.get(real) is node:
                del self._by_real[real]
            self._shown.pop(real, None)

    def appeared(self, node: Node, real: int) -> None:
        """Let *node*, which had no name, be found by the object *real* that it stands for."""
        node.removed = False
        self.stands_for(node, real)

    def forget(self, ino: int, count: int) -> None:
        """Give back *count* references, and the node itself when nobody knows it."""
        node = self._nodes.get(ino)
        if node is not None:
            node.lookups -= count
            self.drop_unknown(node)

    def drop_unknown(self, node: Node | None) -> None:
        """Drop *node*, and the directories above it, as far as nobody knows them."""
        while node is not None and node is not self.root and node.lookups <= 0:
            if isinstance(node, DirNode) and node.children:
                return
            if isinstance(node, FileNode) and node.opened is not None:
                return
            self._drop(node)
            if isinstance(node, FileNode):
                for parent, _ in node.aliases or ():
                    self.drop_unknown(parent)
            node = node.parent

    def _drop(self, node: Node) -> None:
        if self._nodes.get(node.ino) is not node:
            return
        del self._nodes[node.ino]
        for real in node.reals:
            if self._by_real.get(real) is node:
                del self._by_real[real]
        _lose_name(node, node.parent, node.name)
        if isinstance(node, FileNode):
            for parent, name in node.aliases or ():
                _lose_name(node, parent, name)
        if isinstance(node, DirNode):
            self._sieves.drop(node)
            for directory in node.all_places():
                directory.layer.descriptors.drop(directory)
        node.unpin()

    def __len__(self) -> int:
        return len(self._nodes)


def _lose_name(node: Node, parent: DirNode | None, name: bytes) -> None:
    if parent is not None and parent.children.get(name) is node:
        del parent.children[name]
