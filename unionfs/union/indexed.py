"""Lower files of several names that were copied up: each name leads to one object.

The object lies in the index, under the handle of the lower one, and is linked from there
to its names. Nothing here waits.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from unionfs.layer import handles, xattrs
from unionfs.union.copydir import copy_up_directory
from unionfs.union.copymeta import mark_impure, unchanged_times, writable
from unionfs.union.links import read_extra_links, record_links, record_links_of_lower

if TYPE_CHECKING:
    from unionfs.union.nodes import DirNode, FileNode
    from unionfs.union.tree import MergedTree


def move_into_index(tree: MergedTree, node: FileNode, name: bytes, lower_links: int) -> None:
    """Put an object of several names into the index, from where each name is linked."""
    work = tree.work
    index = tree.index_name(node)
    record_links_of_lower(tree.upper_layer, work.path_of(name), 0)
    os.rename(name, index, src_dir_fd=work.fd, dst_dir_fd=work.index_fd)
    node.index = index
    # All names of the lower object still count; the link in the index counts for none.
    node.extra_links = lower_links - 1
    node.loose = True


def remove_orphans(tree: MergedTree) -> None:
    """Remove index entries whose last name went just before a daemon was killed."""
    if tree.stack.work is None:
        return
    for index in os.listdir(xattrs.fd_path(tree.work.index_fd)):
        path = tree.index_path(index)
        status = os.lstat(path)
        if status.st_nlink > 1 or stat.S_ISDIR(status.st_mode):
            continue
        lower = _lower_of(tree, index)
        if lower is not None and 1 + read_extra_links(tree.upper_layer, path, status, lower) <= 0:
            tree.work.forget_index(index)


def _lower_of(tree: MergedTree, index: bytes) -> os.stat_result | None:
    """Return the attributes of the lower object that an index entry is named by."""
    try:
        origin = bytes.fromhex(index.decode("ascii"))
    except ValueError:
        return None
    return tree.stack.decode(origin) if handles.is_valid(origin) else None


def link_up(tree: MergedTree, node: FileNode, going: tuple[DirNode, bytes] | None) -> None:
    """Link the name *going*, or all known names, of an indexed object into the upper layer.

    Whatever name a change came by, it then is there for those who do not read the index,
    and for us after an engine has emptied the work directory. One name will do for that:
    a further one whose directory cannot be copied up is tried again at the next change.
    """
    if going is not None:
        _link_up_name(tree, node, *going)
        return
    failed: OSError | None = None
    linked = False
    for parent, name in node.names():
        try:
            _link_up_name(tree, node, parent, name)
            linked = True
        except OSError as error:
            failed = error
    if failed is not None and not linked:
        raise failed
    node.loose = failed is not None


def _link_up_name(tree: MergedTree, node: FileNode, parent: DirNode, name: bytes) -> None:
    copy_up_directory(tree, parent)
    directory = tree.upper_of(parent)
    if node.index is None or directory.lstat(name) is not None:
        return
    work = tree.work
    lower = None if node.lower is None else node.lower[0].lstat(node.lower[1])
    if lower is not None:
        status = tree.status(node)
        difference = status.st_nlink + node.extra_links - lower.st_nlink
        record_links_of_lower(tree.upper_layer, tree.index_path(node.index), difference)
    mark_impure(tree, directory)
    directory.added(name)
    with unchanged_times(directory), writable(directory):
        os.link(
            node.index,
            name,
            src_dir_fd=work.index_fd,
            dst_dir_fd=directory.fd(),
            follow_symlinks=False,
        )
    node.extra_links -= 1
    tree.tell_changed(parent)


def record_count(tree: MergedTree, node: FileNode) -> None:
    """Write down how many names *node* has, before one comes or goes."""
    if node.index is not None:
        record_links(tree.upper_layer, tree.index_path(node.index), node.extra_links)


def counts_names(tree: MergedTree, node: FileNode) -> bool:
    """Say whether *node* has further names below, so that it must be upper to lose one."""
    return node.index is not None or (not node.upper and tree.status(node).st_nlink > 1)
