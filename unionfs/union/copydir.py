"""Directories come up: before anything in them changes, those above them first.

Nothing here waits.
"""

from __future__ import annotations

import errno
import os

from unionfs.layer import xattrs
from unionfs.layer.tree import Directory
from unionfs.union.copymeta import (
    copy_directory_flags,
    copy_owner,
    copy_xattrs,
    mark_origin,
    mark_protected,
    movable_mode,
    move_into,
    set_final_mode,
)
from unionfs.union.nodes import DirNode
from unionfs.union.tree import MergedTree, fail


def copy_up_directory(tree: MergedTree, node: DirNode) -> None:
    """Bring a directory into the upper layer, those above it first."""
    missing = []
    above: DirNode | None = node
    while above is not None and above.upper is None:
        missing.append(above)
        above = above.parent
    for directory in reversed(missing):
        _copy_up_one_directory(tree, directory)


def _copy_up_one_directory(tree: MergedTree, node: DirNode) -> None:
    work = tree.work
    parent = node.parent
    if node.removed or parent is None:
        fail(errno.ENOENT)
    source = node.lowers[0]
    status = source.status()
    with work.temporary() as name:
        os.mkdir(name, 0o700, dir_fd=work.fd)
        path = work.path_of(name)
        own = os.lstat(path)
        copy_owner(tree, path, status, own)
        copy_xattrs(tree, source.layer, xattrs.fd_path(source.fd()), path)
        mark_origin(tree, path, source.layer, _place(source))
        mark_protected(tree, node, path, source.fd())
        copy_directory_flags(xattrs.fd_path(source.fd()), path)
        tree.upper_layer.inodes.set_mode(path, movable_mode(tree, status.st_mode))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
        move_into(tree, name, tree.upper_of(parent), node.name)
    set_final_mode(tree, tree.upper_of(parent), node.name, status.st_mode)
    node.upper = Directory(tree.upper_layer, parent.upper, node.name)
    node.upper.names = tree.sieves.empty()
    tree.nodes.stands_for(node, tree.nodes.numbers.real(own))
    tree.tell_changed(node)
    tree.tell_changed(parent)  # its change time: a name in it was put in place


def _place(directory: Directory) -> tuple[int, bytes]:
    if directory.parent is None:
        return directory.fd(), b""
    return directory.parent.fd(), directory.name
