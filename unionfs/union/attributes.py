"""Attributes: mode, owner, size, times and extended attributes."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from unionfs.fuse.interface import ROOT_ID, Changes
from unionfs.layer import override, syscalls, xattrs
from unionfs.layer.xattrs import ACL_ACCESS, ACL_DEFAULT, CAPABILITY
from unionfs.union import copymeta, passthrough
from unionfs.union.copyup import copy_up, refuse_metacopy
from unionfs.union.nodes import NO_DEFAULT_ACL, FileNode, Node
from unionfs.union.protect import APPEND, IMMUTABLE, protection, refuse_protected, refuses_itself
from unionfs.union.tree import MergedTree, fail

if TYPE_CHECKING:
    from unionfs.fuse.interface import Caller

_ACLS: Final = (ACL_ACCESS, ACL_DEFAULT)


async def set_attributes(tree: MergedTree, node: Node, changes: Changes) -> os.stat_result | None:
    """Apply *changes*; waits while the object is copied up.

    Return the attributes that it has then, if they were read for little.

    Raises EROFS, EPERM for protected objects and for an owner that cannot be set.
    """
    tree.refuse_read_only()
    # A file open for writing is cut even if it may not be.
    alone = changes.size is None and refuses_itself(node)
    bits = 0 if alone else protection(tree, node)
    times_only = (changes.mode, changes.uid, changes.gid, changes.size) == (None,) * 4
    if bits & IMMUTABLE or (bits & APPEND and not times_only):
        fail(errno.EPERM)
    if changes.size is not None and isinstance(node, FileNode):
        refuse_metacopy(tree, node)
        await passthrough.refuse_writing(node)
    status: os.stat_result | None = None
    if not await copy_up(tree, node, changes=changes):
        _settle(tree, node)
        status = _change(tree, node, changes)
    moved = changes.size is not None or changes.mtime_ns is not None
    _may_have_set_ids(node, status, with_times=moved)
    return status


def _settle(tree: MergedTree, node: Node) -> None:
    """Let what the kernel has written count before a change, which could hide it."""
    if isinstance(node, FileNode):
        passthrough.settle(tree, node)


def _change(tree: MergedTree, node: Node, changes: Changes) -> os.stat_result | None:
    """Apply *changes* to an upper object; return its attributes if it is open for that."""
    with tree.object(node) as target:
        if changes.size is not None:
            keeps = changes.keeps_set_ids
            copymeta.strip_set_ids(tree, target, tree.status(node).st_mode, keeps_set_ids=keeps)
            set_size(tree, node, changes.size)
        if changes.uid is not None or changes.gid is not None:
            copymeta.set_owner(tree, target, changes.uid, changes.gid)
        if changes.mode is not None and not stat.S_ISLNK(node.kind):
            tree.upper_layer.inodes.set_mode(target, changes.mode)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            syscalls.set_times(target, changes.atime_ns, changes.mtime_ns)
        if _is_empty(changes):
            syscalls.set_times(target, tree.status(node).st_atime_ns, None)  # ctime alone
        if not isinstance(target, int):
            return None
        return tree.upper_layer.meant(os.fstat(target), target, follow=True)


def _is_empty(changes: Changes) -> bool:
    """Say whether nothing is to change but ctime.

    So comes chown(path, -1, -1), by whomever, and what is left of a write by one with
    CAP_FSETID. Neither may take set-ids away: a stranger is not allowed to, root keeps them.
    """
    return changes in (Changes(), Changes(keeps_set_ids=True))


def set_size(tree: MergedTree, node: Node, size: int) -> None:
    """Truncate or extend an upper file: by its descriptor, if there is one that may.

    A file made read-only is still written by those who made it.
    """
    opened = node.opened if isinstance(node, FileNode) else None
    if opened is not None and opened.writable:
        os.ftruncate(opened.fd, size)
        return
    with tree.object(node) as target:
        os.truncate(xattrs.path_to(target), size)


def _may_have_set_ids(
    node: Node, status: os.stat_result | None = None, *, with_times: bool = False
) -> None:
    """Let the next write look for setuid, setgid and capabilities again."""
    if isinstance(node, FileNode) and node.opened is not None:
        node.opened.may_strip = True
        passthrough.set_ids_changed(node, status, with_times=with_times)


def strip_set_ids(tree: MergedTree, node: FileNode, *, keeps_set_ids: bool = False) -> bool:
    """Take setuid, setgid and capabilities away, as any write does (write(2), chown(2)).

    With *keeps_set_ids* only capabilities. Return whether the mode was changed.
    """
    opened = node.opened
    if opened is not None and not opened.may_strip:
        return False
    mode = tree.status(node).st_mode
    with tree.object(node) as target:
        changed = copymeta.strip_set_ids(tree, target, mode, keeps_set_ids=keeps_set_ids)
    if opened is not None:
        # What one writer may keep, the next may not.
        opened.may_strip = keeps_set_ids and bool(mode & (stat.S_ISUID | stat.S_ISGID))
    return changed


def birth_time(tree: MergedTree, node: Node) -> int | None:
    """Return when the object that *node* shows was made, in ns; ``None`` where that is not kept.

    A copy in the upper was made when it was copied up, as overlayfs has it.
    """
    fd = tree.open_object(node)
    try:
        return syscalls.birth_time(fd)
    finally:
        os.close(fd)


# Extended attributes


def get_xattr(tree: MergedTree, node: Node, name: bytes) -> bytes:
    """Return the value of *name*; ENODATA where there is none, our own marks included."""
    stored = tree.layer_of(node).marks.stored(name)
    if stored is None or (name in _ACLS and not tree.acls):
        fail(errno.ENODATA)
    if name == CAPABILITY and isinstance(node, FileNode):
        opened = node.opened
        if opened is not None and not opened.may_strip:
            fail(errno.ENODATA)  # the kernel asks before the first write to each file
    with tree.object(node) as target:
        value = xattrs.value(target, stored, follow=True)
    mapping = tree.owners.mapping
    return value if mapping is None else mapping.shown_value(name, value)


def list_xattrs(tree: MergedTree, node: Node, caller: Caller) -> list[bytes]:
    """Return the names that *caller* may see: ``trusted.`` is for root."""
    marks = tree.layer_of(node).marks
    with tree.object(node) as target:
        shown = [marks.shown(name) for name in xattrs.names(target, follow=True)]
    hidden: tuple[bytes, ...] = () if caller.uid == 0 else (b"trusted.",)
    if not tree.acls:
        hidden += _ACLS
    return [name for name in shown if name is not None and not name.startswith(hidden)]


async def set_xattr(
    tree: MergedTree, node: Node, name: bytes, value: bytes, flags: int, caller: Caller
) -> None:
    """Set an attribute; waits while the object is copied up. EPERM for our own marks."""
    stored = _stored(tree, node, name)
    mapping = tree.owners.mapping
    if mapping is not None:
        value = mapping.stored_value(name, value)
    with tree.object(node) as target:
        _check_flags(target, tree.layer_of(node).marks.stored(name), flags)
    await copy_up(tree, node)
    _settle(tree, node)
    with tree.object(node) as target:
        xattrs.write(target, stored, value, flags, follow=True)
        if name == ACL_ACCESS:
            _drop_foreign_group(tree, node, target, caller)
    if name == ACL_DEFAULT:
        node.known &= ~NO_DEFAULT_ACL
    _may_have_set_ids(node)


def _stored(tree: MergedTree, node: Node, name: bytes) -> bytes:
    """Return the name in the upper layer of an attribute that is to change.

    Raises EROFS, EPERM for protected objects and marks, EOPNOTSUPP for ACLs without such.
    """
    tree.refuse_read_only()
    refuse_protected(tree, node)
    stored = tree.upper_layer.marks.stored(name)
    # On a root it would let the next mount take owners, set-id bits and devices from attributes
    # that users may write themselves.
    if stored is None or (node.ino == ROOT_ID and stored in override.NAMES):
        fail(errno.EPERM)
    if name in _ACLS and not tree.acls:
        fail(errno.EOPNOTSUPP)
    return stored


def _check_flags(target: bytes | int, stored: bytes | None, flags: int) -> None:
    """Fail before a copy-up for nothing."""
    if not flags:
        return
    try:
        present = stored is not None
        if stored is not None:
            xattrs.value(target, stored, follow=True)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ERANGE):
            raise
        present = error.errno == errno.ERANGE
    if flags & os.XATTR_CREATE and present:
        fail(errno.EEXIST)
    if flags & os.XATTR_REPLACE and not present:
        fail(errno.ENODATA)


def _drop_foreign_group(tree: MergedTree, node: Node, target: bytes | int, caller: Caller) -> None:
    """Clear setgid when the ACL was set by one who is not in the group (acl(5), chmod(2))."""
    status = tree.status(node)
    if not status.st_mode & stat.S_ISGID:
        return
    group = tree.attr(node, status).gid
    if caller.uid != 0 and group not in (caller.gid, *_supplementary_groups(caller.pid)):
        tree.upper_layer.inodes.set_mode(target, status.st_mode & ~stat.S_ISGID)


def _supplementary_groups(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Groups:"):
                    return [int(group) for group in line.split()[1:]]
    except OSError:
        return []
    return []


async def remove_xattr(tree: MergedTree, node: Node, name: bytes) -> None:
    """Remove an attribute; waits while the object is copied up. ENODATA without one."""
    stored = _stored(tree, node, name)
    below = tree.layer_of(node).marks.stored(name)
    if below is None:
        fail(errno.ENODATA)
    try:
        with tree.object(node) as target:
            xattrs.value(target, below, follow=True)
    except OSError as error:
        if error.errno == errno.ENODATA and name in _ACLS:
            return  # an ACL that says nothing beyond the mode is never missing
        raise
    await copy_up(tree, node)
    with tree.object(node) as target:
        xattrs.remove(target, stored, follow=True)
