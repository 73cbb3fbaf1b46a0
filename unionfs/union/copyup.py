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
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn

from unionfs.layer import syscalls, xattrs
from unionfs.layer.copydata import copy_data, copy_whole
from unionfs.union.copydir import copy_up_directory
from unionfs.union.copymeta import (
    copy_flags,
    copy_owner,
    copy_xattrs,
    mark_origin,
    mark_protected,
    move_into,
    set_owner,
    strip_set_ids,
)
from unionfs.union.indexed import link_up, move_into_index
from unionfs.union.lookup import look
from unionfs.union.nodes import NO_METACOPY, DirNode, FileNode, Node
from unionfs.union.outside import lose_all
from unionfs.union.tree import MergedTree, fail
from unionfs.waiting import blocking

if TYPE_CHECKING:
    from unionfs.fuse.interface import Changes

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
    changes: Changes | None = None,
    going: tuple[DirNode, bytes] | None = None,
) -> bool:
    """Bring *node* into the upper layer, with all directories above it.

    *changes* are what a setattr is about to do; whether the copy has them already is
    returned: they are complete before its one rename, or are still to be made. No more of
    a file is copied than it is to keep.
    *going* is the one name that matters where a name, not the object, is about to change.
    Raises EROFS in a read-only union, EPERM for an owner that cannot be set, and what
    the disk says (ENOSPC, EIO); the upper layer is unchanged then.
    """
    if node.copying is not None:
        await settled(node)
    if isinstance(node, DirNode):
        copy_up_directory(tree, node)
        return False
    assert isinstance(node, FileNode)
    if node.upper:
        if node.loose:
            link_up(tree, node, going)
        return False
    try:
        return await _copy_up_file(tree, node, changes, going)
    finally:
        if node.copying is not None:
            node.copying.set()
            node.copying = None


async def _wait(node: FileNode, call: Callable[..., object], *arguments: object) -> None:
    """Make a call that takes long for the copy of *node*; whoever wants it waits."""
    if node.copying is None:
        node.copying = threading.Event()
    await blocking(call, *arguments)


def _status_now(tree: MergedTree, node: FileNode) -> os.stat_result:
    """Return the attributes of *node*, without its names where others took these below us."""
    if node.parent is not None and not tree.freshness.holds(node):
        look(tree, node.parent, node.name)
    status = tree.status(node)
    if status.st_nlink == 0:
        lose_all(tree, node)
    return status


async def _copy_up_file(
    tree: MergedTree,
    node: FileNode,
    changes: Changes | None,
    going: tuple[DirNode, bytes] | None,
) -> bool:
    name = tree.work.new_name()
    status = _status_now(tree, node)
    if node.parent is not None and status.st_nlink == 1 and not node.removed:
        copy_up_directory(tree, node.parent)
    if status.st_nlink > 1 or not stat.S_ISREG(node.kind):
        changes = None  # linking its names may still fail, and then nothing must be lost
    opened: int | None = None
    try:
        if stat.S_ISREG(node.kind):
            opened, own = await _copy_regular(tree, node, name, status, changes)
        else:
            own = _copy_special(tree, node, name, status)
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
        real = tree.nodes.numbers.real(own)
        if node.index is None:
            tree.nodes.copied(node, real)
        else:
            tree.nodes.stands_for(node, real)
    if node.index is not None:
        link_up(tree, node, going)
    return changes is not None


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


def open_lower(tree: MergedTree, node: FileNode) -> int:
    """Open the lower data of *node* for reading; the caller closes the descriptor."""
    try:
        return tree.open_object(node, os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK)
    except PermissionError:
        return tree.open_object(node, os.O_RDONLY | os.O_NONBLOCK)


def refuse_metacopy(tree: MergedTree, node: FileNode, fd: int = -1) -> None:
    """Raise EPERM if the data of *node* is elsewhere (``overlay.metacopy``).

    So does the kernel's overlayfs when that feature is off. If it is open, *fd* is cheaper.
    """
    if node.known & NO_METACOPY:
        return
    layer = tree.layer_of(node)
    try:
        if fd >= 0:
            mark = layer.read_mark(fd, xattrs.METACOPY, follow=True)
        elif node.pinned >= 0:
            mark = layer.read_mark(xattrs.fd_path(node.pinned), xattrs.METACOPY, follow=True)
        else:
            mark = layer.read_mark(xattrs.entry_path(*tree.location(node)), xattrs.METACOPY)
    except PermissionError:
        return  # a lower file that we may not read: opening it says so
    if mark is not None:
        _refuse_data(tree)
    tree.learn(node, NO_METACOPY)


def _refuse_data(tree: MergedTree) -> NoReturn:
    tree.report_once("a layer has files copied up by metacopy=on, which is not supported")
    fail(errno.EPERM)


async def _copy_regular(
    tree: MergedTree,
    node: FileNode,
    name: bytes,
    status: os.stat_result,
    changes: Changes | None,
) -> tuple[int, os.stat_result]:
    """Make a complete copy as the temporary *name*.

    Return it open for reading and writing, and its attributes as it was made.
    """
    wanted = status.st_size
    if changes is not None and changes.size is not None:
        wanted = min(changes.size, wanted)
    source = open_lower(tree, node)
    try:
        names = xattrs.names(source, follow=True)
        if tree.marks.holds(names, xattrs.METACOPY):
            _refuse_data(tree)
        if not os.path.samestat(os.fstat(source), status):
            fail(errno.ESTALE)  # replaced below us, just now
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        target = os.open(name, flags, 0o600, dir_fd=tree.work.fd)
        try:
            own = os.fstat(target)
            if wanted <= _SMALL:
                copy_whole(source, target, wanted, status, tree.work.apart)
            else:
                await _wait(node, copy_data, source, target, wanted)
            copy_flags(source, target)
            copy_owner(tree, target, status, own)
            copy_xattrs(tree, tree.layer_of(node), source, target, names)
            mark_protected(tree, node, target, source)
            if node.lower_place is not None:
                mark_origin(tree, target, node.lower_place.layer, (source, b""))
            _set_attributes(tree, target, status, changes)
            if not tree.work.volatile:
                await _wait(node, os.fsync, target)
        except BaseException:
            os.close(target)
            raise
        return target, own
    finally:
        os.close(source)


def _set_attributes(
    tree: MergedTree, target: int, status: os.stat_result, changes: Changes | None
) -> None:
    """Give a copy in the making the mode and times of what it copies, and make *changes*.

    The mode comes late, since a file that may not be written takes no ``user.*`` marks.
    """
    mode, times = status.st_mode, (status.st_atime_ns, status.st_mtime_ns)
    inodes = tree.upper_layer.inodes
    if changes is None:
        inodes.set_mode(target, mode)
        os.utime(target, ns=times)
        return
    cut = changes.size is not None
    owned = changes.uid is not None or changes.gid is not None
    if cut or owned or changes.mode is None:
        inodes.set_mode(target, mode)
    if changes.size is not None:
        os.ftruncate(target, changes.size)
        strip_set_ids(tree, target, mode, keeps_set_ids=changes.keeps_set_ids)
    if owned:
        set_owner(tree, target, changes.uid, changes.gid)
    if changes.mode is not None:
        inodes.set_mode(target, changes.mode)
    atime = times[0] if changes.atime_ns is None else changes.atime_ns
    if changes.mtime_ns is None and cut:
        syscalls.set_times(target, atime, None)
    else:
        os.utime(target, ns=(atime, times[1] if changes.mtime_ns is None else changes.mtime_ns))


def _copy_special(
    tree: MergedTree, node: FileNode, name: bytes, status: os.stat_result
) -> os.stat_result:
    """Make a copy as the temporary *name*; return its attributes as it was made."""
    work = tree.work
    dirfd, lower_name = tree.location(node)
    if stat.S_ISLNK(node.kind):
        os.symlink(os.readlink(lower_name, dir_fd=dirfd), name, dir_fd=work.fd)
    else:
        tree.upper_layer.inodes.make_special(work.fd, name, node.kind | 0o600, status.st_rdev)
    path = work.path_of(name)
    own = os.lstat(path)
    copy_owner(tree, path, status, own)
    with tree.object(node) as source:
        copy_xattrs(tree, tree.layer_of(node), source, path)
    if node.lower_place is not None:
        mark_origin(tree, path, node.lower_place.layer, (dirfd, lower_name))
    if not stat.S_ISLNK(node.kind):
        tree.upper_layer.inodes.set_mode(path, status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
    return own


def _hand_over(node: FileNode, fd: int) -> None:
    """Let those who have the lower file open go on with its copy."""
    if node.opened is None:
        os.close(fd)
        return
    node.opened.become(fd)
