"""Extended attributes: the marks of overlayfs, and what users see in place of them.

The only user of xattr calls. An object is named by a path below ``/proc/self/fd``, which
leads to a descriptor or to a name in one without walking anything else; the last
component is never followed (``fd_path``, ``entry_path``). Where a descriptor may read, it does
itself, *follow* then being asked for.

Marks live under ``trusted.overlay.`` or, with ``userxattr``, ``user.overlay.``
(Documentation/filesystems/overlayfs.rst, "User xattr"); fuse-overlayfs writes opaque
marks under names of its own, which are read in either mode.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from unionfs.layer import syscalls

#: errno that means "this mark is not there" rather than a failure of the layer.
_ABSENT: Final = frozenset((errno.ENODATA, errno.EOPNOTSUPP))

_FOREIGN_PREFIX: Final = b"user.fuseoverlayfs."
_FOREIGN_OPAQUE: Final = b"user.fuseoverlayfs.opaque"
_ESCAPE: Final = b"overlay."

OPAQUE: Final = b"opaque"
REDIRECT: Final = b"redirect"
ORIGIN: Final = b"origin"
IMPURE: Final = b"impure"
METACOPY: Final = b"metacopy"
NLINK: Final = b"nlink"
PROTATTR: Final = b"protattr"
UPPER: Final = b"upper"
WHITEOUT: Final = b"whiteout"

CAPABILITY: Final = b"security.capability"
ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_DEFAULT: Final = b"system.posix_acl_default"
_ACLS: Final = frozenset((ACL_ACCESS, ACL_DEFAULT))
#: Bytes for an ACL of few entries, and of as many as there can be: a head of 4, entries of 8.
_ACL_SIZES: Final = (4 + 8 * 15, 4 + 8 * 8191)


def _release() -> tuple[int, int]:
    """Return the first two numbers of the kernel's version."""
    major, minor, *_ = os.uname().release.replace("-", ".").split(".")
    return int(major), int(minor)


#: Before Linux 6.2 ids in the ACLs of idmapped mounts are mapped in buffers of whole entries alone.
_WHOLE_ENTRIES: Final = _release() < (6, 2)


def fd_path(fd: int) -> bytes:
    """Return the path that leads to what *fd* has open, whatever it is."""
    return b"/proc/self/fd/%d" % fd


def path_to(target: bytes | int) -> bytes:
    """Return the path that leads to *target*, a path or a descriptor."""
    return fd_path(target) if isinstance(target, int) else target


def entry_path(dirfd: int, name: bytes) -> bytes:
    """Return the path that leads to *name* in the directory *dirfd*."""
    return b"/proc/self/fd/%d/%s" % (dirfd, name)


def value(path: bytes | int, name: bytes, *, follow: bool = False) -> bytes:
    """Return the value of *name*. Raises ``OSError``, ENODATA where there is none."""
    if name not in _ACLS or not _WHOLE_ENTRIES:
        return os.getxattr(path, name, follow_symlinks=follow)
    few, all_possible = _ACL_SIZES
    try:
        return syscalls.getxattr(path_to(path), name, few, follow=follow)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        return syscalls.getxattr(path_to(path), name, all_possible, follow=follow)


def read(path: bytes | int, name: bytes, *, follow: bool = False) -> bytes | None:
    """Return the value of *name*, or ``None`` where there is none."""
    try:
        return value(path, name, follow=follow)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def names(path: bytes | int, *, follow: bool = False) -> list[bytes]:
    """Return all names, none where the file system has no xattrs."""
    try:
        return [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=follow)]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def write(
    path: bytes | int, name: bytes, value: bytes, flags: int = 0, *, follow: bool = False
) -> None:
    """Set *name*; *flags* are XATTR_CREATE and XATTR_REPLACE."""
    os.setxattr(path, name, value, flags, follow_symlinks=follow)


def remove(path: bytes | int, name: bytes, *, follow: bool = False) -> None:
    """Remove *name*; ENODATA when it is not there."""
    os.removexattr(path, name, follow_symlinks=follow)


class Marks:
    """The names of overlayfs's marks in one namespace, and the escape of nested ones."""

    __slots__ = ("_escaped", "_own", "user")

    def __init__(self, *, user: bool) -> None:
        self.user = user
        self._own = b"user.overlay." if user else b"trusted.overlay."
        self._escaped = self._own + _ESCAPE

    def read(self, path: bytes | int, mark: bytes, *, follow: bool = False) -> bytes | None:
        """Return the value of *mark* (``OPAQUE``, ``REDIRECT``, ...) or ``None``."""
        return read(path, self._own + mark, follow=follow)

    def write(self, path: bytes | int, mark: bytes, value: bytes, *, follow: bool = False) -> None:
        """Set *mark*; EPERM where the namespace cannot exist on such an object."""
        write(path, self._own + mark, value, follow=follow)

    def remove(self, path: bytes | int, mark: bytes, *, follow: bool = False) -> None:
        """Remove *mark* if it is there."""
        try:
            remove(path, self._own + mark, follow=follow)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise

    def opaque(self, path: bytes, *, follow: bool = False) -> bytes | None:
        """Return ``y`` (hides what is below), ``x`` (holds xattr whiteouts) or ``None``."""
        own = read(path, self._own + OPAQUE, follow=follow)
        if own in (b"y", b"x"):
            return own
        return b"y" if read(path, _FOREIGN_OPAQUE, follow=follow) == b"y" else None

    def among(self, names: list[bytes]) -> bool:
        """Say whether one of *names* is a mark: most objects have none, and are asked once."""
        return any(name.startswith((self._own, _FOREIGN_PREFIX)) for name in names)

    def holds(self, names: list[bytes], mark: bytes) -> bool:
        """Say whether *mark* is one of *names*."""
        return self._own + mark in names

    def stored(self, name: bytes) -> bytes | None:
        """Return the name under which a user's attribute *name* lies on disk.

        A nested overlay's own marks are stored escaped, as the kernel does since 6.7.
        ``None``: nobody may use that name (another program's marks that we obey).
        """
        if name.startswith(self._own):
            return self._escaped + name[len(self._own) :]
        return None if name.startswith(_FOREIGN_PREFIX) else name

    def shown(self, stored: bytes) -> bytes | None:
        """Return the name that users see for *stored*, ``None`` for our own marks."""
        if stored.startswith(self._escaped):
            return self._own + stored[len(self._escaped) :]
        if stored.startswith((self._own, _FOREIGN_PREFIX)):
            return None
        return stored
