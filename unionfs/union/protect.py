"""Immutable and append-only files: what users may not change though permissions allow it.

The kernel knows the flags of a FUSE file only from its layer, so the union enforces
them: those of a lower object, and those that overlayfs recorded on a copy
(``overlay.protattr``: ``i`` and ``a``). Upper objects with the real flags are
protected by their own file system.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from unionfs.layer import syscalls, xattrs
from unionfs.union.nodes import NO_PROTATTR, NO_PROTECTION, DirNode
from unionfs.union.tree import fail

if TYPE_CHECKING:
    from unionfs.union.nodes import Node
    from unionfs.union.tree import MergedTree

IMMUTABLE = syscalls.STATX_ATTR_IMMUTABLE
APPEND = syscalls.STATX_ATTR_APPEND


def protection(tree: MergedTree, node: Node) -> int:
    """Return the IMMUTABLE and APPEND bits that hold for *node*."""
    upper = node.in_upper
    if not upper and node.known & NO_PROTECTION:
        return 0
    held = tree.held(node)
    if held >= 0:
        dirfd, name = held, b""
    elif isinstance(node, DirNode):
        dirfd, name = node.top().fd(), b""
    else:
        dirfd, name = tree.location(node)
    bits = syscalls.protected_attributes(dirfd, name)
    if not upper:
        if not bits:
            tree.learn(node, NO_PROTECTION)
        return bits
    if node.known & NO_PROTATTR:
        return bits
    path = xattrs.entry_path(dirfd, name) if name else xattrs.fd_path(dirfd)
    letters = tree.upper_layer.read_mark(path, xattrs.PROTATTR, follow=not name)
    if letters is None:
        tree.learn(node, NO_PROTATTR)
        return bits
    return bits | (IMMUTABLE if b"i" in letters else 0) | (APPEND if b"a" in letters else 0)


def refuse_protected(tree: MergedTree, node: Node) -> None:
    """Raise EPERM if *node* may not be changed, renamed, linked or removed."""
    if protection(tree, node):
        fail(errno.EPERM)


def refuse_new_names(tree: MergedTree, parent: DirNode, *, at_once: bool = False) -> None:
    """Raise EPERM if no name may be added to *parent*.

    Where the name is made *at_once*, an upper directory's own file system refuses by itself.
    """
    if at_once and parent.in_upper and parent.known & NO_PROTATTR:
        return
    if protection(tree, parent) & IMMUTABLE:
        fail(errno.EPERM)


def refuse_lost_names(tree: MergedTree, parent: DirNode) -> None:
    """Raise EPERM if no name may be taken from *parent*."""
    if protection(tree, parent):
        fail(errno.EPERM)
