"""From what a layer has under a name to the node that stands for it, new or known.

All names of a file are one node: it is known by the number of its object, on whatever
layer that lies, and a copy by the number of what it was copied from as well.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from unionfs.layer import handles, xattrs
from unionfs.union.nodes import DirNode, FileNode, Node
from unionfs.union.outside import known_file

if TYPE_CHECKING:
    from unionfs.layer.tree import Directory
    from unionfs.union.merge import Found
    from unionfs.union.tree import MergedTree


def adopt(
    tree: MergedTree, parent: DirNode, name: bytes, found: Found
) -> tuple[Node, os.stat_result | None]:
    """Return the node for what was *found* as *name* in *parent*, and what it shows.

    That is ``None`` where the node shows another object than the one that was found.
    """
    node: Node
    if found.is_directory:
        node = _directory(tree, parent, name, found)
        shows = True
    else:
        node, shows = _file(tree, parent, name, found)
    parent.children[name] = node
    return node, found.status if shows else None


def _directory(tree: MergedTree, parent: DirNode, name: bytes, found: Found) -> DirNode:
    upper: Directory | None = None
    lowers = found.places
    origin = found.status
    if lowers[0].layer is tree.stack.upper:
        upper, lowers = lowers[0], lowers[1:]
        origin = found.below or origin
    nodes = tree.nodes
    real = nodes.numbers.real(origin)
    if isinstance(nodes.by_real(real), FileNode):
        known_file(tree, real, origin, in_upper=False)
    top, merges = found.places[0], lowers[0] if upper is not None and lowers else None
    assert top.parent is not None
    number = tree.number((parent, name, top.parent, found.status), real, real, merges)
    node = DirNode(number, parent, name, upper, lowers)
    node.redirect = found.redirect if upper is not None else None
    nodes.add(node)
    nodes.stands_for(node, real)
    return node


def _file(tree: MergedTree, parent: DirNode, name: bytes, found: Found) -> tuple[FileNode, bool]:
    directory = found.places[0]
    status = found.status
    if directory.layer is tree.stack.upper:
        return _upper_file(tree, parent, name, status)
    nodes = tree.nodes
    real = nodes.numbers.real(status)
    known = known_file(tree, real, status, in_upper=False)
    if known is not None:
        known.reached_by(parent, name)
        known.lower_place, known.lower_name = directory, name
        known.loose = known.index is not None
        return known, False
    number = tree.number((parent, name, directory, status), real, real)
    node = FileNode(number, stat.S_IFMT(status.st_mode), parent, name)
    node.lower_place = directory
    nodes.add(node, real)
    if status.st_nlink > 1 and tree.stack.work is not None:
        _find_copy(tree, node, status)
    return node, not node.upper


def _upper_file(
    tree: MergedTree, parent: DirNode, name: bytes, status: os.stat_result
) -> tuple[FileNode, bool]:
    nodes = tree.nodes
    real = nodes.numbers.real(status)
    known = known_file(tree, real, status, in_upper=True)
    if known is not None:
        known.reached_by(parent, name)
        known.unpin()
        return known, False
    origin, below = _origin(tree, parent, name, status)
    number = (
        tree.number((parent, name, tree.upper_of(parent), status), real, real)
        if below is None
        else tree.number(
            (parent, name, tree.upper_of(parent), status),
            real,
            nodes.numbers.real(below),
            origin,
        )
    )
    node = FileNode(number, stat.S_IFMT(status.st_mode), parent, name)
    node.upper = True
    nodes.add(node, real)
    if origin is not None and status.st_nlink > 1 and tree.stack.work is not None:
        index = origin.hex().encode()
        if tree.index_status(index, status) is not None:
            node.index = index
            node.extra_links = tree.extra_links(index, status, below)
            if below is not None:
                nodes.stands_for(node, nodes.numbers.real(below))
    return node, True


def _origin(
    tree: MergedTree, parent: DirNode, name: bytes, status: os.stat_result
) -> tuple[bytes | None, os.stat_result | None]:
    """Return the origin mark of an upper object, and the lower object it came from."""
    if not tree.stack.lowers:
        return None, None
    upper = tree.upper_of(parent)
    try:
        origin = upper.layer.read_mark(xattrs.entry_path(upper.fd(), name), xattrs.ORIGIN)
    except PermissionError:
        origin = None  # another's file: it can do without
    if origin is not None and not handles.is_valid(origin):
        origin = None
    below = None if origin is None else tree.stack.decode(origin)
    unmarkable = tree.marks.user and not stat.S_ISREG(status.st_mode)
    if below is None and (origin is not None or unmarkable):
        # A handle that cannot be decoded, or a mark that cannot be: the lower object at
        # the same path, if it is that one.
        below = _same_path(tree, parent, name, status, origin)
    return origin, below


def _same_path(
    tree: MergedTree, parent: DirNode, name: bytes, status: os.stat_result, origin: bytes | None
) -> os.stat_result | None:
    try:
        found = tree.find_below(parent, name)
    except OSError:
        return None
    if found is None or stat.S_IFMT(found.status.st_mode) != stat.S_IFMT(status.st_mode):
        return None
    directory = found.places[0]
    if origin is not None and origin != directory.handle(found.name):
        return None
    return found.status


def _find_copy(tree: MergedTree, node: FileNode, lower: os.stat_result) -> None:
    """Let *node* be its copy, if another name of it was copied up before."""
    index = tree.index_name(node)
    status = tree.index_status(index)
    if status is None or stat.S_IFMT(status.st_mode) != node.kind:
        return
    node.index = index
    node.upper = node.loose = True
    node.extra_links = tree.extra_links(index, status, lower)
    tree.nodes.stands_for(node, tree.nodes.numbers.real(status))
