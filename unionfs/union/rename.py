"""Rename in all its kinds: one renameat2 in the upper layer, prepared so that it suffices.

Everything that is to move is copied up first. A directory that has lower layers gets a
redirect mark, so that they are found from its new place; one that has none is made
opaque where it would otherwise merge. What would show again at the old name is covered in
the same step: by RENAME_WHITEOUT, or by swapping with a whiteout that was at the new name
(the kernel's fs/overlayfs/dir.c, ovl_rename).

Waits while files are copied up, and when all is done for the whiteouts of a directory that
was replaced. The kernel holds both directories locked for the length
of a rename, so names in them do not change meanwhile; only where the parents lie may,
and that is looked up after the wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from unionfs.layer import syscalls, xattrs
from unionfs.layer.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from unionfs.layer.tree import Directory
from unionfs.union import whiteouts
from unionfs.union.copydir import copy_up_directory
from unionfs.union.copymeta import copy_xattrs, mark_impure
from unionfs.union.copyup import copy_up, settled
from unionfs.union.emptiness import is_empty
from unionfs.union.indexed import counts_names, record_count
from unionfs.union.lookup import child
from unionfs.union.nodes import DirNode, FileNode, Node
from unionfs.union.protect import refuse_lost_names, refuse_new_names, refuse_protected
from unionfs.union.remove import is_plain_upper, lose_directory, lose_name
from unionfs.union.tree import MergedTree, fail
from unionfs.waiting import blocking

#: Longer redirects could not be followed by their path (limits.h, PATH_MAX).
_REDIRECT_MAX = 4095


class _Place:
    """A name in a directory, and the node that shows there."""

    __slots__ = ("name", "node", "parent")

    def __init__(self, parent: DirNode, name: bytes, node: Node | None) -> None:
        self.parent = parent
        self.name = name
        self.node = node


async def rename(
    tree: MergedTree, parent: DirNode, name: bytes, new_parent: DirNode, new_name: bytes, flags: int
) -> None:
    """Move *name* to *new_name*.

    Raises EROFS, EINVAL for flags other than NOREPLACE and EXCHANGE, ENOENT, EEXIST,
    ENOTEMPTY, EPERM for a whiteout's name, and EXDEV for a directory with lower layers
    when ``redirect_dir=off``.
    """
    tree.refuse_read_only()
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
        fail(errno.EINVAL)
    if whiteouts.is_reserved(new_name):
        fail(errno.EPERM, new_name)
    old = _Place(parent, name, child(tree, parent, name))
    new = _Place(new_parent, new_name, child(tree, new_parent, new_name))
    if old.node is None or (flags & RENAME_EXCHANGE and new.node is None):
        fail(errno.ENOENT, name)
    if new.node is not None and flags & RENAME_NOREPLACE:
        fail(errno.EEXIST, new_name)
    if old.node is new.node:
        return
    exchange = bool(flags & RENAME_EXCHANGE)
    _refuse(tree, old, new, exchange=exchange)
    if isinstance(new.node, DirNode) and not exchange and not await is_empty(new.node):
        fail(errno.ENOTEMPTY, new.name)
    await _copy_up_both(tree, old, new, exchange=exchange)
    if exchange:
        _exchange(tree, old, new)
    else:
        detached: list[bytes] = []
        try:
            _move(tree, old, new, detached)
        finally:
            for temporary in detached:
                await blocking(tree.work.discard, temporary)


def _refuse(tree: MergedTree, old: _Place, new: _Place, *, exchange: bool) -> None:
    # Moving a file of the upper changes nothing else before, whereas directories get marks.
    at_once = isinstance(old.node, FileNode) and all(
        place.node is None or is_plain_upper(place.node) for place in (old, new)
    )
    for place in (old, new):
        if place.node is None:
            refuse_new_names(tree, place.parent, at_once=at_once)
            continue
        refuse_protected(tree, place.node, at_once=at_once)
        if place is old or place.parent is not old.parent:
            refuse_lost_names(tree, place.parent, at_once=at_once)
    if not tree.options.redirect_dir:
        for place in (old, new) if exchange else (old,):
            if isinstance(place.node, DirNode) and place.node.lowers:
                fail(errno.EXDEV)
    if exchange or new.node is None:
        return
    if isinstance(new.node, DirNode) != isinstance(old.node, DirNode):
        fail(errno.EISDIR if isinstance(new.node, DirNode) else errno.ENOTDIR)


async def _copy_up_both(tree: MergedTree, old: _Place, new: _Place, *, exchange: bool) -> None:
    assert old.node is not None
    await copy_up(tree, old.node, going=(old.parent, old.name))
    if new.node is not None:
        await settled(new.node)
        # A file that is replaced keeps its other names, so their count must be kept, too.
        if exchange or (isinstance(new.node, FileNode) and counts_names(tree, new.node)):
            await copy_up(tree, new.node, going=(new.parent, new.name))
    copy_up_directory(tree, old.parent)
    copy_up_directory(tree, new.parent)


# Moving to a name, over what may be there


def _move(tree: MergedTree, old: _Place, new: _Place, detached: list[bytes]) -> None:
    """Move; *detached* is told of a temporary that is left, to be discarded in any case."""
    source, target = tree.upper_of(old.parent), tree.upper_of(new.parent)
    assert old.node is not None
    whiteouts.replace_whiteout_name(target, new.name)
    covers = tree.shows_below(old.parent, old.name)
    _make_movable(tree, old, new)
    if isinstance(new.node, DirNode):
        _clear(tree, new.node, target, new.name, detached)
    if new.node is not None:
        tree.pin(new.node)
        if isinstance(new.node, FileNode):
            record_count(tree, new.node)
    _rename_upper(tree, (source, old.name), (target, new.name), whiteout=covers)
    if isinstance(new.node, FileNode):
        lose_name(tree, new.node, new.parent, new.name)
    elif isinstance(new.node, DirNode):
        lose_directory(tree, new.node, new.parent, new.name)
    old.parent.children.pop(old.name, None)
    _arrive(old.node, old, new)


def _rename_upper(
    tree: MergedTree, old: tuple[Directory, bytes], new: tuple[Directory, bytes], *, whiteout: bool
) -> None:
    """Rename in the upper layer; what is at the new name is replaced, be it a whiteout."""
    old_fd, new_fd = old[0].fd(), new[0].fd()
    source, target = old[0].lstat(old[1]), new[0].lstat(new[1])
    new[0].added(new[1])
    if source is None:
        fail(errno.ESTALE)  # a layer was changed below us
    if target is not None and stat.S_ISDIR(source.st_mode) > stat.S_ISDIR(target.st_mode):
        # A directory cannot replace a whiteout, so they swap: it may well be needed there.
        syscalls.renameat2(old_fd, old[1], new_fd, new[1], RENAME_EXCHANGE)
        if not whiteout:
            with contextlib.suppress(OSError):
                # The rename is done; a whiteout that hides nothing does no harm.
                os.unlink(old[1], dir_fd=old_fd)
        return
    if not whiteout:
        os.rename(old[1], new[1], src_dir_fd=old_fd, dst_dir_fd=new_fd)
        return
    try:
        syscalls.renameat2(old_fd, old[1], new_fd, new[1], RENAME_WHITEOUT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):
            raise
        _rename_without_whiteout(tree, old, new, replaces=target is not None)


def _rename_without_whiteout(
    tree: MergedTree, old: tuple[Directory, bytes], new: tuple[Directory, bytes], *, replaces: bool
) -> None:
    """Do what RENAME_WHITEOUT does where the file system cannot: put a whiteout, then swap."""
    work = tree.work
    temporary = whiteouts.prepare_whiteout(work, old[0])
    try:
        if not replaces:
            os.rename(temporary, new[1], src_dir_fd=work.fd, dst_dir_fd=new[0].fd())
            syscalls.renameat2(old[0].fd(), old[1], new[0].fd(), new[1], RENAME_EXCHANGE)
            return
        # Between the two steps both objects are there, if under each other's names.
        syscalls.renameat2(old[0].fd(), old[1], new[0].fd(), new[1], RENAME_EXCHANGE)
        try:
            syscalls.renameat2(work.fd, temporary, old[0].fd(), old[1], RENAME_EXCHANGE)
        except BaseException:
            syscalls.renameat2(old[0].fd(), old[1], new[0].fd(), new[1], RENAME_EXCHANGE)
            raise
    finally:
        work.discard(temporary)


def _clear(
    tree: MergedTree, node: DirNode, directory: Directory, name: bytes, detached: list[bytes]
) -> None:
    """Make the upper part of an empty merged directory really empty, its whiteouts gone.

    An empty opaque directory takes its place first, so that nothing shows at any moment.
    """
    if node.upper is None or not any(True for _ in node.upper.scan()):
        return
    work = tree.work
    temporary = work.new_name()
    status = node.upper.status()
    os.mkdir(temporary, 0o700, dir_fd=work.fd)
    detached.append(temporary)  # the new one should this fail, else the old one
    path = work.path_of(temporary)
    inodes = tree.upper_layer.inodes
    inodes.set_owner(path, status.st_uid, status.st_gid, follow=False)
    copy_xattrs(tree, node.upper.layer, xattrs.fd_path(node.upper.fd()), path)
    whiteouts.set_opaque(tree.marks, path)
    inodes.set_mode(path, status.st_mode)
    syscalls.set_times(path, status.st_atime_ns, status.st_mtime_ns)
    syscalls.renameat2(work.fd, temporary, directory.fd(), name, RENAME_EXCHANGE)
    directory.layer.descriptors.drop(node.upper)
    node.upper.impure = False
    node.lowers = ()  # what the whiteouts hid stays hidden, should the rename fail
    node.redirect = None
    node.changed()


# Swapping two names


def _exchange(tree: MergedTree, old: _Place, new: _Place) -> None:
    source, target = tree.upper_of(old.parent), tree.upper_of(new.parent)
    assert old.node is not None
    assert new.node is not None
    whiteouts.replace_whiteout_name(source, old.name)
    whiteouts.replace_whiteout_name(target, new.name)
    _make_movable(tree, old, new)
    _make_movable(tree, new, old)
    syscalls.renameat2(source.fd(), old.name, target.fd(), new.name, RENAME_EXCHANGE)
    _arrive(old.node, old, new)
    _arrive(new.node, new, old)


# What both need


def _make_movable(tree: MergedTree, old: _Place, new: _Place) -> None:
    """Mark the object at *old* so that it shows the same things at *new*."""
    node = old.node
    if isinstance(node, DirNode):
        if node.lowers:
            _set_redirect(tree, node, same_directory=old.parent is new.parent)
        elif tree.shows_below(new.parent, new.name):
            path = xattrs.fd_path(tree.upper_of(node).fd())
            tree.upper_layer.write_mark(path, xattrs.OPAQUE, b"y", follow=True)
    has_origin = bool(node.lowers if isinstance(node, DirNode) else True)
    if has_origin and old.parent is not new.parent and tree.stack.lowers:
        mark_impure(tree, tree.upper_of(new.parent))


def _set_redirect(tree: MergedTree, node: DirNode, *, same_directory: bool) -> None:
    """Record where the lower layers have the directory that is about to move."""
    if node.redirect is not None and (same_directory or node.redirect.startswith(b"/")):
        return
    redirect = node.name if same_directory else lower_path(node)
    if len(redirect) > _REDIRECT_MAX:
        fail(errno.EXDEV)
    path = xattrs.fd_path(tree.upper_of(node).fd())
    tree.upper_layer.write_mark(path, xattrs.REDIRECT, redirect, follow=True)
    node.redirect = redirect


def lower_path(node: DirNode) -> bytes:
    """Return the path of *node* in the union of the lower layers, by its redirects."""
    names: list[bytes] = []
    current: DirNode | None = node
    while current is not None and current.parent is not None:
        if current.redirect is not None and current.redirect.startswith(b"/"):
            return b"/".join((current.redirect, *reversed(names)))
        names.append(current.redirect or current.name)
        current = current.parent
    return b"/" + b"/".join(reversed(names))


def _arrive(node: Node, old: _Place, new: _Place) -> None:
    """Let *node* be at *new*, in memory as it is on disk."""
    if isinstance(node, FileNode):
        node.remove_name(old.parent, old.name)
        node.add_name(new.parent, new.name)
    else:
        assert isinstance(node, DirNode)
        node.parent, node.name = new.parent, new.name
        assert node.upper is not None
        node.upper.parent, node.upper.name = new.parent.upper, new.name
    new.parent.children[new.name] = node
    old.parent.changed()
    new.parent.changed()
