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

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import trio

from unionfs.layer import handles, syscalls, xattrs
from unionfs.layer.copydata import copy_data
from unionfs.layer.tree import Directory
from unionfs.layer.xattrs import ACL_ACCESS, ACL_DEFAULT
from unionfs.union.links import record_links, record_links_of_lower
from unionfs.union.nodes import DirNode, FileNode, Node
from unionfs.union.tree import MergedTree, fail

if TYPE_CHECKING:
    from unionfs.layer.tree import Layer

#: Copies of up to this size (bytes) are made at once: a hop to a thread costs more.
_SMALL: Final = 128 * 1024
#: Attributes that must arrive, whatever the upper file system says.
_REQUIRED: Final = (ACL_ACCESS, ACL_DEFAULT)


async def settled(node: Node) -> None:
    """Wait until *node* is not being copied up."""
    while node.copying is not None:
        await node.copying.wait()


async def copy_up(
    tree: MergedTree,
    node: Node,
    *,
    size: int | None = None,
    going: tuple[DirNode, bytes] | None = None,
) -> None:
    """Bring *node* into the upper layer, with all directories above it.

    *size* is how much of a regular file's data is wanted, in bytes; ``None`` is all.
    *going* is the one name that matters where a name, not the object, is about to change.
    Raises EROFS in a read-only union, EPERM for an owner that cannot be set, and what
    the disk says (ENOSPC, EIO); the upper layer is unchanged then.
    """
    await settled(node)
    if isinstance(node, DirNode):
        copy_up_directory(tree, node)
        return
    assert isinstance(node, FileNode)
    if node.upper:
        if node.loose:
            _link_up(tree, node, going)
        return
    if node.parent is not None and not node.removed:
        copy_up_directory(tree, node.parent)
    node.copying = trio.Event()
    try:
        await _copy_up_file(tree, node, size, going)
    finally:
        node.copying.set()
        node.copying = None


def copy_up_directory(tree: MergedTree, node: DirNode) -> None:
    """Bring a directory into the upper layer, those above it first. Does not wait."""
    missing = []
    above: DirNode | None = node
    while above is not None and above.upper is None:
        missing.append(above)
        above = above.parent
    for directory in reversed(missing):
        _copy_up_one_directory(tree, directory)


def _copy_up_one_directory(tree: MergedTree, node: DirNode) -> None:
    work = tree.work
    parent = node.parent
    if node.removed or parent is None:
        fail(errno.ENOENT)
    source = node.lowers[0]
    status = os.fstat(source.fd())
    name = work.new_name()
    os.mkdir(name, 0o700, dir_fd=work.fd)
    try:
        path = work.path_of(name)
        _copy_owner(tree, path, status)
        _copy_xattrs(tree, xattrs.fd_path(source.fd()), path)
        _mark_origin(tree, path, source.layer, _place(source))
        _mark_protected(tree, path, xattrs.fd_path(source.fd()))
        os.chmod(path, stat.S_IMODE(status.st_mode))
        syscalls.set_times(path, status.st_atime_ns, status.st_mtime_ns)
        _move_into(tree, name, tree.upper_of(parent), node.name)
    except BaseException:
        work.discard(name)
        raise
    node.upper = Directory(tree.upper_layer, parent.upper, node.name)
    tree.nodes.stands_for(node, tree.nodes.numbers.real(tree.status(node)))


def _place(directory: Directory) -> tuple[int, bytes]:
    if directory.parent is None:
        return directory.fd(), b""
    return directory.parent.fd(), directory.name


async def _copy_up_file(
    tree: MergedTree, node: FileNode, size: int | None, going: tuple[DirNode, bytes] | None
) -> None:
    work = tree.work
    name = work.new_name()
    status = tree.status(node)
    opened: int | None = None
    try:
        if stat.S_ISREG(node.kind):
            opened = await _copy_regular(tree, node, name, status, size)
        else:
            _copy_special(tree, node, name, status)
        _publish(tree, node, name, status, going)
    except BaseException:
        work.discard(name)
        if opened is not None:
            os.close(opened)
        raise
    if opened is not None:
        _hand_over(node, opened)


async def _copy_regular(
    tree: MergedTree, node: FileNode, name: bytes, status: os.stat_result, size: int | None
) -> int:
    """Make a complete copy as the temporary *name*; return it open for reading and writing."""
    wanted = status.st_size if size is None else min(size, status.st_size)
    source = open_lower(tree, node)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        target = os.open(name, flags, 0o600, dir_fd=tree.work.fd)
        try:
            if wanted <= _SMALL:
                copy_data(source, target, wanted)
            else:
                await trio.to_thread.run_sync(copy_data, source, target, wanted)
            _copy_metadata(tree, node, tree.work.path_of(name), status)
            if not tree.work.volatile:
                await trio.to_thread.run_sync(os.fsync, target)
        except BaseException:
            os.close(target)
            raise
        return target
    finally:
        os.close(source)


def open_lower(tree: MergedTree, node: FileNode) -> int:
    """Open the lower data of *node* for reading; the caller closes the descriptor.

    Raises EPERM for a file whose data is elsewhere (``overlay.metacopy``), as the
    kernel's overlayfs does when that feature is off.
    """
    try:
        fd = tree.open_object(node, os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK)
    except PermissionError:
        fd = tree.open_object(node, os.O_RDONLY | os.O_NONBLOCK)
    refuse_metacopy(tree, fd)
    return fd


def refuse_metacopy(tree: MergedTree, fd: int) -> None:
    """Close *fd* and raise EPERM if it holds only the metadata of a file."""
    try:
        if tree.marks.read(xattrs.fd_path(fd), xattrs.METACOPY, follow=True) is None:
            return
        tree.report_once("a layer has files copied up by metacopy=on, which is not supported")
        fail(errno.EPERM)
    except BaseException:
        os.close(fd)
        raise


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
    _copy_owner(tree, path, status)
    with tree.object(node) as source:
        _copy_xattrs(tree, source, path)
        if stat.S_ISREG(node.kind):
            _mark_protected(tree, path, source)
    if node.lower is not None:
        directory, lower_name = node.lower
        _mark_origin(tree, path, directory.layer, (directory.fd(), lower_name))
    if not stat.S_ISLNK(node.kind):
        os.chmod(path, stat.S_IMODE(status.st_mode))
    _copy_times(path, status)


def _copy_times(path: bytes, status: os.stat_result) -> None:
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(path, ns=times, follow_symlinks=False)


def _copy_owner(tree: MergedTree, path: bytes, status: os.stat_result) -> None:
    """Give *path* the owner; squashed owners stay the daemon's own on disk."""
    own = os.lstat(path)
    options = tree.options
    uid = own.st_uid if options.squash_to_uid is not None else status.st_uid
    gid = own.st_gid if options.squash_to_gid is not None else status.st_gid
    if (uid, gid) == (own.st_uid, own.st_gid):
        return
    try:
        os.chown(path, uid, gid, follow_symlinks=False)
    except PermissionError:
        tree.report_once(
            "cannot give copies the owner %d:%d; mount as root, or with squash_to_uid= "
            "and squash_to_gid=",
            uid,
            gid,
        )
        raise


def _copy_xattrs(tree: MergedTree, source: bytes, target: bytes) -> None:
    """Copy all attributes but our marks; escaped ones of a nested overlay are not ours."""
    for name in xattrs.names(source, follow=True):
        if tree.marks.shown(name) is None:
            continue
        value = xattrs.read(source, name, follow=True)
        if value is None:
            continue
        try:
            xattrs.write(target, name, value)
        except OSError as error:
            optional = name not in _REQUIRED and not name.startswith(b"security.")
            if error.errno != errno.EOPNOTSUPP or not optional:
                raise


def _mark_origin(tree: MergedTree, path: bytes, layer: Layer, place: tuple[int, bytes]) -> None:
    origin = handles.encode(*place, layer.uuid)
    if origin is not None:
        _write_mark(tree, path, xattrs.ORIGIN, origin)


def _write_mark(
    tree: MergedTree, path: bytes, mark: bytes, value: bytes, *, follow: bool = False
) -> None:
    """Set a mark that can be done without where it cannot be.

    ``user.*`` marks cannot be on symlinks and devices, nor on another's sticky directory.
    """
    try:
        tree.marks.write(path, mark, value, follow=follow)
    except PermissionError:
        if not tree.marks.user:
            raise


def _mark_protected(tree: MergedTree, path: bytes, source: bytes) -> None:
    """Record that the lower object is immutable or append-only: flags are not copied.

    Only regular files and directories have such flags.
    """
    fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
    try:
        bits = syscalls.protected_attributes(fd)
    finally:
        os.close(fd)
    letters = (b"a" if bits & syscalls.STATX_ATTR_APPEND else b"") + (
        b"i" if bits & syscalls.STATX_ATTR_IMMUTABLE else b""
    )
    if letters:
        _write_mark(tree, path, xattrs.PROTATTR, letters)


def mark_impure(tree: MergedTree, directory: Directory) -> None:
    """Mark an upper directory as one that holds entries with an origin."""
    _write_mark(tree, xattrs.fd_path(directory.fd()), xattrs.IMPURE, b"y", follow=True)


def _move_into(tree: MergedTree, temporary: bytes, directory: Directory, name: bytes) -> None:
    """Move a complete temporary to *name*; the directory's times show no change."""
    mark_impure(tree, directory)
    with unchanged_times(directory):
        syscalls.renameat2(tree.work.fd, temporary, directory.fd(), name)


@contextlib.contextmanager
def unchanged_times(directory: Directory) -> Iterator[None]:
    """Give *directory* its times back after a change that users do not see."""
    status = os.fstat(directory.fd())
    yield
    path = xattrs.fd_path(directory.fd())
    syscalls.set_times(path, status.st_atime_ns, status.st_mtime_ns)


def _publish(
    tree: MergedTree,
    node: FileNode,
    name: bytes,
    status: os.stat_result,
    going: tuple[DirNode, bytes] | None,
) -> None:
    """Put the complete temporary in place and let the node be it."""
    work = tree.work
    parent = node.parent
    if node.removed or parent is None:
        node.pin(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work.fd))
        os.unlink(name, dir_fd=work.fd)
        node.upper = True
        return
    real = tree.nodes.numbers.real(os.lstat(work.path_of(name)))
    if status.st_nlink > 1:
        _publish_index(tree, node, name, status.st_nlink)
        node.upper = node.loose = True
        _link_up(tree, node, going)
    else:
        _move_into(tree, name, tree.upper_of(parent), node.name)
    node.upper = True
    node.unpin()
    tree.nodes.stands_for(node, real)


def _publish_index(tree: MergedTree, node: FileNode, name: bytes, lower_links: int) -> None:
    """Put an object of several names into the index, from where each name is linked."""
    work = tree.work
    index = tree.index_name(node)
    record_links_of_lower(tree.marks, work.path_of(name), 0)
    os.rename(name, index, src_dir_fd=work.fd, dst_dir_fd=work.index_fd)
    node.index = index
    # All names of the lower object still count; the link in the index counts for none.
    node.extra_links = lower_links - 1


def _link_up(tree: MergedTree, node: FileNode, going: tuple[DirNode, bytes] | None) -> None:
    """Link the name *going*, or all known names, of an indexed object into the upper layer.

    Whatever name a change came by, it then is there for those who do not read the index,
    and for us after an engine has emptied the work directory. Does not wait.
    """
    for parent, name in node.names() if going is None else (going,):
        _link_up_name(tree, node, parent, name)
    node.loose = going is not None


def record_count(tree: MergedTree, node: FileNode) -> None:
    """Write down how many names *node* has, before one comes or goes."""
    if node.index is not None:
        record_links(tree.marks, tree.index_path(node.index), node.extra_links)


def counts_names(tree: MergedTree, node: FileNode) -> bool:
    """Say whether *node* has further names below, so that it must be upper to lose one."""
    return node.index is not None or (not node.upper and tree.status(node).st_nlink > 1)


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
        record_links_of_lower(tree.marks, tree.index_path(node.index), difference)
    mark_impure(tree, directory)
    with unchanged_times(directory):
        os.link(
            node.index,
            name,
            src_dir_fd=work.index_fd,
            dst_dir_fd=directory.fd(),
            follow_symlinks=False,
        )
    node.extra_links -= 1


def _hand_over(node: FileNode, fd: int) -> None:
    """Let those who have the lower file open go on with its copy."""
    if node.opened is None:
        os.close(fd)
        return
    os.close(node.opened.fd)
    node.opened.fd = fd
    node.opened.writable = True
