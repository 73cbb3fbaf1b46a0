"""The merged tree: nodes, found in the layers by name, and what they show.

Everything here runs without waiting. Other modules of this package take the ``MergedTree``
as their first argument; it is the state that all requests share.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from unionfs.fuse.interface import ROOT_ID, Attr, Kernel
from unionfs.layer import handles, xattrs
from unionfs.layer.tree import ABSENT
from unionfs.layer.workdir import TEMPORARY_INDEX, WorkDirectory
from unionfs.union import merge, whiteouts
from unionfs.union.links import read_extra_links
from unionfs.union.nodes import DirNode, FileNode, Node, NodeTable, Numbers

if TYPE_CHECKING:
    from unionfs.layer.stack import LayerStack
    from unionfs.layer.tree import Directory, Layer
    from unionfs.options import MountOptions
    from unionfs.union.merge import Found

log = logging.getLogger(__name__)

_NAME_MAX = 255


def fail(code: int, name: bytes | None = None) -> NoReturn:
    """Raise the ``OSError`` for *code*."""
    raise OSError(code, os.strerror(code), name)


class MergedTree:
    """The layers of a mount as one tree of nodes."""

    def __init__(self, stack: LayerStack, options: MountOptions) -> None:
        self.stack = stack
        self.options = options
        self.marks = stack.marks
        self.nodes = NodeTable(*self._root())
        self.kernel: Kernel | None = None
        self._reported: set[str] = set()

    def _root(self) -> tuple[DirNode, Numbers]:
        layers = [layer for layer in (self.stack.upper, *self.stack.lowers) if layer is not None]
        numbers = Numbers([os.fstat(layer.root_fd).st_dev for layer in layers])
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

    # Names to nodes

    def child(self, parent: DirNode, name: bytes) -> Node | None:
        """Return the node that shows as *name* in *parent*, ``None`` when nothing does.

        Raises ENAMETOOLONG, and whatever error a layer has.
        """
        if len(name) > _NAME_MAX:
            fail(errno.ENAMETOOLONG, name)
        if whiteouts.is_reserved(name):
            return None
        node = parent.children.get(name)
        if node is not None:
            if self._still_there(node):
                return node
            # A layer was changed below us: look again, under a new number.
            del parent.children[name]
            self._disown(node, parent, name)
        found = merge.find(self.stack.lowers, parent.places(), name)
        return None if found is None else self._adopt(parent, name, found)

    def _still_there(self, node: Node) -> bool:
        try:
            return stat.S_IFMT(self.status(node).st_mode) == node.kind
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _disown(self, node: Node, parent: DirNode, name: bytes) -> None:
        if isinstance(node, FileNode):
            node.remove_name(parent, name)
        self.nodes.gone(node)

    def shows_below(self, parent: DirNode, name: bytes) -> bool:
        """Say whether a lower layer would show *name* if the upper one had nothing there."""
        if not parent.lowers:
            return False
        return merge.find(self.stack.lowers, parent.lowers, name) is not None

    def _adopt(self, parent: DirNode, name: bytes, found: Found) -> Node:
        node: Node
        if found.is_directory:
            node = self._adopt_directory(parent, name, found)
        else:
            node = self._adopt_file(parent, name, found)
        parent.children[name] = node
        return node

    def _adopt_directory(self, parent: DirNode, name: bytes, found: Found) -> DirNode:
        upper: Directory | None = None
        lowers = found.places
        origin = found.status
        if self.stack.upper is not None and lowers[0].layer is self.stack.upper:
            upper, lowers = lowers[0], lowers[1:]
            if lowers:
                origin = os.fstat(lowers[0].fd())
        real = self.nodes.numbers.real(origin)
        ino = self.nodes.number_for(real, real)
        node = DirNode(ino, parent, name, upper, lowers)
        node.redirect = found.redirect if upper is not None else None
        self.nodes.add(node)
        self.nodes.stands_for(node, real)
        return node

    def _adopt_file(self, parent: DirNode, name: bytes, found: Found) -> FileNode:
        directory = found.places[0]
        if directory.layer is self.stack.upper:
            return self._adopt_upper_file(parent, name, found.status)
        real = self.nodes.numbers.real(found.status)
        known = self.nodes.by_real(real)
        if isinstance(known, FileNode):
            known.add_name(parent, name)
            known.lower = known.lower or (directory, name)
            known.loose = known.index is not None
            return known
        ino = self.nodes.number_for(real, real)
        node = FileNode(ino, stat.S_IFMT(found.status.st_mode), parent, name)
        node.lower = (directory, name)
        self.nodes.add(node, real)
        if found.status.st_nlink > 1 and self.stack.work is not None:
            self._find_copy(node, found.status)
        return node

    def _adopt_upper_file(self, parent: DirNode, name: bytes, status: os.stat_result) -> FileNode:
        real = self.nodes.numbers.real(status)
        known = self.nodes.by_real(real)
        if isinstance(known, FileNode):
            known.add_name(parent, name)
            known.unpin()
            return known
        origin, below = self._origin(parent, name, status)
        ino = self.nodes.number_for(real, real if below is None else self.nodes.numbers.real(below))
        node = FileNode(ino, stat.S_IFMT(status.st_mode), parent, name)
        node.upper = True
        self.nodes.add(node, real)
        if origin is not None and status.st_nlink > 1 and self.stack.work is not None:
            index = origin.hex().encode()
            if self._index_status(index, status) is not None:
                node.index = index
                node.extra_links = self._extra_links(index, status, below)
                if below is not None:
                    self.nodes.stands_for(node, self.nodes.numbers.real(below))
        return node

    # Origins and the index

    def _origin(
        self, parent: DirNode, name: bytes, status: os.stat_result
    ) -> tuple[bytes | None, os.stat_result | None]:
        """Return the origin mark of an upper object, and the lower object it came from."""
        if not self.stack.lowers:
            return None, None
        upper = self.upper_of(parent)
        try:
            origin = upper.layer.read_mark(xattrs.entry_path(upper.fd(), name), xattrs.ORIGIN)
        except PermissionError:
            origin = None  # another's file: it can do without
        if origin is not None and not handles.is_valid(origin):
            origin = None
        below = None if origin is None else self.stack.decode(origin)
        unmarkable = self.marks.user and not stat.S_ISREG(status.st_mode)
        if below is None and (origin is not None or unmarkable):
            # A handle that cannot be decoded, or a mark that cannot be: the lower object at
            # the same path, if it is that one.
            below = self._same_path(parent, name, status, origin)
        return origin, below

    def _same_path(
        self, parent: DirNode, name: bytes, status: os.stat_result, origin: bytes | None
    ) -> os.stat_result | None:
        try:
            found = merge.find(self.stack.lowers, parent.lowers, name)
        except OSError:
            return None
        if found is None or stat.S_IFMT(found.status.st_mode) != stat.S_IFMT(status.st_mode):
            return None
        directory = found.places[0]
        if origin is not None and origin != handles.encode(
            directory.fd(), found.name, directory.layer.uuid
        ):
            return None
        return found.status

    def index_name(self, node: FileNode) -> bytes:
        """Return the name that the lower object of *node* has in the index.

        Without a file handle it is a number, good for the life of this mount.
        """
        if node.lower is None:
            fail(errno.ENOENT)
        directory, name = node.lower
        origin = handles.encode(directory.fd(), name, directory.layer.uuid)
        if origin is None:
            status = directory.lstat(name)
            real = node.ino if status is None else self.nodes.numbers.real(status)
            return TEMPORARY_INDEX + b"%x" % real
        return origin.hex().encode()

    def _index_status(
        self, index: bytes, same_as: os.stat_result | None = None
    ) -> os.stat_result | None:
        try:
            status = os.stat(index, dir_fd=self.work.index_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise
        return status if same_as is None or os.path.samestat(status, same_as) else None

    def index_path(self, index: bytes) -> bytes:
        """Return the path that leads to an entry of the index."""
        return xattrs.entry_path(self.work.index_fd, index)

    def _extra_links(
        self, index: bytes, status: os.stat_result, lower: os.stat_result | None
    ) -> int:
        return read_extra_links(self.upper_layer, self.index_path(index), status, lower)

    def _find_copy(self, node: FileNode, lower: os.stat_result) -> None:
        """Let *node* be its copy, if another name of it was copied up before."""
        index = self.index_name(node)
        status = self._index_status(index)
        if status is None or stat.S_IFMT(status.st_mode) != node.kind:
            return
        node.index = index
        node.upper = node.loose = True
        node.extra_links = self._extra_links(index, status, lower)
        self.nodes.stands_for(node, self.nodes.numbers.real(status))

    # Nodes to objects

    def location(self, node: Node) -> tuple[int, bytes]:
        """Return (descriptor, name) of what *node* shows, which is no pinned object."""
        if isinstance(node, FileNode):
            if node.index is not None:
                return self.work.index_fd, node.index
            if node.upper:
                return self.upper_of(_parent(node)).fd(), node.name
            if node.lower is None:
                fail(errno.ESTALE)
            directory, name = node.lower
            return directory.fd(), name
        assert isinstance(node, DirNode)
        top = node.top()
        return (top.layer.root_fd, b".") if top.parent is None else (top.parent.fd(), top.name)

    def layer_of(self, node: FileNode) -> Layer:
        """Return the layer that has what *node* shows."""
        layer = self.stack.upper if node.upper or node.lower is None else node.lower[0].layer
        assert layer is not None
        return layer

    def status(self, node: Node) -> os.stat_result:
        """Return the attributes of what *node* shows, as its layer has them."""
        if node.pinned >= 0:
            return os.fstat(node.pinned)
        if isinstance(node, DirNode):
            return os.fstat(node.top().fd())
        dirfd, name = self.location(node)
        return os.stat(name, dir_fd=dirfd, follow_symlinks=False)

    @contextmanager
    def object(self, node: Node) -> Iterator[bytes]:
        """Yield a path that leads to what *node* shows, whatever its names do meanwhile."""
        if node.pinned >= 0:
            yield xattrs.fd_path(node.pinned)
            return
        fd = self.open_object(node)
        try:
            yield xattrs.fd_path(fd)
        finally:
            os.close(fd)

    def open_object(self, node: Node, flags: int = os.O_PATH) -> int:
        """Open what *node* shows with *flags*; the caller closes the descriptor."""
        if node.pinned >= 0:
            return os.open(xattrs.fd_path(node.pinned), flags | os.O_CLOEXEC)
        dirfd, name = self.location(node)
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)

    def pin(self, node: Node) -> None:
        """Keep what *node* shows reachable while its names go away."""
        if node.pinned < 0:
            node.pin(self.open_object(node))

    def attr(self, node: Node) -> Attr:
        """Return the attributes that *node* shows."""
        status = self.status(node)
        options = self.options
        return Attr(
            node.ino,
            status.st_mode,
            self._nlink(node, status),
            status.st_uid if options.squash_to_uid is None else options.squash_to_uid,
            status.st_gid if options.squash_to_gid is None else options.squash_to_gid,
            status.st_rdev,
            status.st_size,
            status.st_blocks,
            status.st_blksize,
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )

    def _nlink(self, node: Node, status: os.stat_result) -> int:
        if node.removed:
            return 0
        if isinstance(node, FileNode):
            return max(status.st_nlink + node.extra_links, 1)
        # A merged directory does not count its subdirectories, as overlayfs's does not.
        return 1 if isinstance(node, DirNode) and node.merged else status.st_nlink


def _parent(node: Node) -> DirNode:
    if node.parent is None:
        fail(errno.ESTALE)
    return node.parent
