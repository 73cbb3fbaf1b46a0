"""Copy-up: a lower object becomes an upper one, on its first change.

A temporary in ``work/`` gets data, owner, attributes, mode and times, in this order, is
synced, and is moved into place by one rename: a failure before it leaves the upper layer
as it was. Only then does the node change.

Waiting: copying and syncing a regular file's data runs in a thread. Whoever else wants
the same file copied waits for that (``Node.copying``); requests that remove or rename
it call ``settled`` first. After the wait a file may have lost its last name: its copy
then lives on without one.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import Final, NamedTuple

from unionfs.layer import syscalls, xattrs
from unionfs.layer.copydata import copy_data
from unionfs.union.copydir import copy_up_directory
from unionfs.union.copymeta import (
    copy_flags,
    copy_owner,
    copy_xattrs,
    mark_origin,
    mark_protected,
    move_into,
    strip_set_ids,
)
from unionfs.union.indexed import link_up, move_into_index
from unionfs.union.nodes import NO_METACOPY, DirNode, FileNode, Node
from unionfs.union.tree import MergedTree, fail
from unionfs.waiting import blocking

#: Copies of up to this size (bytes) are made at once: a hop to a thread costs more.
_SMALL: Final = 128 * 1024


async def settled(node: Node) -> None:
    """Wait until *node* is not being copied up."""
    while node.copying is not None:
        await blocking(node.copying.wait)


async def copy_up(
    tree: MergedTree,
    node: Node,
    *,
    size: int | None = None,
    keeps_set_ids: bool = False,
    going: tuple[DirNode, bytes] | None = None,
) -> bool:
    """Bring *node* into the upper layer, with all directories above it.

    *size* is the size in bytes that a regular file is to get, so that no more is copied;
    whether the copy has it already is returned: a truncation is complete before its one
    rename, or is still to be done. It takes set-ids away unless *keeps_set_ids*.
    *going* is the one name that matters where a name, not the object, is about to change.
    Raises EROFS in a read-only union, EPERM for an owner that cannot be set, and what
    the disk says (ENOSPC, EIO); the upper layer is unchanged then.
    """
    await settled(node)
    if isinstance(node, DirNode):
        copy_up_directory(tree, node)
        return False
    assert isinstance(node, FileNode)
    if node.upper:
        if node.loose:
            link_up(tree, node, going)
        return False
    node.copying = threading.Event()
    try:
        cut = None if size is None else _Truncation(size, keeps_set_ids)
        return await _copy_up_file(tree, node, cut, going)
    finally:
        node.copying.set()
        node.copying = None


class _Truncation(NamedTuple):
    """What truncate(2) is to do to a copy in the making."""

    size: int
    keeps_set_ids: bool


async def _copy_up_file(
    tree: MergedTree,
    node: FileNode,
    cut: _Truncation | None,
    going: tuple[DirNode, bytes] | None,
) -> bool:
    name = tree.work.new_name()
    status = tree.status(node)
    if node.parent is not None and status.st_nlink == 1 and not node.removed:
        copy_up_directory(tree, node.parent)
    if status.st_nlink > 1:
        cut = None  # linking its names may still fail, and then nothing must be lost
    opened: int | None = None
    try:
        if stat.S_ISREG(node.kind):
            opened = await _copy_regular(tree, node, name, status, cut)
        else:
            _copy_special(tree, node, name, status)
        real = tree.nodes.numbers.real(os.lstat(tree.work.path_of(name)))
        _put_in_place(tree, node, name, status)
    except BaseException:
        tree.work.discard(name)
        if opened is not None:
            os.close(opened)
        raise
    # The copy is the object now, whatever else may fail.
    node.upper = True
    if opened is not None:
        _hand_over(node, opened)
    if not node.removed:
        node.unpin()
        tree.nodes.stands_for(node, real)
    if node.index is not None:
        link_up(tree, node, going)
    return cut is not None


def _put_in_place(tree: MergedTree, node: FileNode, name: bytes, status: os.stat_result) -> None:
    """Move the complete temporary *name* to where *node* will find it."""
    if node.removed or node.parent is None:
        dirfd = tree.work.fd
        node.pin(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd))
        os.unlink(name, dir_fd=dirfd)
    elif status.st_nlink > 1:
        move_into_index(tree, node, name, status.st_nlink)
    else:
        move_into(tree, name, tree.upper_of(node.parent), node.name)
        tree.tell_changed(node.parent)


def open_lower(tree: MergedTree, node: FileNode) -> int:
    """Open the lower data of *node* for reading; the caller closes the descriptor."""
    refuse_metacopy(tree, node)
    try:
        return tree.open_object(node, os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK)
    except PermissionError:
        return tree.open_object(node, os.O_RDONLY | os.O_NONBLOCK)


def refuse_metacopy(tree: MergedTree, node: FileNode) -> None:
    """Raise EPERM if the data of *node* is elsewhere (``overlay.metacopy``).

    So does the kernel's overlayfs when that feature is off.
    """
    if node.known & NO_METACOPY:
        return
    layer = tree.layer_of(node)
    try:
        if node.pinned >= 0:
            mark = layer.read_mark(xattrs.fd_path(node.pinned), xattrs.METACOPY, follow=True)
        else:
            mark = layer.read_mark(xattrs.entry_path(*tree.location(node)), xattrs.METACOPY)
    except PermissionError:
        return  # a lower file that we may not read: opening it says so
    if mark is None:
        tree.learn(node, NO_METACOPY)
    else:
        tree.report_once("a layer has files copied up by metacopy=on, which is not supported")
        fail(errno.EPERM)


async def _copy_regular(
    tree: MergedTree,
    node: FileNode,
    name: bytes,
    status: os.stat_result,
    cut: _Truncation | None,
) -> int:
    """Make a complete copy as the temporary *name*; return it open for reading and writing."""
    wanted = status.st_size if cut is None else min(cut.size, status.st_size)
    source = open_lower(tree, node)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        target = os.open(name, flags, 0o600, dir_fd=tree.work.fd)
        try:
            if wanted <= _SMALL:
                copy_data(source, target, wanted)
            else:
                await blocking(copy_data, source, target, wanted)
            path = tree.work.path_of(name)
            copy_flags(source, target)
            _copy_metadata(tree, node, path, status)
            if cut is not None:
                _truncate_copy(target, path, cut, status)
            if not tree.work.volatile:
                await blocking(os.fsync, target)
        except BaseException:
            os.close(target)
            raise
        return target
    finally:
        os.close(source)


def _truncate_copy(target: int, path: bytes, cut: _Truncation, status: os.stat_result) -> None:
    """Do to a copy in the making what truncate(2) does: size, times and set-id bits."""
    os.ftruncate(target, cut.size)
    os.utime(path)
    syscalls.set_times(path, status.st_atime_ns, None)
    strip_set_ids(path, status.st_mode, keeps_set_ids=cut.keeps_set_ids)


def _copy_special(tree: MergedTree, node: FileNode, name: bytes, status: os.stat_result) -> None:
    work = tree.work
    dirfd, lower_name = tree.location(node)
    if stat.S_ISLNK(node.kind):
        os.symlink(os.readlink(lower_name, dir_fd=dirfd), name, dir_fd=work.fd)
    else:
        os.mknod(name, node.kind | 0o600, status.st_rdev, dir_fd=work.fd)
    _copy_metadata(tree, node, work.path_of(name), status)


def _copy_metadata(tree: MergedTree, node: FileNode, path: bytes, status: os.stat_result) -> None:
    """Give the temporary at *path* what the lower object has beside its data.

    The owner comes first, since chown takes setuid and capabilities away; marks come
    before the mode, since a file that may not be written takes no ``user.*`` ones.
    """
    copy_owner(tree, path, status)
    with tree.object(node) as source:
        copy_xattrs(tree, source, path)
        if stat.S_ISREG(node.kind):
            mark_protected(tree, path, source)
    if node.lower is not None:
        directory, lower_name = node.lower
        mark_origin(tree, path, directory.layer, (directory.fd(), lower_name))
    if not stat.S_ISLNK(node.kind):
        os.chmod(path, stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _hand_over(node: FileNode, fd: int) -> None:
    """Let those who have the lower file open go on with its copy."""
    if node.opened is None:
        os.close(fd)
        return
    node.opened.become(fd)
