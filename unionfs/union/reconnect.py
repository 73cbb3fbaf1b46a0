"""From a number that an NFS client kept to its node, which no name was looked up for.

The table of handles says under which name an object lies, and in which directory, by number
again: so the way leads up to a directory that is known, and down from there by names. What is found
must have the number that was asked for, and gets it only by its handle (``exporting``).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from unionfs.layer import handles
from unionfs.union import lookup
from unionfs.union.nodes import DirNode, FileNode, Node
from unionfs.union.tree import MergedTree, fail

if TYPE_CHECKING:
    from unionfs.layer.handletable import Row


def connected(tree: MergedTree, number: int, name: bytes) -> Node:
    """Return what the kernel looks up as ``.`` or ``..`` of a number: itself, or the parent.

    Raises ESTALE for what is gone.
    """
    node = tree.nodes.find(number) or _node(tree, number)
    if node is None or node.removed:
        fail(errno.ESTALE)
    return node if name == b"." else node.parent or node


def directory(tree: MergedTree, number: int) -> DirNode:
    """Return the directory of *number*; ESTALE without one."""
    node = connected(tree, number, b".")
    if not isinstance(node, DirNode):
        fail(errno.ESTALE)
    return node


def _node(tree: MergedTree, number: int) -> Node | None:
    """Return the node of a number that is not known, ``None`` for what is gone."""
    if tree.exports is None:
        return None
    node: Node | None = None
    for row in reversed(_way_up(tree, number)):
        below = _at_its_name(tree, row) or _without_name(tree, row)
        if below is None and node is not None:
            tree.nodes.drop_unknown(node)
        node = below
    return node


def _way_up(tree: MergedTree, number: int) -> list[Row]:
    """Return the rows of *number* and of the directories above that are not known yet."""
    assert tree.exports is not None
    rows: list[Row] = []
    passed: set[int] = set()
    above: int | None = number
    while above is not None and above not in passed and tree.nodes.find(above) is None:
        passed.add(above)
        row = tree.exports.table.of_number(above)
        if row is None:
            break
        rows.append(row)
        above = row.parent
    return rows


def _at_its_name(tree: MergedTree, row: Row) -> Node | None:
    """Return what *row* is of, if it is where it was last seen or was about to be moved to."""
    for parent, name in ((row.parent, row.name), (row.next_parent, row.next_name)):
        if parent is None or name is None:
            continue
        try:
            above = tree.nodes.find(parent)
            if above is None and parent == row.next_parent:
                above = directory(tree, parent)
            if isinstance(above, DirNode) and not above.removed:
                child = lookup.child(tree, above, name)
                if child is not None and child.ino == row.number:
                    return child
                tree.nodes.drop_unknown(child or above)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
                raise
    return None


def _without_name(tree: MergedTree, row: Row) -> Node | None:
    """Return an upper object of several names that lives under one which nobody asked for."""
    return _in_index(tree, row) or _by_own_handle(tree, row)


def _in_index(tree: MergedTree, row: Row) -> Node | None:
    if tree.stack.work is None:
        return None
    index = row.handle.hex().encode()
    status = tree.index_status(index)
    if status is None or stat.S_ISDIR(status.st_mode):
        return None
    lower = tree.stack.decode(row.handle)
    extra = tree.extra_links(index, status, lower)
    if status.st_nlink + extra <= 0:
        return None
    node = _nameless(tree, row, status)
    node.index, node.extra_links, node.loose = index, extra, True
    if lower is not None:
        tree.nodes.stands_for(node, tree.nodes.numbers.real(lower))
    return node


def _by_own_handle(tree: MergedTree, row: Row) -> Node | None:
    if row.linked is None:
        return None
    try:
        fd = tree.stack.open_handle(row.linked)
    except OSError:
        return None
    status = os.fstat(fd)
    if status.st_nlink == 0:
        os.close(fd)
        return None
    node = _nameless(tree, row, status)
    node.pin(fd)
    return node


def _nameless(tree: MergedTree, row: Row, status: os.stat_result) -> FileNode:
    node = FileNode(row.number, stat.S_IFMT(status.st_mode), None, b"")
    node.upper = True
    tree.nodes.add(node, tree.nodes.numbers.real(status))
    tree.nodes.generations[row.number] = handles.generation(row.handle)
    return node
