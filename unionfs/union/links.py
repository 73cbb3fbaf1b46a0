"""Hard links across copy-up: how many names an object in the index has.

The count of an indexed object is kept in its ``overlay.nlink`` mark, relative to the
link count of the object itself (``U+n``) or of the lower one (``L+n``), so that a crash
between a change of the mark and a change of the links leaves the count right
(the kernel's fs/overlayfs/inode.c, ovl_set_nlink_common).
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from unionfs.layer import xattrs

if TYPE_CHECKING:
    from unionfs.union.nodes import FileNode
    from unionfs.union.tree import MergedTree

_FORM = re.compile(rb"([UL])([+-]\d+)")


def read_extra_links(
    tree: MergedTree, index: bytes, upper: os.stat_result, lower: os.stat_result | None
) -> int:
    """Return by how many names the object *index* has more than its own link count says."""
    path = xattrs.entry_path(tree.work.index_fd, index)
    value = tree.marks.read(path, xattrs.NLINK)
    match = None if value is None else _FORM.fullmatch(value)
    if match is None:
        return 0 if lower is None else lower.st_nlink - upper.st_nlink
    base, difference = match.groups()
    if base == b"U":
        return int(difference)
    return int(difference) + (0 if lower is None else lower.st_nlink - upper.st_nlink)


def record_links(tree: MergedTree, node: FileNode) -> None:
    """Write the count of *node* down, relative to its own: before a change of both."""
    if node.index is None:
        return
    path = xattrs.entry_path(tree.work.index_fd, node.index)
    _write(tree, path, b"U%+d" % node.extra_links)


def record_links_of_lower(tree: MergedTree, path: bytes, difference: int) -> None:
    """Write the count down relative to the lower object's: before its own count changes."""
    _write(tree, path, b"L%+d" % difference)


def _write(tree: MergedTree, path: bytes, value: bytes) -> None:
    try:
        tree.marks.write(path, xattrs.NLINK, value)
    except PermissionError:
        # user.* marks cannot be on a symlink or device: the count lasts as long as the mount.
        if not tree.marks.user:
            raise
