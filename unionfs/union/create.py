"""New names: files, directories, devices, symbolic links, hard links.

A new object is complete, its owner included, before one rename shows it; the directory
above it is copied up first. Does not wait, but for ``link``, which may copy its object up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from unionfs.layer import acl, syscalls, xattrs
from unionfs.layer.tree import Directory
from unionfs.union import whiteouts
from unionfs.union.copydir import copy_up_directory
from unionfs.union.copymeta import mark_impure, movable_mode, set_final_mode
from unionfs.union.copyup import copy_up
from unionfs.union.indexed import record_count
from unionfs.union.nodes import DirNode, FileNode, Node
from unionfs.union.protect import refuse_new_names, refuse_protected
from unionfs.union.tree import MergedTree, fail

if TYPE_CHECKING:
    from unionfs.fuse.interface import Caller

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def prepare_name(tree: MergedTree, parent: DirNode, name: bytes) -> Directory:
    """Return the upper directory that is to take the new *name*.

    Raises EROFS, EPERM for a name that is a whiteout's, EEXIST when something shows.
    """
    tree.refuse_read_only()
    if whiteouts.is_reserved(name):
        fail(errno.EPERM, name)
    if tree.child(parent, name) is not None:
        fail(errno.EEXIST, name)
    refuse_new_names(tree, parent)
    copy_up_directory(tree, parent)
    directory = tree.upper_of(parent)
    whiteouts.replace_whiteout_name(directory, name)
    return directory


def create_file(
    tree: MergedTree, parent: DirNode, name: bytes, mode: int, caller: Caller
) -> tuple[FileNode, int]:
    """Make a regular file; return its node and a descriptor open for reading and writing."""
    directory = prepare_name(tree, parent, name)
    with tree.work.temporary() as temporary, contextlib.ExitStack() as opened:
        fd = os.open(temporary, _CREATE, 0o600, dir_fd=tree.work.fd)
        opened.callback(os.close, fd)
        _finish(tree, directory, temporary, stat.S_IFREG | mode, caller)
        status = os.fstat(fd)
        _show(tree, directory, temporary, name)
        opened.pop_all()
    return _new_file(tree, parent, name, status), fd


def create_special(
    tree: MergedTree, parent: DirNode, name: bytes, mode: int, rdev: int, caller: Caller
) -> FileNode:
    """Make a file, fifo, socket or device of the type in *mode*."""
    if stat.S_ISCHR(mode) and rdev == 0:
        fail(errno.EPERM, name)  # it would be a whiteout

    def make(temporary: bytes) -> None:
        os.mknod(temporary, stat.S_IFMT(mode) | 0o600, rdev, dir_fd=tree.work.fd)

    return _create(tree, parent, name, make, mode, caller)


def create_symlink(
    tree: MergedTree, parent: DirNode, name: bytes, target: bytes, caller: Caller
) -> FileNode:
    """Make a symbolic link to *target*."""

    def make(temporary: bytes) -> None:
        os.symlink(target, temporary, dir_fd=tree.work.fd)

    return _create(tree, parent, name, make, stat.S_IFLNK | 0o777, caller)


def _create(
    tree: MergedTree,
    parent: DirNode,
    name: bytes,
    make: Callable[[bytes], None],
    mode: int,
    caller: Caller,
) -> FileNode:
    directory = prepare_name(tree, parent, name)
    with tree.work.temporary() as temporary:
        make(temporary)
        _finish(tree, directory, temporary, mode, caller)
        status = os.lstat(tree.work.path_of(temporary))
        _show(tree, directory, temporary, name)
    return _new_file(tree, parent, name, status)


def create_directory(
    tree: MergedTree, parent: DirNode, name: bytes, mode: int, caller: Caller
) -> DirNode:
    """Make a directory; one that is made where one was deleted is opaque."""
    directory = prepare_name(tree, parent, name)
    with tree.work.temporary() as temporary:
        os.mkdir(temporary, 0o700, dir_fd=tree.work.fd)
        path = tree.work.path_of(temporary)
        whiteout = directory.lstat(name) is not None
        if whiteout or tree.shows_below(parent, name):
            whiteouts.set_opaque(tree.marks, path)
        final = _finish(tree, directory, temporary, stat.S_IFDIR | mode, caller)
        status = os.lstat(path)
        if whiteout:
            flags = syscalls.RENAME_EXCHANGE
            syscalls.renameat2(tree.work.fd, temporary, directory.fd(), name, flags)
        else:
            _show(tree, directory, temporary, name)
    if whiteout:
        tree.work.discard(temporary)
    set_final_mode(tree, directory, name, final)
    return _new_directory(tree, parent, name, directory, status)


def _finish(
    tree: MergedTree, directory: Directory, temporary: bytes, mode: int, caller: Caller
) -> int:
    """Give a temporary owner, mode and inherited ACLs; return the mode it is to have."""
    path = tree.work.path_of(temporary)
    parent = os.fstat(directory.fd())
    inherits_group = parent.st_mode & stat.S_ISGID
    gid = parent.st_gid if inherits_group else caller.gid
    if inherits_group and stat.S_ISDIR(mode):
        mode |= stat.S_ISGID
    _set_owner(tree, path, caller.uid, gid)
    if not stat.S_ISLNK(mode):
        mode = _inherit_acl(directory, path, mode, caller.umask)
        os.chmod(path, movable_mode(tree, mode))
    return mode


def _set_owner(tree: MergedTree, path: bytes, uid: int, gid: int) -> None:
    own = os.lstat(path)
    if tree.options.squash_to_uid is not None:
        uid = own.st_uid
    if tree.options.squash_to_gid is not None:
        gid = own.st_gid
    if (uid, gid) != (own.st_uid, own.st_gid):
        os.chown(path, uid, gid, follow_symlinks=False)


def _inherit_acl(directory: Directory, path: bytes, mode: int, umask: int) -> int:
    """Apply the directory's default ACL, or else the umask; return the mode."""
    default = xattrs.read(xattrs.fd_path(directory.fd()), xattrs.ACL_DEFAULT, follow=True)
    if default is None:
        return mode & ~umask
    mode, access = acl.inherit(default, mode)
    if access is not None:
        xattrs.write(path, xattrs.ACL_ACCESS, access)
    if stat.S_ISDIR(mode):
        xattrs.write(path, xattrs.ACL_DEFAULT, default)
    return mode


def _show(tree: MergedTree, directory: Directory, temporary: bytes, name: bytes) -> None:
    """Move a complete temporary to *name*, over a whiteout if there is one."""
    os.rename(temporary, name, src_dir_fd=tree.work.fd, dst_dir_fd=directory.fd())


def _new_file(tree: MergedTree, parent: DirNode, name: bytes, status: os.stat_result) -> FileNode:
    real = tree.nodes.numbers.real(status)
    ino = tree.nodes.number_for(real, real)
    node = FileNode(ino, stat.S_IFMT(status.st_mode), parent, name)
    node.upper = True
    tree.nodes.add(node, real)
    _take_name(parent, name, node)
    return node


def _new_directory(
    tree: MergedTree, parent: DirNode, name: bytes, directory: Directory, status: os.stat_result
) -> DirNode:
    real = tree.nodes.numbers.real(status)
    ino = tree.nodes.number_for(real, real)
    upper = Directory(directory.layer, directory, name)
    node = DirNode(ino, parent, name, upper, ())
    tree.nodes.add(node, real)
    _take_name(parent, name, node)
    return node


def _take_name(parent: DirNode, name: bytes, node: Node) -> None:
    parent.children[name] = node
    parent.changed()


async def link(tree: MergedTree, node: FileNode, parent: DirNode, name: bytes) -> None:
    """Give *node* the further *name*. Waits while the object is copied up."""
    tree.refuse_read_only()
    refuse_protected(tree, node)
    await copy_up(tree, node)
    if node.removed:
        fail(errno.ENOENT)
    directory = prepare_name(tree, parent, name)
    record_count(tree, node)
    if node.lower is not None or node.index is not None:
        mark_impure(tree, directory)
    with tree.work.temporary() as temporary:
        with tree.object(node) as source:
            os.link(source, temporary, dst_dir_fd=tree.work.fd, follow_symlinks=True)
        _show(tree, directory, temporary, name)
    node.add_name(parent, name)
    _take_name(parent, name, node)
