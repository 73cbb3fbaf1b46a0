"""Further names: link(2), also of a file that was made without any."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from unionfs.layer import xattrs
from unionfs.union.copymeta import mark_impure
from unionfs.union.copyup import copy_up
from unionfs.union.create import prepare_name, show, take_name
from unionfs.union.indexed import record_count
from unionfs.union.protect import refuse_protected
from unionfs.union.tree import MergedTree, fail

if TYPE_CHECKING:
    from unionfs.layer.tree import Directory
    from unionfs.union.nodes import DirNode, FileNode


async def link(tree: MergedTree, node: FileNode, parent: DirNode, name: bytes) -> None:
    """Give *node* the further *name*. Waits while the object is copied up.

    Raises ENOENT for one whose last name is gone, or that was made never to have any.
    """
    tree.refuse_read_only()
    refuse_protected(tree, node)
    await copy_up(tree, node)
    if node.removed and not node.linkable:
        fail(errno.ENOENT)
    directory = prepare_name(tree, parent, name)
    record_count(tree, node)
    if node.lower is not None or node.index is not None:
        mark_impure(tree, directory)
    with tree.object(node) as source:
        _link(tree, xattrs.path_to(source), directory, name)
    if node.removed:
        node.linkable = False
        tree.appeared(node, parent, name)
        node.unpin()
    node.add_name(parent, name)
    take_name(parent, name, node)


def _link(tree: MergedTree, source: bytes, directory: Directory, name: bytes) -> None:
    """Link what *source* leads to, over a whiteout if there is one."""
    if directory.lstat(name) is None:
        directory.added(name)
        # In one step: a file without a name is given one once, and never again.
        os.link(source, name, dst_dir_fd=directory.fd(), follow_symlinks=True)
        return
    with tree.work.temporary() as temporary:
        os.link(source, temporary, dst_dir_fd=tree.work.fd, follow_symlinks=True)
        show(tree, directory, temporary, name)
