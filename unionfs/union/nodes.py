"""Identity: which object of the layers a number means to the kernel, and for how long.

A node is made when the kernel first learns of an object and lives until the kernel has
given back every reference (``lookups``) and nothing below it is known. The kernel owns
that count; nodes own everything else that is known of an object: its names, where it
lies in the layers, its open descriptor.

Numbers. ``Numbers.real`` turns (device, inode) of any layer into one number. A node
shows the number of its *origin*, the object that was copied up, so that it stays the same
over copy-up, rename and (where the origin is recorded on disk) remount. Two objects that
claim one number (a layer copied by hand with its marks, say) get different ones.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from typing import TYPE_CHECKING, Final

from unionfs.fuse.interface import ROOT_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.layer.tree import Directory
    from unionfs.union.sieve import Sieve, Sieves
    from unionfs.union.snapshot import Snapshot

#: Below this, numbers are inode numbers of the first device; the bits above name others.
_DEVICE_SHIFT: Final = 51
_MAX_DEVICES: Final = 1 << 10
#: Where numbers are taken that no inode number gave.
_FIRST_FREE: Final = 1 << 62


class Numbers:
    """One number for each (device, inode) of all layers."""

    def __init__(self, devices: list[int]) -> None:
        self._devices: dict[int, int] = {}
        for device in devices:
            self._devices.setdefault(device, len(self._devices))
        self._odd: dict[tuple[int, int], int] = {}
        self._free = itertools.count(_FIRST_FREE)

    def real(self, status: os.stat_result) -> int:
        """Return the number of an object on a layer's file system."""
        return self.number(status.st_dev, status.st_ino)

    def number(self, st_dev: int, inode: int) -> int:
        """Return the number of the object that has *inode* on the device *st_dev*."""
        device = self._devices.get(st_dev)
        if device is None:
            device = len(self._devices)
            if device < _MAX_DEVICES:
                self._devices[st_dev] = device
        if inode <= ROOT_ID or inode >> _DEVICE_SHIFT or device >= _MAX_DEVICES:
            key = (st_dev, inode)
            number = self._odd.get(key)
            if number is None:
                number = self._odd[key] = self.fresh()
            return number
        return device << _DEVICE_SHIFT | inode

    def fresh(self) -> int:
        """Return a number that no object has."""
        return next(self._free)


class Node:
    """An object that the kernel knows, under the name it was last seen."""

    __slots__ = (
        "copying",
        "ino",
        "kind",
        "lookups",
        "name",
        "parent",
        "pinned",
        "reals",
        "removed",
    )

    def __init__(self, ino: int, kind: int, parent: DirNode | None, name: bytes) -> None:
        self.ino = ino
        self.kind = kind
        self.parent = parent
        self.name = name
        self.lookups = 0
        #: Numbers of the objects that this node stands for: its copy, and where that came from.
        self.reals: tuple[int, ...] = ()
        #: Set when the last name is gone; the object lives on for those who have it open.
        self.removed = False
        #: O_PATH descriptor of an object that no known name leads to, else -1.
        self.pinned = -1
        #: Set while the object is being copied up.
        self.copying: threading.Event | None = None

    @property
    def in_upper(self) -> bool:
        """Whether the object is in the upper layer."""
        raise NotImplementedError

    def pin(self, fd: int) -> None:
        """Keep the object reachable by *fd*, which this node now owns."""
        self.unpin()
        self.pinned = fd

    def unpin(self) -> None:
        """Close the descriptor that kept a nameless object reachable."""
        if self.pinned >= 0:
            os.close(self.pinned)
            self.pinned = -1


class DirNode(Node):
    """A directory: where it lies in each layer, and which of its names the kernel knows."""

    __slots__ = ("children", "listing", "lowers", "redirect", "sieve", "upper")

    def __init__(
        self,
        ino: int,
        parent: DirNode | None,
        name: bytes,
        upper: Directory | None,
        lowers: tuple[Directory, ...],
    ) -> None:
        super().__init__(ino, stat.S_IFDIR, parent, name)
        self.upper = upper
        self.lowers = lowers
        #: What the upper directory's redirect mark says, ``None`` without one.
        self.redirect: bytes | None = None
        self.children: dict[bytes, Node] = {}
        #: What is known of where its names lie, once that has cost too much.
        self.sieve: Sieve | None = None
        #: The merged names, kept while anyone lists them.
        self.listing: Snapshot | None = None

    @property
    def in_upper(self) -> bool:
        """Whether the upper layer has this directory."""
        return self.upper is not None

    @property
    def merged(self) -> bool:
        """Whether more than one layer has this directory."""
        return len(self.lowers) + (self.upper is not None) > 1

    def places(self) -> tuple[Directory, ...]:
        """Return the directories to look into, topmost first; none when it is removed."""
        if self.removed:
            return ()
        return self.lowers if self.upper is None else (self.upper, *self.lowers)

    def top(self) -> Directory:
        """Return the directory whose attributes are shown."""
        return self.lowers[0] if self.upper is None else self.upper

    def changed(self) -> None:
        """Let the next listing look again: a name came or went."""
        if self.listing is not None:
            self.listing.stale = True


class FileNode(Node):
    """Anything but a directory; all its names are one node."""

    __slots__ = (
        "aliases",
        "backed",
        "extra_links",
        "index",
        "linkable",
        "loose",
        "lower",
        "opened",
        "upper",
    )

    def __init__(self, ino: int, kind: int, parent: DirNode | None, name: bytes) -> None:
        super().__init__(ino, kind, parent, name)
        #: Further names that are known, beside (parent, name).
        self.aliases: dict[tuple[DirNode, bytes], None] | None = None
        #: Whether the object is in the upper layer.
        self.upper = False
        #: Where it lies in a lower layer, if it was ever there.
        self.lower: tuple[Directory, bytes] | None = None
        #: Name of its entry in the index: a lower object of several names, copied up.
        self.index: bytes | None = None
        #: Whether a name that is known leads to the index only: it is linked at the next change.
        self.loose = False
        #: What the link count on disk must be corrected by, to count names that are lower.
        self.extra_links = 0
        #: Whether it was made without a name and may be given its first one (O_TMPFILE).
        self.linkable = False
        self.opened: OpenFile | None = None
        #: Whether the kernel has ever written it without us, past the page cache.
        self.backed = False

    @property
    def in_upper(self) -> bool:
        """Whether the object is in the upper layer."""
        return self.upper

    def names(self) -> Iterator[tuple[DirNode, bytes]]:
        """Yield all names that are known."""
        if self.parent is not None:
            yield self.parent, self.name
        yield from self.aliases or ()

    def add_name(self, parent: DirNode, name: bytes) -> None:
        """Remember one more name."""
        if self.parent is None:
            self.parent, self.name = parent, name
        elif self.parent is not parent or self.name != name:
            if self.aliases is None:
                self.aliases = {}
            self.aliases[parent, name] = None

    def remove_name(self, parent: DirNode, name: bytes) -> None:
        """Forget a name that is gone."""
        if self.parent is parent and self.name == name:
            other = next(iter(self.aliases), None) if self.aliases else None
            self.parent, self.name = other or (None, name)
            parent, name = other or (parent, name)
        if self.aliases is not None:
            self.aliases.pop((parent, name), None)


class OpenFile:
    """The one descriptor through which all who have a regular file open reach it."""

    __slots__ = (
        "backing",
        "backs_lower",
        "fd",
        "known_mtime",
        "may_strip",
        "set_ids_since",
        "users",
        "writable",
    )

    def __init__(self, fd: int, *, writable: bool) -> None:
        self.fd = fd
        self.writable = writable
        self.users = 0
        #: Whether a write may have setuid, setgid or a capability to take away.
        self.may_strip = True
        #: The kernel's number of *fd* when it reads and writes it without us, else 0. All who
        #: have a file open must have it so, or none.
        self.backing = 0
        #: Whether that is a lower file of a union that can be written.
        self.backs_lower = False
        #: mtime (nanoseconds) that the kernel has been told while it may write.
        self.known_mtime = 0
        #: mtime (nanoseconds) when setuid or setgid was set while the kernel may write.
        self.set_ids_since: int | None = None


class NodeTable:
    """All nodes by number, and by the objects they stand for."""

    def __init__(self, root: DirNode, numbers: Numbers, sieves: Sieves) -> None:
        self.numbers = numbers
        self._sieves = sieves
        self.root = root
        root.lookups = 1
        self._nodes: dict[int, Node] = {root.ino: root}
        #: Number of a real object -> the node that stands for it.
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
        return self._by_real.get(real)

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
        known = self._by_real.get(real)
        if known is not None:
            return known.ino
        shown = self._shown.get(real, real)
        free = self._reserved.get(shown, real) == real and shown not in self._nodes
        return shown if free else None

    def _reserve(self, shown: int) -> None:
        """Give *shown* for good to whoever has it now: it is claimed a second time."""
        node = self._nodes.get(shown)
        if node is not None and node.reals and shown not in self._reserved:
            self._reserved[shown] = node.reals[0]
            self._shown[node.reals[0]] = shown

    def add(self, node: Node, *reals: int) -> None:
        """Take a new node in, standing for the objects *reals*."""
        self._nodes[node.ino] = node
        for real in reals:
            self.stands_for(node, real)

    def stands_for(self, node: Node, real: int) -> None:
        """Let *node* stand for one more object: its copy, or what it was copied from."""
        if self._by_real.setdefault(real, node) is node and real not in node.reals:
            node.reals += (real,)
        if real != node.ino:
            self._shown[real] = node.ino

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
            parents = [node.parent]
            if isinstance(node, FileNode):
                parents = [parent for parent, _ in node.names()]
            self._drop(node)
            for parent in parents[1:]:
                self.drop_unknown(parent)
            node = parents[0] if parents else None

    def _drop(self, node: Node) -> None:
        if self._nodes.get(node.ino) is not node:
            return
        del self._nodes[node.ino]
        for real in node.reals:
            if self._by_real.get(real) is node:
                del self._by_real[real]
        for parent, name in node.names() if isinstance(node, FileNode) else _name(node):
            if parent.children.get(name) is node:
                del parent.children[name]
        if isinstance(node, DirNode):
            self._sieves.drop(node)
            for directory in node.places():
                directory.layer.descriptors.drop(directory)
        node.unpin()

    def __len__(self) -> int:
        return len(self._nodes)


def _name(node: Node) -> Iterator[tuple[DirNode, bytes]]:
    if node.parent is not None:
        yield node.parent, node.name
