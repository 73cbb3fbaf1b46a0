"""The merged tree: nodes, found in the layers by name, and what they show.

Everything here runs without waiting. Other modules of this package take the ``MergedTree``
as their first argument; it is the state that all requests share.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from unionfs.fuse.interface import ROOT_ID, Attr, Entry, Kernel
from unionfs.layer import xattrs
from unionfs.layer.tree import ABSENT, identity_of
from unionfs.layer.workdir import TEMPORARY_INDEX, WorkDirectory
from unionfs.log import Log
from unionfs.union import merge, whiteouts
from unionfs.union.freshness import Freshness
from unionfs.union.links import read_extra_links
from unionfs.union.mapping import Identity, Owners
from unionfs.union.nodes import DirNode, FileNode, Node
from unionfs.union.reached import Reached
from unionfs.union.sieve import Sieves
from unionfs.union.table import NodeTable, Numbers

if TYPE_CHECKING:
    from unionfs.layer.stack import LayerStack
    from unionfs.layer.tree import Directory, Layer
    from unionfs.options import MountOptions
    from unionfs.union.exporting import Exports
    from unionfs.union.merge import Found

log = Log(__name__)


def fail(code: int, name: bytes | None = None) -> NoReturn:
    """Raise the ``OSError`` for *code*."""
    raise OSError(code, os.strerror(code), name)


class MergedTree:
    """The layers of a mount as one tree of nodes."""

    def __init__(self, stack: LayerStack, options: MountOptions) -> None:
        self.stack = stack
        self.options = options
        self.marks = stack.marks
        self.freshness = Freshness(options)
        self.sieves = Sieves(self.freshness.lifetime)
        self.identity = Identity.of_process()
        self.owners = Owners(stack, options, (self.identity.uid, self.identity.gid))
        layers = [layer for layer in (stack.upper, *stack.lowers) if layer is not None]
        #: Whether what inodes say is what is meant, on all layers.
        self._inodes_tell = all(layer.override is None for layer in layers)
        upper_tells = stack.upper is None or stack.upper.override is None
        #: Whether there are POSIX ACLs: a layer that keeps modes elsewhere cannot have them.
        self.acls = upper_tells and not options.noacl
        self.nodes = NodeTable(*self._root(), self.sieves, self.freshness)
        self.kernel: Kernel | None = None
        #: Set where numbers are written down (``nfs_export=on``).
        self.exports: Exports | None = None
        #: Numbers of files that lost setuid or setgid to a write that the kernel made without us:
        #: who was let in to run one before we told may not know it yet.
        self.stripped: set[int] = set()
        self._reported: set[str] = set()

    def _root(self) -> tuple[DirNode, Numbers]:
        layers = [layer for layer in (self.stack.upper, *self.stack.lowers) if layer is not None]
        devices = [os.fstat(layer.root_fd).st_dev for layer in layers]
        numbers = Numbers(devices, ino32_t=self.options.ino32_t)
        upper = None if self.stack.upper is None else self.stack.upper.root
        lowers: list[Directory] = []
        for layer in layers:
            if layer is not self.stack.upper:
                lowers.append(layer.root)
            if whiteouts.is_opaque_root(layer.root):
                break
        return DirNode(ROOT_ID, None, b"", upper, tuple(lowers)), numbers

    # What changes need

    @property
    def work(self) -> WorkDirectory:
        """The place where changes are prepared; EROFS when the union is read-only."""
        if self.stack.work is None:
            fail(errno.EROFS)
        return self.stack.work

    @property
    def upper_layer(self) -> Layer:
        """The layer that takes the changes; EROFS when the union is read-only."""
        if self.stack.upper is None or self.stack.work is None:
            fail(errno.EROFS)
        return self.stack.upper

    def refuse_read_only(self) -> None:
        """Raise EROFS in a union without an upper layer, whatever is asked of it."""
        if self.stack.work is None:
            fail(errno.EROFS)

    def upper_of(self, node: DirNode | None) -> Directory:
        """Return the upper directory of *node*; ENOENT when there is none."""
        if node is None or node.upper is None:
            fail(errno.ENOENT)
        return node.upper

    def learn(self, node: Node, known: int) -> None:
        """Remember that the object of *node* lacks a mark, unless others may give it one."""
        if self.freshness.lifetime:
            node.known |= known

    def report_once(self, message: str, *arguments: object) -> None:
        """Log a warning that every further request would only repeat."""
        if message not in self._reported:
            self._reported.add(message)
            log.warning(message, *arguments)

    def tell_changed(self, node: Node) -> None:
        """Let the kernel ask again for attributes of *node* that it does not know to be stale.

        It knows of what its own requests change: objects it writes to or sets something
        of, directories it makes or removes names in.
        """
        if self.kernel is not None:
            self.kernel.attributes_changed(node.ino)

    # What lies below

    def shows_below(self, parent: DirNode, name: bytes) -> bool:
        """Say whether a lower layer would show *name* if the upper one had nothing there."""
        return self.find_below(parent, name) is not None

    def find_below(self, parent: DirNode, name: bytes) -> Found | None:
        """Return what the lower layers show as *name* in *parent*."""
        candidates = self.sieves.below(parent, name)
        if not candidates:
            return None
        return merge.find(self.stack.lowers, parent.lowers, name, candidates=candidates)

    # The index

    def index_name(self, node: FileNode) -> bytes:
        """Return the name that the lower object of *node* has in the index.

        Without a file handle it is a number, good for the life of this mount.
        """
        if node.lower is None:
            fail(errno.ENOENT)
        directory, name = node.lower
        origin = directory.handle(name)
        if origin is None:
            status = directory.lstat(name)
            real = node.ino if status is None else self.nodes.numbers.real(status)
            return TEMPORARY_INDEX + b"%x" % real
        return origin.hex().encode()

    def index_status(
        self, index: bytes, same_as: os.stat_result | None = None
    ) -> os.stat_result | None:
        """Return the attributes of an entry of the index, if there is one, and it is *same_as*."""
        try:
            status = os.stat(index, dir_fd=self.work.index_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise
        if same_as is not None and not os.path.samestat(status, same_as):
            return None
        return self.upper_layer.meant(status, self.index_path(index))

    def index_path(self, index: bytes) -> bytes:
        """Return the path that leads to an entry of the index."""
        return xattrs.entry_path(self.work.index_fd, index)

    def extra_links(
        self, index: bytes, status: os.stat_result, lower: os.stat_result | None
    ) -> int:
        """Return by how many names an entry of the index has more than its link count says."""
        return read_extra_links(self.upper_layer, self.index_path(index), status, lower)

    # Objects to numbers

    def number(
        self,
        seen: tuple[DirNode, bytes, Directory, os.stat_result],
        real: int,
        origin: int,
        came_from: bytes | Directory | None = None,
    ) -> int:
        """Return the number for an object that no node stands for yet.

        It was *seen* as a name in a directory of the union, which also is its name in one of a
        layer, with these attributes. *real* and *origin* as in ``NodeTable.number_for``;
        *came_from* is the handle of the origin or the lower directory that merges, if any.
        """
        if self.exports is None:
            return self.nodes.number_for(real, origin)
        return self.exports.number(seen, came_from, (real, origin))

    def number_nameless(self, fd: int, real: int) -> int:
        """Return the number for the new object *fd*, which has no name."""
        if self.exports is None:
            return self.nodes.number_for(real, real)
        return self.exports.number_nameless(fd, real)

    def appeared(self, node: FileNode, parent: DirNode, name: bytes) -> None:
        """Let *node*, which is pinned and had no name, be found as *name* in *parent*."""
        self.nodes.appeared(node, self.nodes.numbers.real(os.fstat(node.pinned)))
        if self.exports is not None:
            self.exports.appeared(node, parent, name)

    def gone(self, node: Node) -> None:
        """Let *node* no longer be found: its last name is removed."""
        self.nodes.gone(node)
        if self.exports is not None:
            self.exports.gone(node)

    # Nodes to objects

    def location(self, node: Node) -> tuple[int, bytes]:
        """Return (descriptor, name) of what *node* shows, which is no pinned object."""
        if isinstance(node, FileNode):
            if node.index is not None:
                return self.work.index_fd, node.index
            if node.upper:
                return self.upper_of(_parent(node)).fd(), node.name
            if node.lower_place is None:
                fail(errno.ESTALE)
            return node.lower_place.fd(), node.lower_name
        assert isinstance(node, DirNode)
        top = node.top()
        return (top.layer.root_fd, b".") if top.parent is None else (top.parent.fd(), top.name)

    def layer_of(self, node: Node) -> Layer:
        """Return the layer that has what *node* shows."""
        if isinstance(node, DirNode):
            return node.top().layer
        assert isinstance(node, FileNode)
        place = None if node.upper else node.lower_place
        layer = self.stack.upper if place is None else place.layer
        assert layer is not None
        return layer

    def is_elsewhere(self, node: Node) -> bool:
        """Say whether *node* shows another object than lies under its names: in the index."""
        return isinstance(node, FileNode) and node.index is not None

    def is_itself(self, node: Node, status: os.stat_result) -> bool:
        """Say whether *status* is of the object that *node* stands for."""
        if isinstance(node, DirNode):
            return stat.S_ISDIR(status.st_mode) and node.top().identity in (0, identity_of(status))
        return (
            stat.S_IFMT(status.st_mode) == node.kind
            and self.nodes.numbers.real(status) in node.reals
        )

    def status(self, node: Node) -> os.stat_result:
        """Return the attributes of what *node* shows, as its layer has them.

        Raises ESTALE where another object lies in its place: the kernel then looks again.
        """
        if isinstance(node, FileNode) and node.opened is not None:
            status = os.fstat(node.opened.fd)
            return status if self._inodes_tell else self._meant(node, status)
        status = self.status_in_place(node)
        self._refuse_another(node, status)
        return status

    def _meant(self, node: Node, status: os.stat_result) -> os.stat_result:
        """Return *status*, of what *node* shows, as its layer means it."""
        layer = self.layer_of(node)
        if layer.override is None:
            return status
        held = self.held(node)
        if held >= 0:
            return layer.meant(status, xattrs.fd_path(held), follow=True)
        return layer.meant(status, xattrs.entry_path(*self.location(node)))

    def _refuse_another(self, node: Node, status: os.stat_result) -> None:
        """Raise ESTALE unless *status* is of what *node* stands for, or that was seen lately."""
        if not (node.pinned >= 0 or self.freshness.holds(node) or self.is_itself(node, status)):
            fail(errno.ESTALE, node.name)

    def status_in_place(self, node: Node) -> os.stat_result:
        """Return the attributes of what lies where *node* was found, whatever it is by now."""
        if node.pinned >= 0:
            status = os.fstat(node.pinned)
        elif isinstance(node, DirNode):
            top = node.top()
            if top.descriptor < 0 and top.parent is not None and top.layer.isolated:
                # Need not be opened for this; elsewhere that tells what is mounted on it.
                status = os.stat(top.name, dir_fd=top.parent.fd(), follow_symlinks=False)
            else:
                status = os.fstat(top.fd())
        elif isinstance(node, FileNode) and node.opened is not None:
            status = os.fstat(node.opened.fd)
        else:
            dirfd, name = self.location(node)
            status = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        return status if self._inodes_tell else self._meant(node, status)

    def held(self, node: Node) -> int:
        """Return a descriptor that leads to what *node* shows, -1 without one."""
        if node.pinned < 0 and isinstance(node, FileNode) and node.opened is not None:
            return node.opened.fd
        return node.pinned

    def object(self, node: Node) -> Reached:
        """Give, for a ``with``, what leads to what *node* shows, whatever its names do meanwhile.

        That is a descriptor of a regular file, if we may read it; else a path that leads to
        one with O_PATH, by which system calls cost more.
        """
        fd = node.pinned
        if isinstance(node, DirNode):
            fd = fd if fd >= 0 else node.top().fd()
        elif fd < 0 and isinstance(node, FileNode) and node.opened is not None:
            return Reached(node.opened.fd)
        if fd >= 0:
            return Reached(xattrs.fd_path(fd))
        fd, complete = self._open_readable(node)
        return Reached(fd if complete else xattrs.fd_path(fd), fd)

    def _open_readable(self, node: Node) -> tuple[int, bool]:
        """Open what *node* shows; say whether for reading, or O_PATH."""
        if node.kind == stat.S_IFREG:
            with suppress(PermissionError, BlockingIOError):  # EAGAIN: somebody has a lease
                return self.open_object(node, os.O_RDONLY | os.O_NONBLOCK), True
        return self.open_object(node), False

    def open_object(self, node: Node, flags: int = os.O_PATH) -> int:
        """Open what *node* shows with *flags*; the caller closes the descriptor.

        Raises ESTALE where another object lies in its place.
        """
        fd = self.held(node)
        if fd >= 0:
            return os.open(xattrs.fd_path(fd), flags | os.O_CLOEXEC)
        dirfd, name = self.location(node)
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
        if not self.freshness.holds(node):
            try:
                path = xattrs.fd_path(fd)
                status = self.layer_of(node).meant(os.fstat(fd), path, follow=True)
                self._refuse_another(node, status)
            except OSError:
                os.close(fd)
                raise
        return fd

    def pin(self, node: Node) -> None:
        """Keep what *node* shows reachable while its names go away."""
        if node.pinned < 0:
            node.pin(self.open_object(node))

    def attr(self, node: Node, status: os.stat_result | None = None) -> Attr:
        """Return the attributes that *node* shows; *status* are its layer's, if just read."""
        if status is None:
            status = self.status(node)
        uid, gid = status.st_uid, status.st_gid
        if not self.owners.as_stored:
            uid, gid = self.owners.shown(uid, gid)
        return Attr(node.ino, self._nlink(node, status), uid, gid, status)

    def entry(self, node: Node, status: os.stat_result | None = None) -> Entry:
        """Return what the kernel is told of *node*; *status* as in ``attr``."""
        generation = self.nodes.generations.get(node.ino, 0)
        return Entry(node.ino, self.attr(node, status), generation)

    def _nlink(self, node: Node, status: os.stat_result) -> int:
        if node.removed:
            return 0
        if isinstance(node, FileNode):
            return max(status.st_nlink + node.extra_links, 1)
        # A merged directory does not count its subdirectories, as overlayfs's does not.
        one = isinstance(node, DirNode) and (node.merged or self.options.static_nlink)
        return 1 if one else status.st_nlink


def _parent(node: Node) -> DirNode:
    if node.parent is None:
        fail(errno.ESTALE)
    return node.parent
