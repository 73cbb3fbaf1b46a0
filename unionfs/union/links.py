"""Hard links across copy-up: how many names an object in the index has.

The count of an indexed object is kept in its ``overlay.nlink`` mark, relative to the
link count of the object itself (``U+n``) or of the lower one (``L+n``), so that a crash
between a change of the mark and a change of the links leaves the count right
(the kernel's fs/overlayfs/inode.c, ovl_set_nlink_common).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from unionfs.layer import xattrs

if TYPE_CHECKING:
    import os

    from unionfs.layer.tree import Layer

_FORM = re.compile(rb"([UL])([+-]\d+)")


def read_extra_links(
    layer: Layer, path: bytes, upper: os.stat_result, lower: os.stat_result | None
) -> int:
    """Return by how many names the object at *path* has more than its own link count says.

    *upper* are its attributes, *lower* those of what it was copied from.
    """
    more_below = 0 if lower is None else lower.st_nlink - upper.st_nlink
    value = layer.read_mark(path, xattrs.NLINK)
    match = None if value is None else _FORM.fullmatch(value)
    if match is None:
        return more_below
    base, difference = match.groups()
    return int(difference) + (0 if base == b"U" else more_below)


def record_links(layer: Layer, path: bytes, extra_links: int) -> None:
    """Write the count down relative to the object's own: before both change."""
    _write(layer, path, b"U%+d" % extra_links)


def record_links_of_lower(layer: Layer, path: bytes, difference: int) -> None:
    """Write the count down relative to the lower object's: before its own changes alone."""
    _write(layer, path, b"L%+d" % difference)


def _write(layer: Layer, path: bytes, value: bytes) -> None:
    try:
        layer.write_mark(path, xattrs.NLINK, value)
    except PermissionError:
        # user.* marks cannot be on a symlink or device: the count lasts as long as the mount.
        if not layer.marks.user:
            raise
