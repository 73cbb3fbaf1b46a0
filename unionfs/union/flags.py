"""Inode flags, as chattr(1) sets them and lsattr(1) shows them.

Immutable (``i``) and append-only (``a``) are never set on an upper object itself, which
could then not be changed by the union either: ``overlay.protattr`` records them, and
``protect`` enforces them. All other flags are the upper file system's own (the
kernel's fs/overlayfs/inode.c, ovl_fileattr_set).

Who may set what is checked by the kernel before it asks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator
from typing import Final

from unionfs.layer import syscalls, xattrs
from unionfs.layer.syscalls import (
    FS_APPEND_FL,
    FS_IMMUTABLE_FL,
    FS_XFLAG_APPEND,
    FS_XFLAG_IMMUTABLE,
)
from unionfs.layer.tree import opened_up
from unionfs.union.copyup import copy_up, refuse_metacopy
from unionfs.union.nodes import NO_PROTATTR, FileNode, Node
from unionfs.union.protect import APPEND, IMMUTABLE, protection
from unionfs.union.tree import MergedTree, fail

_PROTECTING: Final = FS_IMMUTABLE_FL | FS_APPEND_FL
#: Longer digests than this cannot be asked for: their size is a __u16.
_MOST_DIGEST: Final = 0xFFFF


def get_flags(tree: MergedTree, node: Node) -> int:
    """Return the FS_*_FL flags of what *node* shows; ENOTTY where there are none."""
    with _opened(tree, node) as fd:
        flags = syscalls.inode_flags(fd)
    bits = protection(tree, node)
    flags |= FS_IMMUTABLE_FL if bits & IMMUTABLE else 0
    return flags | (FS_APPEND_FL if bits & APPEND else 0)


def get_xflags(tree: MergedTree, node: Node) -> bytes:
    """Return the ``struct fsxattr`` of what *node* shows; ENOTTY where there is none."""
    with _opened(tree, node) as fd:
        found = syscalls.extended_flags(fd)
    bits = protection(tree, node)
    (flags,) = struct.unpack_from("=I", found)
    flags |= FS_XFLAG_IMMUTABLE if bits & IMMUTABLE else 0
    flags |= FS_XFLAG_APPEND if bits & APPEND else 0
    return struct.pack("=I", flags) + found[4:]


async def set_flags(tree: MergedTree, node: Node, flags: int) -> None:
    """Set all flags to *flags*. Waits while the object is copied up.

    Raises EROFS, ENOTTY for what is neither file nor directory, EPERM and EOPNOTSUPP as
    the upper file system says; nothing is changed then.
    """
    tree.refuse_read_only()
    with _opened(tree, node) as fd:
        syscalls.inode_flags(fd)  # fails before a copy-up for nothing
    await copy_up(tree, node)
    with _opened(tree, node) as fd:
        before = syscalls.inode_flags(fd)
        syscalls.set_inode_flags(fd, flags & ~_PROTECTING)
        try:
            _record_protection(tree, node, flags)
        except BaseException:
            with contextlib.suppress(OSError):
                syscalls.set_inode_flags(fd, before)
            raise
    tree.tell_changed(node)


def _record_protection(tree: MergedTree, node: Node, flags: int) -> None:
    letters = (b"a" if flags & FS_APPEND_FL else b"") + (b"i" if flags & FS_IMMUTABLE_FL else b"")
    layer = tree.upper_layer
    node.known &= ~NO_PROTATTR
    with tree.object(node) as target:
        if letters:
            layer.write_mark(xattrs.path_to(target), xattrs.PROTATTR, letters, follow=True)
        else:
            layer.remove_mark(xattrs.path_to(target), xattrs.PROTATTR, follow=True)


def measure_verity(tree: MergedTree, node: Node, size: int) -> bytes:
    """Return fs-verity's ``struct fsverity_digest`` of the file that *node* shows.

    A copy in the upper has none of its lower's: ENODATA. ENOTTY and EOPNOTSUPP are as
    the layer says; overlayfs never has any.
    """
    if isinstance(node, FileNode) and node.opened is None and stat.S_ISREG(node.kind):
        refuse_metacopy(tree, node)
    with _opened(tree, node) as fd:
        return syscalls.measure_verity(fd, min(size, _MOST_DIGEST))


@contextlib.contextmanager
def _opened(tree: MergedTree, node: Node) -> Iterator[int]:
    """Yield a descriptor for an ioctl; ENOTTY for what is neither file nor directory."""
    if not (stat.S_ISREG(node.kind) or stat.S_ISDIR(node.kind)):
        fail(errno.ENOTTY)
    if isinstance(node, FileNode) and node.opened is not None:
        yield node.opened.fd
        return
    fd = _open(tree, node)
    try:
        yield fd
    finally:
        os.close(fd)


def _open(tree: MergedTree, node: Node) -> int:
    try:
        return tree.open_object(node, os.O_RDONLY | os.O_NONBLOCK)
    except PermissionError:
        if not node.in_upper:
            raise
    with (
        tree.object(node) as target,
        opened_up(xattrs.path_to(target), stat.S_IRUSR, follow=True),
    ):
        return tree.open_object(node, os.O_RDONLY | os.O_NONBLOCK)
