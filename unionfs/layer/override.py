"""Owners, modes and types that a layer keeps in an extended attribute instead of its inodes.

So do engines where files cannot have other owners (``force_mask`` of containers-storage.conf(5),
homes on NFS): each file and directory belongs to who runs the engine and carries only the mask,
and the attribute says what it is. Its value is ``UID:GID:MODE[:TYPE]``, the mode octal, the
type one of ``file``, ``dir``, ``symlink``, ``pipe``, ``socket``, ``block-MAJOR-MINOR`` and
``char-MAJOR-MINOR`` (containers/storage, pkg/idtools). What is not a regular file nor a
directory is then a regular file on the disk, but for symbolic links: these are such on the disk,
and where the attribute cannot be on them have their owner in the inode.

A layer is kept so when its root has the attribute, by one of three names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from typing import Final, NamedTuple

from unionfs.layer import xattrs
from unionfs.layer.xattrs import Marks

CONTAINERS: Final = b"user.containers.override_stat"
PRIVILEGED: Final = b"security.fuseoverlayfs.override_stat"
#: What fuse-overlayfs before 1.14 wrote for ``xattr_permissions=2``.
OLDER: Final = b"user.fuseoverlayfs.override_stat"
#: Whose root has one of them is kept so: the first counts.
NAMES: Final = (PRIVILEGED, CONTAINERS, OLDER)
#: By the value of ``xattr_permissions``.
FORMS: Final = {1: PRIVILEGED, 2: CONTAINERS}

_VALUE: Final = re.compile(
    rb"""
    (?P<uid> \d{1,10} ) : (?P<gid> \d{1,10} ) : (?P<mode> [0-7]{1,7} )
    (?: : (?P<type> [a-z]+ ) (?: [-:]? (?P<major> \d{1,8} ) [-:] (?P<minor> \d{1,8} ) )? )?
    """,
    re.VERBOSE,
)
#: What a stat_result has beside its ten numbers, but for the device that it is.
_MORE: Final = (
    *("st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns"),
    *("st_blksize", "st_blocks"),
)
_TYPES: Final = {
    b"file": stat.S_IFREG,
    b"dir": stat.S_IFDIR,
    b"symlink": stat.S_IFLNK,
    b"pipe": stat.S_IFIFO,
    b"socket": stat.S_IFSOCK,
    b"block": stat.S_IFBLK,
    b"char": stat.S_IFCHR,
}
_NAMES: Final = {kind: name for name, kind in _TYPES.items()}
#: What a regular file on the disk may stand for.
_SPECIAL: Final = frozenset((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR))


_MAX_ID: Final = 2**32 - 2
#: Linux has 12 bits for the one and 20 for the other.
_MAX_MAJOR: Final = 2**12 - 1
_MAX_MINOR: Final = 2**20 - 1


class Recorded(NamedTuple):
    """What the attribute says of an object: *mode* with its type, *rdev* of a device."""

    uid: int
    gid: int
    mode: int
    rdev: int = 0

    def packed(self) -> bytes:
        """Return the attribute's value, as containers/storage writes it."""
        kind = stat.S_IFMT(self.mode)
        name = _NAMES[kind]
        if kind in (stat.S_IFBLK, stat.S_IFCHR):
            name += b"-%d-%d" % (os.major(self.rdev), os.minor(self.rdev))
        return b"%d:%d:%04o:%s" % (self.uid, self.gid, stat.S_IMODE(self.mode), name)


def parse(value: bytes, status: os.stat_result) -> Recorded:
    """Read an attribute's *value*, of an object that has *status* on the disk.

    Without a type, or with one that the object cannot stand for, it is what it is on the disk.
    Raises EINVAL for what is no such value.
    """
    match = _VALUE.fullmatch(value)
    kind = None if match is None else _TYPES.get(match["type"] or b"file")
    if match is None or kind is None:
        raise OSError(errno.EINVAL, "malformed override_stat", value)
    uid, gid, major, minor = (int(match[name] or 0) for name in ("uid", "gid", "major", "minor"))
    if max(uid, gid) > _MAX_ID or major > _MAX_MAJOR or minor > _MAX_MINOR:
        raise OSError(errno.EINVAL, "numbers too large in override_stat", value)
    rdev = os.makedev(major, minor)
    if not (kind in _SPECIAL and stat.S_ISREG(status.st_mode)):
        kind, rdev = stat.S_IFMT(status.st_mode), status.st_rdev
    # Older ones wrote the type into the mode, too.
    permissions = int(match["mode"], 8) & 0o7777
    return Recorded(uid, gid, kind | permissions, rdev)


class Inodes:
    """Owners, modes and types where they belong: what most layers have."""

    __slots__ = ()

    def set_mode(self, target: bytes | int, mode: int) -> None:
        """Give what *target* leads to, no symbolic link, the permissions of *mode*."""
        os.chmod(target, stat.S_IMODE(mode))

    def set_owner(self, target: bytes | int, uid: int, gid: int, *, follow: bool) -> None:
        """Give what *target* leads to another owner; -1 is the one it has."""
        os.chown(target, uid, gid, follow_symlinks=follow)

    def make_special(self, dirfd: int, name: bytes, mode: int, rdev: int) -> None:
        """Make a device, fifo or socket, whatever *mode* has the type of."""
        os.mknod(name, mode, rdev, dir_fd=dirfd)


class Override:
    """Where one layer keeps owners and modes: in the attribute *name*.

    Changes are made as those of `Inodes`.
    """

    __slots__ = ("_mask", "_plain_only", "name")

    def __init__(self, name: bytes, mask: int) -> None:
        self.name = name
        #: The permissions that files and directories carry themselves.
        self._mask = mask | 0o700
        # user.* cannot be on anything else (xattr(7)).
        self._plain_only = name != PRIVILEGED

    @classmethod
    def of_layer(cls, root_fd: int, form: bytes | None = None) -> Override | None:
        """Return how the layer of *root_fd* keeps owners, ``None`` in its inodes.

        *form* is what is asked for where the root does not tell.
        """
        has = xattrs.names(xattrs.fd_path(root_fd), follow=True)
        form = next((name for name in NAMES if name in has), form)
        return None if form is None else cls(form, os.fstat(root_fd).st_mode & 0o777)

    def begin(self, root_fd: int) -> None:
        """Record what the root of an upper layer is, if it is not recorded yet."""
        path = xattrs.fd_path(root_fd)
        if xattrs.read(path, self.name, follow=True) is None:
            self._write(path, _of(os.fstat(root_fd)), follow=True)

    def applied(
        self, status: os.stat_result, target: bytes | int, *, follow: bool = False
    ) -> os.stat_result:
        """Return *status* of the object that *target* leads to, as the layer means it."""
        recorded = self._read(target, status, follow=follow)
        if recorded is None:
            return status
        _, inode, device, links, _, _, *rest = status
        plain = (recorded.mode, inode, device, links, recorded.uid, recorded.gid, *rest)
        more = {name: getattr(status, name) for name in _MORE}
        return os.stat_result(plain, {**more, "st_rdev": recorded.rdev})

    def _read(
        self, target: bytes | int, status: os.stat_result, *, follow: bool
    ) -> Recorded | None:
        if self._plain_only and not _is_plain(status):
            return None
        follow = follow or isinstance(target, int)
        value = xattrs.read(target, self.name, follow=follow)
        if value is None and self.name == CONTAINERS:
            # Made by an older fuse-overlayfs, in a layer that an engine has begun.
            value = xattrs.read(target, OLDER, follow=follow)
        return None if value is None else parse(value, status)

    def set_mode(self, target: bytes | int, mode: int) -> None:
        """Record the permissions of *mode*; see `Inodes`."""
        self._change(target, mode=stat.S_IMODE(mode), follow=True)

    def set_owner(self, target: bytes | int, uid: int, gid: int, *, follow: bool) -> None:
        """Record another owner; see `Inodes`."""
        self._change(target, uid=uid, gid=gid, follow=follow)

    def _change(
        self, target: bytes | int, *, uid: int = -1, gid: int = -1, mode: int = -1, follow: bool
    ) -> None:
        """Record what is not -1."""
        status = os.stat(target, follow_symlinks=follow or isinstance(target, int))
        if self._plain_only and not _is_plain(status):
            _change_inode(target, uid, gid, mode, follow=follow)
            return
        before = self._read(target, status, follow=follow) or _of(status)
        after = Recorded(
            before.uid if uid < 0 else uid,
            before.gid if gid < 0 else gid,
            before.mode if mode < 0 else stat.S_IFMT(before.mode) | mode,
            before.rdev,
        )
        self._write(target, after, follow=follow)
        if _is_plain(status) and stat.S_IMODE(status.st_mode) != self._mask:
            os.chmod(target, self._mask)

    def make_special(self, dirfd: int, name: bytes, mode: int, rdev: int) -> None:
        """Make a regular file that stands for it; see `Inodes`."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=dirfd)
        try:
            status = os.fstat(fd)
            self._write(fd, Recorded(status.st_uid, status.st_gid, mode, rdev), follow=True)
        finally:
            os.close(fd)

    def _write(self, target: bytes | int, recorded: Recorded, *, follow: bool) -> None:
        follow = follow or isinstance(target, int)
        xattrs.write(target, self.name, recorded.packed(), follow=follow)


def _of(status: os.stat_result) -> Recorded:
    """Return what would be recorded of an object that is what it is on the disk."""
    return Recorded(status.st_uid, status.st_gid, status.st_mode, status.st_rdev)


def _change_inode(target: bytes | int, uid: int, gid: int, mode: int, *, follow: bool) -> None:
    """Change what cannot have the attribute: a symbolic link, or a device that really is one.

    An owner that cannot be given is left as it is: who unpacks an archive gives one to each link.
    """
    if mode >= 0:
        os.chmod(target, mode)
    else:
        with contextlib.suppress(PermissionError):
            os.chown(target, uid, gid, follow_symlinks=follow)


def _is_plain(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)


class OverrideMarks(Marks):
    """The names of attributes in a layer that keeps owners in one: users do not see that.

    With the engines' form, names that the layer cannot have for users (``security.*``, and
    marks of unions, which would be obeyed) are kept under a prefix.
    """

    __slots__ = ("_prefixed", "_record")

    _PREFIX: Final = b"user.containers.override_"
    _KEPT: Final = (b"security.", b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")
    _NAME_MAX: Final = 255

    def __init__(self, override: Override, *, user: bool) -> None:
        super().__init__(user=user)
        self._record = override.name
        self._prefixed = override.name == CONTAINERS

    def stored(self, name: bytes) -> bytes | None:
        """Return the name on disk, ``None`` also for one that would be too long."""
        if not self._prefixed:
            return None if name == self._record else super().stored(name)
        if name.startswith(self._PREFIX):
            return None
        if not name.startswith(self._KEPT):
            return super().stored(name)
        stored = self._PREFIX + name
        return stored if len(stored) <= self._NAME_MAX else None

    def shown(self, stored: bytes) -> bytes | None:
        """Return the name that users see, ``None`` also for the layer's own."""
        if not self._prefixed:
            return None if stored == self._record else super().shown(stored)
        if stored.startswith(self._PREFIX):
            name = stored[len(self._PREFIX) :]
            return name if name.startswith(self._KEPT) else None
        return None if stored.startswith(self._KEPT) else stored
