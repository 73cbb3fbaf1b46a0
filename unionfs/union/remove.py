"""Names that go: unlink and rmdir, with a whiteout only where something below would show."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from unionfs.layer import syscalls
from unionfs.union import whiteouts
from unionfs.union.copydir import copy_up_directory
from unionfs.union.copyup import copy_up, settled
from unionfs.union.emptiness import is_empty
from unionfs.union.indexed import counts_names, record_count
from unionfs.union.lookup import child
from unionfs.union.nodes import DirNode, FileNode, Node
from unionfs.union.protect import refuse_lost_names, refuse_protected
from unionfs.union.tree import MergedTree, fail
from unionfs.waiting import blocking

if TYPE_CHECKING:
    from unionfs.layer.tree import Directory


async def unlink(tree: MergedTree, parent: DirNode, name: bytes) -> None:
    """Remove *name*, no directory.

    Waits while the object is copied up: one of several names in a lower layer must be,
    so that the count of those that are left can be kept.
    """
    node = _present(tree, parent, name)
    if not isinstance(node, FileNode):
        fail(errno.EISDIR, name)
    _refuse_removal(tree, parent, node)
    await settled(node)
    if counts_names(tree, node):
        await copy_up(tree, node, going=(parent, name))
    copy_up_directory(tree, parent)
    directory = tree.upper_of(parent)
    tree.pin(node)
    record_count(tree, node)
    take_away(tree, directory, name, whiteout=tree.shows_below(parent, name))
    lose_name(tree, node, parent, name)


async def rmdir(tree: MergedTree, parent: DirNode, name: bytes) -> None:
    """Remove a directory that shows nothing; ENOTEMPTY when it does.

    Waits while many whiteouts are passed over, and for their removal when all is done.
    """
    node = _present(tree, parent, name)
    if not isinstance(node, DirNode):
        fail(errno.ENOTDIR, name)
    _refuse_removal(tree, parent, node)
    if not await is_empty(node):
        fail(errno.ENOTEMPTY, name)
    copy_up_directory(tree, parent)
    directory = tree.upper_of(parent)
    tree.pin(node)
    detached = take_away(tree, directory, name, whiteout=tree.shows_below(parent, name))
    lose_directory(tree, node, parent, name)
    if detached is not None:
        await blocking(tree.work.discard, detached)


def _present(tree: MergedTree, parent: DirNode, name: bytes) -> Node:
    tree.refuse_read_only()
    node = child(tree, parent, name)
    if node is None:
        fail(errno.ENOENT, name)
    return node


def _refuse_removal(tree: MergedTree, parent: DirNode, node: Node) -> None:
    at_once = is_plain_upper(node)
    refuse_protected(tree, node, at_once=at_once)
    refuse_lost_names(tree, parent, at_once=at_once)


def is_plain_upper(node: Node) -> bool:
    """Say whether one system call in the upper layer removes or replaces *node*."""
    return node.in_upper and not (isinstance(node, FileNode) and node.index is not None)


def take_away(
    tree: MergedTree, directory: Directory, name: bytes, *, whiteout: bool
) -> bytes | None:
    """Remove the upper object at *name*, if there is one, in one step; leave a whiteout if asked.

    A directory may still hold whiteouts of its own: it is a temporary then, whose name is
    returned, to be discarded where that holds nobody up.
    """
    status = directory.lstat(name)
    if whiteout:
        return _cover(tree, directory, name, status)
    if status is None:
        return None
    if stat.S_ISDIR(status.st_mode):
        return _remove_directory(tree, directory, name)
    os.unlink(name, dir_fd=directory.fd())
    return None


def _cover(
    tree: MergedTree, directory: Directory, name: bytes, status: os.stat_result | None
) -> bytes | None:
    if status is None:
        whiteouts.make_whiteout(directory, name)
        return None
    work = tree.work
    temporary = whiteouts.prepare_whiteout(work, directory)
    try:
        if stat.S_ISDIR(status.st_mode):
            flags = syscalls.RENAME_EXCHANGE
            syscalls.renameat2(work.fd, temporary, directory.fd(), name, flags)
            return temporary
        os.rename(temporary, name, src_dir_fd=work.fd, dst_dir_fd=directory.fd())
    except BaseException:
        work.discard(temporary)
        raise
    return None


def _remove_directory(tree: MergedTree, directory: Directory, name: bytes) -> bytes | None:
    try:
        os.rmdir(name, dir_fd=directory.fd())
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        work = tree.work
        temporary = work.new_name()
        os.rename(name, temporary, src_dir_fd=directory.fd(), dst_dir_fd=work.fd)
        return temporary
    return None


def lose_name(tree: MergedTree, node: FileNode, parent: DirNode, name: bytes) -> None:
    """Let *node*, which is pinned, no longer have *name*."""
    parent.children.pop(name, None)
    parent.changed()
    node.remove_name(parent, name)
    links = os.fstat(node.pinned).st_nlink + node.extra_links if node.upper else 0
    if links > 0:
        if node.parent is not None or node.index is not None:
            node.unpin()
        return
    if node.index is not None:
        with contextlib.suppress(OSError):
            # The name is gone already; a stale entry leads from names that are hidden.
            tree.work.forget_index(node.index)
        node.index = None
        node.extra_links = 0
    tree.nodes.gone(node)
    tree.nodes.drop_unknown(node)


def lose_directory(tree: MergedTree, node: DirNode, parent: DirNode, name: bytes) -> None:
    """Let the pinned directory *node* be gone; those who have it open see it empty."""
    parent.children.pop(name, None)
    parent.changed()
    for directory in node.places():
        directory.layer.descriptors.drop(directory)
    # The layer that it was on still tells how its owner is meant.
    node.lowers = () if node.upper is not None else node.lowers[:1]
    node.changed()
    tree.nodes.gone(node)
    tree.nodes.drop_unknown(node)
