"""System calls that the standard library lacks: the only user of ctypes.

Every function takes descriptors and bytes names and raises ``OSError`` with the
kernel's errno. Numbers and structures are from the man pages named at each function.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import sys
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_SYMLINK_NOFOLLOW: Final = 0x100

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

# mount(2), umount2(2).
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MS_SLAVE: Final = 0x80000
MNT_DETACH: Final = 2

# unshare(2), setns(2).
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000

MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NOATIME: Final = 0x10

UTIME_OMIT: Final = 0x3FFFFFFE

STATX_ATTR_IMMUTABLE: Final = 0x10
STATX_ATTR_APPEND: Final = 0x20
_STATX_BTIME: Final = 0x800

# Inode flags and their extended form (ioctl_iflags(2), ioctl_xfs_fsgetxattr(2)).
FS_SYNC_FL: Final = 0x08
FS_IMMUTABLE_FL: Final = 0x10
FS_APPEND_FL: Final = 0x20
FS_NOATIME_FL: Final = 0x80
FS_XFLAG_IMMUTABLE: Final = 0x08
FS_XFLAG_APPEND: Final = 0x10

# What fallocate(2) can do beside reserving.
FALLOC_KEEP_SIZE: Final = 0x01

# One number on every architecture: calls added since Linux 5.1 share the table.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442

_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_AT_RECURSIVE: Final = 0x8000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_FICLONE: Final = 0x40049409
#: Requests for a file system's UUID: number, what to ask with, where the answer stands.
_UUID_QUESTIONS: Final = (
    (0x80111500, bytes(17), 1),  # FS_IOC_GETFSUUID
    (0x8008662C, (16).to_bytes(4, sys.byteorder) + bytes(20), 8),  # EXT4_IOC_GETFSUUID
    (0x80705864, bytes(112), 64),  # XFS_IOC_FSGEOMETRY_V1
    (0x8400941F, bytes(1024), 16),  # BTRFS_IOC_FS_INFO
)
_MAX_HANDLE_SIZE: Final = 128
_LONG: Final = ctypes.sizeof(ctypes.c_long) << 16  # the size that these two are coded with
_FS_IOC_GETFLAGS: Final = 0x80006601 | _LONG
_FS_IOC_SETFLAGS: Final = 0x40006602 | _LONG
_FS_IOC_FSGETXATTR: Final = 0x801C581F
_FSXATTR_SIZE: Final = 28
_FS_IOC_FIEMAP: Final = 0xC020660B
#: ``struct fiemap``: start, length, flags, extents found, room for so many.
_FIEMAP: Final = struct.Struct("=QQIII4x")
#: ``struct fiemap_extent``: where in the file, length, flags.
_EXTENT: Final = struct.Struct("=Q8xQ16xI12x")
_FIEMAP_COUNT: Final = 64
_FIEMAP_SYNC: Final = 1
_FIEMAP_LAST: Final = 0x01
_NOT_OWN: Final = 0x2000 | 0x0200  # FIEMAP_EXTENT_SHARED, FIEMAP_EXTENT_DATA_INLINE
_FS_IOC_MEASURE_VERITY: Final = 0xC0046686
_VERITY_DIGEST: Final = struct.Struct("=HH")  # algorithm, size; then the digest


_TIMESPECS: Final = struct.Struct("@4l")
_StatxBuffer = ctypes.c_char * 256


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _MAX_HANDLE_SIZE),
    )


def _check(result: int, name: bytes | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


def openat2(dirfd: int, path: bytes, flags: int, resolve: int) -> int:
    """Open *path* beneath *dirfd* with the RESOLVE_* bits in *resolve* (openat2(2))."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    return _check(_syscall(_SYS_OPENAT2, dirfd, path, ctypes.byref(how), ctypes.sizeof(how)), path)


def renameat2(old_dirfd: int, old: bytes, new_dirfd: int, new: bytes, flags: int) -> None:
    """Rename with RENAME_* *flags* (renameat2(2))."""
    _check(_libc.renameat2(old_dirfd, old, new_dirfd, new, flags), old)


def getxattr(path: bytes, name: bytes, size: int, *, follow: bool) -> bytes:
    """Return the value of the xattr *name* by a buffer of *size* bytes; ERANGE for a longer one."""
    call = _libc.getxattr if follow else _libc.lgetxattr
    buffer = ctypes.create_string_buffer(size)
    length = _check(call(path, name, buffer, ctypes.c_size_t(size)), path)
    return buffer.raw[:length]


def open_tree_clone(dirfd: int, path: bytes, *, recursive: bool = False) -> int:
    """Return a private copy of the mount below *path*, a directory or a file.

    What is mounted inside it comes along where it is *recursive*. Raises EPERM without
    CAP_SYS_ADMIN, EINVAL where locked mounts lie inside and are left out (open_tree(2)).
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (0 if path else AT_EMPTY_PATH)
    flags |= _AT_RECURSIVE if recursive else 0
    return _check(_syscall(_SYS_OPEN_TREE, dirfd, path, flags), path)


def move_mount(mount_fd: int, target: bytes) -> None:
    """Put the mount *mount_fd*, which is nowhere yet, on *target* (move_mount(2))."""
    where = (mount_fd, b"", AT_FDCWD, target, _MOVE_MOUNT_F_EMPTY_PATH)
    _check(_syscall(_SYS_MOVE_MOUNT, *where), target)


def mount_setattr(
    mount_fd: int, attributes: int, *, cleared: int = 0, recursive: bool = False
) -> None:
    """Set MOUNT_ATTR_* *attributes* on the mount *mount_fd*, and clear others (mount_setattr(2)).

    Raises EBUSY for MOUNT_ATTR_RDONLY while a file is open for writing there.
    """
    change = _MountAttr(attributes, cleared, 0, 0)
    if attributes & MOUNT_ATTR_NOATIME:
        change.attr_clr = 0x70  # MOUNT_ATTR__ATIME: the old mode must be named to be replaced
    size = ctypes.sizeof(change)
    flags = AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _check(_syscall(_SYS_MOUNT_SETATTR, mount_fd, b"", flags, ctypes.byref(change), size))


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes) -> None:
    """Mount *source*, a file system of type *kind*, on *target* (mount(2))."""
    _check(_libc.mount(source, target, kind, ctypes.c_ulong(flags), data), target)


def umount(target: bytes, flags: int) -> None:
    """Unmount what is topmost on *target* (umount2(2))."""
    _check(_libc.umount2(target, flags), target)


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """Make *new_root* the root of this mount namespace, and move the old one (pivot_root(2))."""
    _check(_libc.pivot_root(new_root, put_old), new_root)


def unshare(kinds: int) -> None:
    """Give this process namespaces of its own: the CLONE_NEW* in *kinds* (unshare(2)).

    Raises EPERM without CAP_SYS_ADMIN, ENOSPC at the machine's limit, EINVAL in a program
    of several threads for those of users and mounts.
    """
    _check(_libc.unshare(kinds))


def setns(namespace_fd: int, kind: int) -> None:
    """Move this process to the namespace *namespace_fd*, of CLONE_NEW* *kind* (setns(2))."""
    _check(_libc.setns(namespace_fd, kind))


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ended (PR_SET_CHILD_SUBREAPER(2))."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def die_with_parent(number: int) -> None:
    """Have *number* sent to this process when its parent ends; 0 is none (PR_SET_PDEATHSIG(2))."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0))


def name_to_handle(dirfd: int, name: bytes) -> tuple[int, bytes]:
    """Return type and bytes of the file handle of *name*, which is not followed.

    Raises EOPNOTSUPP where the file system has no handles (name_to_handle_at(2)).
    """
    handle = _FileHandle(_MAX_HANDLE_SIZE, 0)
    mount_id = ctypes.c_int()
    flags = 0 if name else AT_EMPTY_PATH
    _check(
        _libc.name_to_handle_at(dirfd, name, ctypes.byref(handle), ctypes.byref(mount_id), flags),
        name,
    )
    return handle.handle_type, bytes(handle.f_handle[: handle.handle_bytes])


def open_by_handle(mount_fd: int, handle_type: int, handle: bytes) -> int:
    """Open what *handle* names, O_PATH; ESTALE when it is gone (open_by_handle_at(2))."""
    raw = _FileHandle(len(handle), handle_type)
    ctypes.memmove(raw.f_handle, handle, len(handle))
    return _check(_libc.open_by_handle_at(mount_fd, ctypes.byref(raw), os.O_PATH | os.O_CLOEXEC))


def set_times(target: bytes | int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set the times of what the path or descriptor *target* leads to (utimensat(2)).

    ``None`` leaves one as it is. A descriptor may be O_PATH.
    """
    atime = (0, UTIME_OMIT) if atime_ns is None else divmod(atime_ns, 1_000_000_000)
    mtime = (0, UTIME_OMIT) if mtime_ns is None else divmod(mtime_ns, 1_000_000_000)
    times = _TIMESPECS.pack(*atime, *mtime)
    if isinstance(target, int):
        _check(_libc.utimensat(target, b"", times, AT_EMPTY_PATH))
    else:
        _check(_libc.utimensat(AT_FDCWD, target, times, 0), target)


def clone_file(target_fd: int, source_fd: int) -> None:
    """Make *target_fd* share all extents of *source_fd* (ioctl_ficlone(2))."""
    fcntl.ioctl(target_fd, _FICLONE, source_fd)


def unshared_bytes(fd: int) -> int:
    """Return the bytes on disk of the file *fd* that no other file shares (FIEMAP).

    See Documentation/filesystems/fiemap.rst. Data that lie in the inode's own block count not.
    Raises EOPNOTSUPP where extents are not told.
    """
    size = start = 0
    while True:
        buffer = bytearray(_FIEMAP.size + _FIEMAP_COUNT * _EXTENT.size)
        _FIEMAP.pack_into(buffer, 0, start, (1 << 64) - 1 - start, _FIEMAP_SYNC, 0, _FIEMAP_COUNT)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        count = _FIEMAP.unpack_from(buffer)[3]
        for index in range(count):
            offset = _FIEMAP.size + index * _EXTENT.size
            logical, length, flags = _EXTENT.unpack_from(buffer, offset)
            if not flags & _NOT_OWN:
                size += length
            if flags & _FIEMAP_LAST:
                return size
            start = logical + length
        if count == 0:
            return size


def file_system_uuid(fd: int) -> bytes:
    """Return the 16 bytes that overlayfs puts into an origin, zeros where there are none.

    Linux 6.9 and newer tell them for every file system, older ones by the ioctls of ext4,
    xfs and btrfs.
    """
    for request, question, offset in _UUID_QUESTIONS:
        buffer = bytearray(question)
        try:
            fcntl.ioctl(fd, request, buffer)
        except OSError:
            continue
        return bytes(buffer[offset : offset + 16])
    return bytes(16)


def _statx(fd: int, mask: int, name: bytes = b"") -> bytes:
    buffer = _StatxBuffer()
    _check(_libc.statx(fd, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, mask, buffer), name)
    return buffer.raw


def protected_attributes(fd: int, name: bytes = b"") -> int:
    """Return the STATX_ATTR_IMMUTABLE and STATX_ATTR_APPEND bits of *fd* or *name* in it.

    See statx(2); *name* is not followed.
    """
    attributes = int.from_bytes(_statx(fd, 0, name)[8:16], sys.byteorder)
    return attributes & (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND)


def birth_time(fd: int) -> int | None:
    """Return when *fd* was made in ns, ``None`` where that is not kept (statx(2))."""
    found = _statx(fd, _STATX_BTIME)
    (mask,) = struct.unpack_from("=I", found)
    if not mask & _STATX_BTIME:
        return None
    seconds, nanoseconds = struct.unpack_from("=qI", found, 80)
    return int(seconds * 1_000_000_000 + nanoseconds)


def inode_flags(fd: int) -> int:
    """Return the FS_*_FL flags of *fd*; ENOTTY where there are none (ioctl_iflags(2))."""
    buffer = bytearray(4)
    fcntl.ioctl(fd, _FS_IOC_GETFLAGS, buffer)
    return int.from_bytes(buffer, sys.byteorder)


def set_inode_flags(fd: int, flags: int) -> None:
    """Set the FS_*_FL flags of *fd* (ioctl_iflags(2)).

    Raises EPERM to others than the owner, EOPNOTSUPP for flags that the file system lacks.
    """
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, flags.to_bytes(4, sys.byteorder))


def extended_flags(fd: int) -> bytes:
    """Return the ``struct fsxattr`` of *fd*; ENOTTY where there is none."""
    buffer = bytearray(_FSXATTR_SIZE)
    fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, buffer)
    return bytes(buffer)


def measure_verity(fd: int, size: int) -> bytes:
    """Return the ``struct fsverity_digest`` of *fd*, its digest of at most *size* bytes.

    Raises ENODATA for a file without, EOVERFLOW for a longer digest, ENOTTY or EOPNOTSUPP
    where the file system has no fs-verity (Documentation/filesystems/fsverity.rst).
    """
    buffer = bytearray(_VERITY_DIGEST.pack(0, size) + bytes(size))
    fcntl.ioctl(fd, _FS_IOC_MEASURE_VERITY, buffer)
    _, found = _VERITY_DIGEST.unpack_from(buffer)
    return bytes(buffer[: _VERITY_DIGEST.size + found])


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Reserve a range, or do to it what the FALLOC_FL_* bits in *mode* say (fallocate(2))."""
    arguments = (ctypes.c_int64(offset), ctypes.c_int64(length))
    _check(_libc.fallocate64(fd, mode, *arguments))


def syncfs(fd: int) -> None:
    """Bring a file system to the disk; EIO when something was lost since *fd* was opened."""
    _check(_libc.syncfs(fd))
