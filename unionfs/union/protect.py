"""Immutable and append-only files: what users may not change though permissions allow it.

The kernel knows the flags of a FUSE file only from its layer, so the union enforces
them: those of a lower object, and those that overlayfs recorded on a copy
(``overlay.protattr``: ``i`` and ``a``). Upper objects with the real flags are
protected by their own file system.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from unionfs.layer import syscalls, xattrs
from unionfs.union.tree import fail

if TYPE_CHECKING:
    from unionfs.union.nodes import DirNode, Node
    from unionfs.union.tree import MergedTree

IMMUTABLE = syscalls.STATX_ATTR_IMMUTABLE
APPEND = syscalls.STATX_ATTR_APPEND


def protection(tree: MergedTree, node: Node) -> int:
    """Return the IMMUTABLE and APPEND bits that hold for *node*."""
    fd = tree.open_object(node)
    try:
        bits = syscalls.protected_attributes(fd)
        if node.in_upper:
            path = xattrs.fd_path(fd)
            letters = tree.upper_layer.read_mark(path, xattrs.PROTATTR, follow=True) or b""
            bits |= (IMMUTABLE if b"i" in letters else 0) | (APPEND if b"a" in letters else 0)
        return bits
    finally:
        os.close(fd)


def refuse_protected(tree: MergedTree, node: Node) -> None:
    """Raise EPERM if *node* may not be changed, renamed, linked or removed."""
    if protection(tree, node):
        fail(errno.EPERM)


def refuse_new_names(tree: MergedTree, parent: DirNode) -> None:
    """Raise EPERM if no name may be added to *parent*."""
    if protection(tree, parent) & IMMUTABLE:
        fail(errno.EPERM)


def refuse_lost_names(tree: MergedTree, parent: DirNode) -> None:
    """Raise EPERM if no name may be taken from *parent*."""
    if protection(tree, parent):
        fail(errno.EPERM)
