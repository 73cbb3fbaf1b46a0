"""What a copy gets beside its data: owner, attributes, marks, times, and its place.

The owner comes first, since chown takes setuid and capabilities away; the mode comes last,
since a file that may not be written takes no ``user.*`` marks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from unionfs.layer import handles, syscalls, xattrs
from unionfs.layer.tree import opened_up
from unionfs.layer.xattrs import ACL_ACCESS, ACL_DEFAULT, CAPABILITY
from unionfs.union.nodes import NO_PROTECTION

if TYPE_CHECKING:
    from unionfs.layer.tree import Directory, Layer
    from unionfs.union.nodes import Node
    from unionfs.union.tree import MergedTree

_ACLS: Final = (ACL_ACCESS, ACL_DEFAULT)
_COPIED_FLAGS: Final = syscalls.FS_SYNC_FL | syscalls.FS_NOATIME_FL
_NO_FLAGS: Final = frozenset((errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM))


def strip_set_ids(
    tree: MergedTree, path: bytes | int, mode: int, *, keeps_set_ids: bool = False
) -> bool:
    """Take setuid, setgid and capabilities away from a regular file that has *mode*.

    So does any write, truncation and change of owner (write(2), truncate(2), chown(2)).
    With *keeps_set_ids*, for one who has CAP_FSETID, only capabilities go. Return whether
    the mode was changed.
    """
    kept = stat.S_IMODE(mode)
    if not keeps_set_ids:
        kept &= ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            # Without group execution the bit meant mandatory locking, and is kept.
            kept &= ~stat.S_ISGID
    changes = kept != stat.S_IMODE(mode)
    if changes:
        tree.upper_layer.inodes.set_mode(path, kept)
    capability = tree.upper_layer.marks.stored(CAPABILITY)
    assert capability is not None
    if xattrs.read(path, capability, follow=True) is not None:
        xattrs.remove(path, capability, follow=True)
    return changes


def set_owner(tree: MergedTree, target: bytes | int, uid: int | None, gid: int | None) -> None:
    """Set the owner; a squashed one can only be what it is shown as.

    The layer's file system takes setuid, setgid and capabilities away from all but
    directories, whoever asks and even if the owner stays the same (chown(2)).
    """
    options = tree.options
    for wanted, shown in ((uid, options.squash_to_uid), (gid, options.squash_to_gid)):
        if shown is not None and wanted not in (None, shown):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    new_uid = (
        -1 if uid is None or options.squash_to_uid is not None else tree.owners.stored_uid(uid)
    )
    new_gid = (
        -1 if gid is None or options.squash_to_gid is not None else tree.owners.stored_gid(gid)
    )
    layer = tree.upper_layer
    layer.inodes.set_owner(target, new_uid, new_gid, follow=True)
    if layer.override is not None:
        status = layer.override.applied(os.stat(target), target, follow=True)
        if not stat.S_ISDIR(status.st_mode):
            strip_set_ids(tree, target, status.st_mode)  # as a file system does


def copy_owner(
    tree: MergedTree, target: bytes | int, status: os.stat_result, own: os.stat_result
) -> None:
    """Give *target* the owner, which *own* has so far; squashed ones stay the daemon's on disk."""
    options = tree.options
    uid = own.st_uid if options.squash_to_uid is not None else status.st_uid
    gid = own.st_gid if options.squash_to_gid is not None else status.st_gid
    if (uid, gid) == (own.st_uid, own.st_gid):
        return
    try:
        inodes = tree.upper_layer.inodes
        inodes.set_owner(target, uid, gid, follow=isinstance(target, int))
    except PermissionError:
        tree.report_once(
            "cannot give copies the owner %d:%d; mount as root, or with squash_to_uid= "
            "and squash_to_gid=",
            uid,
            gid,
        )
        raise


def copy_xattrs(
    tree: MergedTree,
    layer: Layer,
    source: bytes | int,
    target: bytes | int,
    names: list[bytes] | None = None,
) -> None:
    """Copy all attributes but our marks; escaped ones of a nested overlay are not ours.

    *source* is on *layer*; *names* are its attributes', if they were just read.
    """
    upper = tree.upper_layer
    for stored in xattrs.names(source, follow=True) if names is None else names:
        name = layer.marks.shown(stored)
        if name is None or (upper.override is not None and name in _ACLS):
            continue
        value = xattrs.read(source, stored, follow=True)
        kept = upper.marks.stored(name)
        if value is None or kept is None:
            continue
        try:
            xattrs.write(target, kept, value, follow=isinstance(target, int))
        except OSError as error:
            required = tree.acls and name in _ACLS
            if error.errno != errno.EOPNOTSUPP or required or name.startswith(b"security."):
                raise


def mark_origin(
    tree: MergedTree, target: bytes | int, layer: Layer, place: tuple[int, bytes]
) -> None:
    """Record on the copy *target* which object of *layer* it was copied from."""
    origin = handles.encode(*place, layer.uuid)
    if origin is not None:
        _write_mark(tree, target, xattrs.ORIGIN, origin)


def _write_mark(
    tree: MergedTree, target: bytes | int, mark: bytes, value: bytes, *, follow: bool = False
) -> None:
    """Set a mark that can be done without where it cannot be.

    ``user.*`` marks cannot be on symlinks and devices, nor on another's sticky directory.
    """
    if isinstance(target, int):
        with contextlib.suppress(PermissionError):
            tree.marks.write(target, mark, value, follow=True)
            return
        target, follow = xattrs.fd_path(target), True
    try:
        tree.upper_layer.write_mark(target, mark, value, follow=follow)
    except PermissionError:
        if not tree.marks.user:
            raise


def mark_protected(tree: MergedTree, node: Node, target: bytes | int, source_fd: int) -> None:
    """Record that the lower object of *node* is immutable or append-only: flags are not copied.

    Only regular files and directories have such flags.
    """
    if node.known & NO_PROTECTION:
        return
    bits = syscalls.protected_attributes(source_fd)
    letters = (b"a" if bits & syscalls.STATX_ATTR_APPEND else b"") + (
        b"i" if bits & syscalls.STATX_ATTR_IMMUTABLE else b""
    )
    if letters:
        _write_mark(tree, target, xattrs.PROTATTR, letters)


def copy_flags(source_fd: int, target_fd: int) -> None:
    """Copy the inode flags that overlayfs copies (``OVL_COPY_FS_FLAGS_MASK``): S and A.

    Where one of the two file systems has no such flags, or not for us, there are none.
    """
    wanted = _flags_of(source_fd)
    if wanted:
        _add_flags(target_fd, wanted)


def _flags_of(fd: int) -> int:
    try:
        return syscalls.inode_flags(fd) & _COPIED_FLAGS
    except OSError as error:
        if error.errno not in _NO_FLAGS:
            raise
        return 0


def _add_flags(fd: int, wanted: int) -> None:
    try:
        syscalls.set_inode_flags(fd, syscalls.inode_flags(fd) | wanted)
    except OSError as error:
        if error.errno not in _NO_FLAGS:
            raise


def copy_directory_flags(source: bytes, target: bytes) -> None:
    """Copy the inode flags of a directory; one that we may not read keeps them to itself."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        source_fd = os.open(source, flags)
    except PermissionError:
        return
    try:
        wanted = _flags_of(source_fd)
    finally:
        os.close(source_fd)
    if wanted:
        target_fd = os.open(target, flags)
        try:
            _add_flags(target_fd, wanted)
        finally:
            os.close(target_fd)


def movable_mode(tree: MergedTree, mode: int) -> int:
    """Return the permissions that a temporary of this mode has until it is in place.

    Moving a directory changes its ``..``, for which an unprivileged daemon needs to be
    allowed to write to it.
    """
    bound = tree.marks.user and tree.upper_layer.override is None
    needed = stat.S_IWUSR if bound and stat.S_ISDIR(mode) else 0
    return stat.S_IMODE(mode) | needed


def set_final_mode(tree: MergedTree, directory: Directory, name: bytes, mode: int) -> None:
    """Take back what ``movable_mode`` granted."""
    if movable_mode(tree, mode) != stat.S_IMODE(mode):
        with contextlib.suppress(OSError):  # it is in place already
            os.chmod(xattrs.entry_path(directory.fd(), name), stat.S_IMODE(mode))


def mark_impure(tree: MergedTree, directory: Directory) -> None:
    """Mark an upper directory as one that holds entries with an origin."""
    if not directory.impure:
        _write_mark(tree, xattrs.fd_path(directory.fd()), xattrs.IMPURE, b"y", follow=True)
        directory.impure = bool(tree.sieves.lifetime)


def move_into(tree: MergedTree, temporary: bytes, directory: Directory, name: bytes) -> None:
    """Move a complete temporary to *name*; the directory's times show no change."""
    mark_impure(tree, directory)
    directory.added(name)
    fd = directory.fd()
    status = os.fstat(fd)
    flags = syscalls.RENAME_NOREPLACE
    try:
        syscalls.renameat2(tree.work.fd, temporary, fd, name, flags)
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
        with writable(directory):
            syscalls.renameat2(tree.work.fd, temporary, fd, name, flags)
    _restore_times(fd, status)


@contextlib.contextmanager
def unchanged_times(directory: Directory) -> Iterator[None]:
    """Give *directory* its times back after a change that users do not see.

    The change itself is done by then, so that a failure here is nobody's failure: the
    directory may be another's, and then its times are not ours to set.
    """
    status = os.fstat(directory.fd())
    yield
    _restore_times(directory.fd(), status)


def _restore_times(fd: int, status: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        syscalls.set_times(fd, status.st_atime_ns, status.st_mtime_ns)


@contextlib.contextmanager
def writable(directory: Directory) -> Iterator[None]:
    """Let an unprivileged daemon add a copy to a directory that its user may not write to."""
    path = xattrs.fd_path(directory.fd())
    if os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        yield
        return
    with opened_up(path, 0o300, follow=True):
        yield
