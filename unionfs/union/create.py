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
from unionfs.layer.walk import remove_tree
from unionfs.union import whiteouts
from unionfs.union.copydir import copy_up_directory
from unionfs.union.copymeta import mark_impure, movable_mode, set_final_mode
from unionfs.union.copyup import copy_up
from unionfs.union.indexed import record_count
from unionfs.union.lookup import child
from unionfs.union.nodes import NO_DEFAULT_ACL, NO_METACOPY, NO_PROTATTR, DirNode, FileNode, Node
from unionfs.union.protect import refuse_new_names, refuse_protected
from unionfs.union.tree import MergedTree, fail

if TYPE_CHECKING:
    from unionfs.fuse.interface import Caller

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
#: A new object, and its attributes if they were read after its last change.
_Made = tuple[FileNode, os.stat_result | None]
_NAMELESS: Final = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC


def prepare_name(tree: MergedTree, parent: DirNode, name: bytes) -> Directory:
    """Return the upper directory that is to take the new *name*.

    Raises EROFS, EPERM for a name that is a whiteout's, EEXIST when something shows.
    """
    tree.refuse_read_only()
    if whiteouts.is_reserved(name):
        fail(errno.EPERM, name)
    if child(tree, parent, name) is not None:
        fail(errno.EEXIST, name)
    refuse_new_names(tree, parent, at_once=True)
    copy_up_directory(tree, parent)
    directory = tree.upper_of(parent)
    whiteouts.replace_whiteout_name(directory, name)
    return directory


def create_file(
    tree: MergedTree, parent: DirNode, name: bytes, mode: int, caller: Caller
) -> tuple[FileNode, int, os.stat_result]:
    """Make a regular file.

    Return its node, a descriptor open for reading and writing, and its attributes.
    """
    directory = prepare_name(tree, parent, name)
    final = _final_mode(tree, parent, name, stat.S_IFREG | mode, caller)
    if final is not None:
        fd = os.open(name, _CREATE, final[0], dir_fd=directory.fd())
        try:
            status = _made(tree, directory, name, final[1], fd)
        except BaseException:
            os.close(fd)
            raise
        return _new_file(tree, parent, name, status), fd, status
    # Where nothing need be replaced, a file without a name is given one: nothing to clean up.
    first = _first_mode(tree, mode, 0o600, caller)
    fd = -1 if directory.lstat(name) is not None else _open_nameless(tree, first)
    with contextlib.ExitStack() as opened:
        temporary = b""
        if fd < 0:
            temporary = tree.work.new_name()
            opened.callback(tree.work.discard, temporary)
            fd = os.open(temporary, _CREATE, first, dir_fd=tree.work.fd)
        opened.callback(os.close, fd)
        status = os.fstat(fd)
        path = xattrs.fd_path(fd)
        _finish(tree, directory, path, stat.S_IFREG | mode, caller, status, follow=True)
        if temporary:
            _show(tree, directory, temporary, name)
        else:
            directory.added(name)
            os.link(path, name, dst_dir_fd=directory.fd(), follow_symlinks=True)
        status = directory.layer.meant(os.fstat(fd), fd)
        opened.pop_all()
    return _new_file(tree, parent, name, status), fd, status


def _final_mode(
    tree: MergedTree, node: DirNode, name: bytes, mode: int, caller: Caller
) -> tuple[int, int] | None:
    """Return the permissions with which making *name* in *node* makes it complete at once.

    And the group that it will have. ``None`` where it needs to be prepared: there is a
    whiteout, or owner, permissions or ACLs will not be right by themselves, as they are
    for those who are who we are.
    """
    options = tree.options
    foreign = options.squash_to_uid is None and caller.uid != tree.identity.uid
    if foreign or tree.upper_layer.override is not None:
        return None
    permissions = mode & ~caller.umask & 0o7777
    if stat.S_ISLNK(mode):
        permissions = 0
    elif permissions & (tree.identity.umask | stat.S_ISUID | stat.S_ISGID):
        return None
    directory = tree.upper_of(node)
    if directory.lstat(name) is not None:
        return None
    parent = os.fstat(directory.fd())
    inherits_group = bool(parent.st_mode & stat.S_ISGID)
    if options.squash_to_gid is not None:
        if inherits_group:
            return None
    elif not inherits_group and caller.gid != tree.identity.gid:
        return None
    if not stat.S_ISLNK(mode) and not node.known & NO_DEFAULT_ACL:
        path = xattrs.fd_path(directory.fd())
        if xattrs.read(path, xattrs.ACL_DEFAULT, follow=True) is not None:
            return None
        tree.learn(node, NO_DEFAULT_ACL)
    directory.added(name)
    return permissions, parent.st_gid if inherits_group else tree.identity.gid


def _made(
    tree: MergedTree, directory: Directory, name: bytes, gid: int, fd: int = -1
) -> os.stat_result:
    """Return the attributes of an object that was made complete at once, and is open as *fd*.

    A file system may have given it another owner (``grpid``, NFS with ``root_squash``): that is put
    right, or it does not stay.
    """
    dirfd = directory.fd()
    status = os.fstat(fd) if fd >= 0 else os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    if (status.st_uid, status.st_gid) != (tree.identity.uid, gid):
        try:
            os.chown(name, tree.identity.uid, gid, dir_fd=dirfd, follow_symlinks=False)
        except BaseException:
            remove_tree(dirfd, name)
            raise
        return os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    return status


def _first_mode(tree: MergedTree, mode: int, safe: int, caller: Caller) -> int:
    """Return permissions to make an object with that may be right already: nobody sees it yet.

    An unprivileged daemon needs *safe* ones to write to it.
    """
    return safe if tree.marks.user else mode & ~caller.umask & 0o777


def _open_nameless(tree: MergedTree, mode: int, flags: int = 0) -> int:
    """Make a file without a name beside the temporaries; -1 where that cannot be."""
    try:
        return os.open(b".", _NAMELESS | flags, mode, dir_fd=tree.work.fd)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
        return -1


def create_nameless(
    tree: MergedTree, parent: DirNode, mode: int, flags: int, caller: Caller
) -> tuple[FileNode, int, os.stat_result]:
    """Make a regular file without a name; return as ``create_file`` does.

    It gets what a file in *parent* would, which is not copied up; ``link`` may name it
    unless O_EXCL is in *flags*. Nothing of it is left after a crash. Raises EROFS, EPERM in
    an immutable directory, EOPNOTSUPP where the upper file system has no O_TMPFILE.
    """
    tree.refuse_read_only()
    refuse_new_names(tree, parent)
    exclusive = flags & os.O_EXCL
    fd = _open_nameless(tree, _first_mode(tree, mode, 0o600, caller), exclusive)
    if fd < 0:
        fail(errno.EOPNOTSUPP)
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, fd)
        status = os.fstat(fd)
        path = xattrs.fd_path(fd)
        _finish(tree, parent.top(), path, stat.S_IFREG | mode, caller, status, follow=True)
        status = tree.upper_layer.meant(os.fstat(fd), fd)
        pinned = os.open(path, os.O_PATH | os.O_CLOEXEC)
        opened.pop_all()
    real = tree.nodes.numbers.real(status)
    node = FileNode(tree.nodes.number_for(real, real), stat.S_IFREG, None, b"")
    node.upper = node.removed = True
    node.linkable = not exclusive
    node.pin(pinned)
    tree.nodes.add(node)
    return node, fd, status


def create_special(
    tree: MergedTree, parent: DirNode, name: bytes, mode: int, rdev: int, caller: Caller
) -> _Made:
    """Make a file, fifo, socket or device of the type in *mode*."""
    if stat.S_ISCHR(mode) and rdev == 0:
        fail(errno.EPERM, name)  # it would be a whiteout

    def make(temporary: bytes) -> None:
        kind = stat.S_IFMT(mode)
        tree.upper_layer.inodes.make_special(tree.work.fd, temporary, kind | 0o600, rdev)

    directory = prepare_name(tree, parent, name)
    return _create(tree, parent, directory, name, make, mode, caller)


def create_symlink(
    tree: MergedTree, parent: DirNode, name: bytes, target: bytes, caller: Caller
) -> _Made:
    """Make a symbolic link to *target*."""
    directory = prepare_name(tree, parent, name)
    final = _final_mode(tree, parent, name, stat.S_IFLNK, caller)
    if final is not None:
        os.symlink(target, name, dir_fd=directory.fd())
        status = _made(tree, directory, name, final[1])
        return _new_file(tree, parent, name, status), status

    def make(temporary: bytes) -> None:
        os.symlink(target, temporary, dir_fd=tree.work.fd)

    return _create(tree, parent, directory, name, make, stat.S_IFLNK | 0o777, caller)


def _create(
    tree: MergedTree,
    parent: DirNode,
    directory: Directory,
    name: bytes,
    make: Callable[[bytes], None],
    mode: int,
    caller: Caller,
) -> _Made:
    with tree.work.temporary() as temporary:
        make(temporary)
        path = tree.work.path_of(temporary)
        status = directory.layer.meant(os.lstat(path), path)
        _finish(tree, directory, path, mode, caller, status)
        _show(tree, directory, temporary, name)
    return _new_file(tree, parent, name, status), None


def create_directory(
    tree: MergedTree, parent: DirNode, name: bytes, mode: int, caller: Caller
) -> tuple[DirNode, os.stat_result | None]:
    """Make a directory; one that is made where one was deleted is opaque."""
    directory = prepare_name(tree, parent, name)
    shows_below = tree.shows_below(parent, name)
    if not shows_below:
        ready = _final_mode(tree, parent, name, stat.S_IFDIR | mode, caller)
        if ready is not None:
            os.mkdir(name, ready[0], dir_fd=directory.fd())
            status = _made(tree, directory, name, ready[1])
            return _new_directory(tree, parent, name, directory, status), status
    with tree.work.temporary() as temporary:
        first = _first_mode(tree, mode, 0o700, caller)
        os.mkdir(temporary, first, dir_fd=tree.work.fd)
        path = tree.work.path_of(temporary)
        whiteout = directory.lstat(name) is not None
        if whiteout or shows_below:
            whiteouts.set_opaque(tree.marks, path)
        status = os.lstat(path)
        final = _finish(tree, directory, path, stat.S_IFDIR | mode, caller, status)
        if whiteout:
            flags = syscalls.RENAME_EXCHANGE
            syscalls.renameat2(tree.work.fd, temporary, directory.fd(), name, flags)
        else:
            _show(tree, directory, temporary, name)
    if whiteout:
        tree.work.discard(temporary)
    set_final_mode(tree, directory, name, final)
    return _new_directory(tree, parent, name, directory, status), None


def _finish(
    tree: MergedTree,
    directory: Directory,
    path: bytes,
    mode: int,
    caller: Caller,
    own: os.stat_result,
    *,
    follow: bool = False,
) -> int:
    """Give a new object owner, mode and inherited ACLs; return the mode it is to have.

    *own* are the attributes that it has so far, *follow* is for a *path* that is a
    descriptor's own (``xattrs.fd_path``).
    """
    parent = directory.status()
    inherits_group = parent.st_mode & stat.S_ISGID
    gid = parent.st_gid if inherits_group else caller.gid
    if inherits_group and stat.S_ISDIR(mode):
        mode |= stat.S_ISGID
    changes = _set_owner(tree, path, caller.uid, gid, own, follow=follow)
    if not stat.S_ISLNK(mode):
        inherits = False
        if tree.acls:
            mode, inherits = acl.pass_on(directory.fd(), path, mode, caller.umask, follow=follow)
        else:
            mode &= ~caller.umask
        wanted = movable_mode(tree, mode)
        if directory.layer.override or changes or inherits or wanted != stat.S_IMODE(own.st_mode):
            directory.layer.inodes.set_mode(path, wanted)
    return mode


def _set_owner(
    tree: MergedTree, path: bytes, uid: int, gid: int, own: os.stat_result, *, follow: bool
) -> bool:
    """Give a new object its owner; return whether that was a change."""
    if tree.options.squash_to_uid is not None:
        uid = own.st_uid
    if tree.options.squash_to_gid is not None:
        gid = own.st_gid
    if (uid, gid) == (own.st_uid, own.st_gid):
        return False
    tree.upper_layer.inodes.set_owner(path, uid, gid, follow=follow)
    return True


def _show(tree: MergedTree, directory: Directory, temporary: bytes, name: bytes) -> None:
    """Move a complete temporary to *name*, over a whiteout if there is one."""
    directory.added(name)
    os.rename(temporary, name, src_dir_fd=tree.work.fd, dst_dir_fd=directory.fd())


def _new_file(tree: MergedTree, parent: DirNode, name: bytes, status: os.stat_result) -> FileNode:
    real = tree.nodes.numbers.real(status)
    ino = tree.nodes.number_for(real, real)
    node = FileNode(ino, stat.S_IFMT(status.st_mode), parent, name)
    node.upper = True
    node.known = NO_METACOPY | NO_PROTATTR
    tree.nodes.add(node, real)
    _take_name(parent, name, node)
    return node


def _new_directory(
    tree: MergedTree, parent: DirNode, name: bytes, directory: Directory, status: os.stat_result
) -> DirNode:
    real = tree.nodes.numbers.real(status)
    ino = tree.nodes.number_for(real, real)
    upper = Directory(directory.layer, directory, name)
    upper.names = tree.sieves.empty()
    node = DirNode(ino, parent, name, upper, ())
    node.known = NO_PROTATTR
    tree.nodes.add(node, real)
    _take_name(parent, name, node)
    return node


def _take_name(parent: DirNode, name: bytes, node: Node) -> None:
    parent.children[name] = node
    parent.changed()


async def link(tree: MergedTree, node: FileNode, parent: DirNode, name: bytes) -> None:
    """Give *node* the further *name*. Waits while the object is copied up.

    Raises ENOENT for one whose last name is gone, or that was made never to have any.
    """
    tree.refuse_read_only()
    refuse_protected(tree, node)
    await copy_up(tree, node)
    if node.removed and not node.linkable:
        fail(errno.ENOENT)
    directory = prepare_name(tree, parent, name)
    record_count(tree, node)
    if node.lower is not None or node.index is not None:
        mark_impure(tree, directory)
    with tree.object(node) as source:
        _link(tree, xattrs.path_to(source), directory, name)
    if node.removed:
        node.linkable = False
        tree.nodes.appeared(node, tree.nodes.numbers.real(os.fstat(node.pinned)))
        node.unpin()
    node.add_name(parent, name)
    _take_name(parent, name, node)


def _link(tree: MergedTree, source: bytes, directory: Directory, name: bytes) -> None:
    """Link what *source* leads to, over a whiteout if there is one."""
    if directory.lstat(name) is None:
        directory.added(name)
        # In one step: a file without a name is given one once, and never again.
        os.link(source, name, dst_dir_fd=directory.fd(), follow_symlinks=True)
        return
    with tree.work.temporary() as temporary:
        os.link(source, temporary, dst_dir_fd=tree.work.fd, follow_symlinks=True)
        _show(tree, directory, temporary, name)
