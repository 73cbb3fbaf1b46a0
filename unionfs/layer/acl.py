"""POSIX access control lists: what a new object inherits from its directory.

The value of ``system.posix_acl_*`` is a 32-bit version (2) and entries of tag, permissions
(16 bits each) and id (32 bits), little-endian (linux/posix_acl_xattr.h).
"""

from __future__ import annotations

import grp
import pwd
import stat
import struct
from typing import TYPE_CHECKING, Final

from unionfs.layer import xattrs

if TYPE_CHECKING:
    from collections.abc import Callable

_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_VERSION: Final = 2

_USER_OBJ: Final = 0x01
_USER: Final = 0x02
_GROUP_OBJ: Final = 0x04
_GROUP: Final = 0x08
_MASK: Final = 0x10
_OTHER: Final = 0x20


def inherit(default: bytes, mode: int) -> tuple[int, bytes | None]:
    """Return mode and access ACL of an object made with *mode* below *default*.

    The ACL is ``None`` where the mode says all of it. The rule is POSIX.1e draft 17,
    section 23.1.5.1 (acl(5), "Object creation and default ACLs"): each of owner, mask
    (or group) and other is granted what both the default ACL and the mode allow.
    """
    entries = [list(entry) for entry in _ENTRY.iter_unpack(default[_HEADER.size :])]
    tags = {entry[0] for entry in entries}
    permissions = mode & 0o777
    for entry in entries:
        shift = _shift(entry[0], masked=_MASK in tags)
        if shift is not None:
            entry[1] &= permissions >> shift & 7
            permissions &= ~(7 << shift) | entry[1] << shift
    mode = mode & ~0o777 | permissions
    if tags <= {_USER_OBJ, _GROUP_OBJ, _OTHER}:
        return mode, None
    return mode, _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def _shift(tag: int, *, masked: bool) -> int | None:
    """Return where the permissions of *tag* stand in a mode, ``None``: nowhere."""
    if tag == _USER_OBJ:
        return 6
    if tag == (_MASK if masked else _GROUP_OBJ):
        return 3
    return 0 if tag == _OTHER else None


def with_ids(value: bytes, user: Callable[[int], int], group: Callable[[int], int]) -> bytes:
    """Return the ACL *value* with the named users and groups that the two functions return."""
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        return value  # no ACL; who takes it will say so
    translate = {_USER: user, _GROUP: group}
    entries = [
        _ENTRY.pack(tag, permissions, translate[tag](number) if tag in translate else number)
        for tag, permissions, number in _ENTRY.iter_unpack(value[_HEADER.size :])
    ]
    return value[: _HEADER.size] + b"".join(entries)


def pass_on(dirfd: int, path: bytes, mode: int, umask: int, *, follow: bool) -> tuple[int, bool]:
    """Apply the default ACL of *dirfd*, or else the umask, to a new object at *path*.

    Return the mode that it is to have, and whether there is an ACL.
    """
    default = xattrs.read(xattrs.fd_path(dirfd), xattrs.ACL_DEFAULT, follow=True)
    if default is None:
        return mode & ~umask, False
    mode, access = inherit(default, mode)
    if access is not None:
        xattrs.write(path, xattrs.ACL_ACCESS, access, follow=follow)
    if stat.S_ISDIR(mode):
        xattrs.write(path, xattrs.ACL_DEFAULT, default)
    return mode, True


_TAGS: Final = {
    ("user", False): _USER_OBJ,
    ("user", True): _USER,
    ("group", False): _GROUP_OBJ,
    ("group", True): _GROUP,
    ("mask", False): _MASK,
    ("other", False): _OTHER,
}
_SHORT: Final = {"u": "user", "g": "group", "m": "mask", "o": "other"}
_NO_ID: Final = 0xFFFFFFFF


def from_text(text: str) -> bytes:
    """Return the value of the ACL that *text* says, as acl(5) and tar spell it.

    That is ``user::rwx,user:1000:r-x,…``, in lines or with commas; star adds the number of a
    named user as a fourth field. Raises ``ValueError`` for what is no ACL, or for a name that
    this machine does not know.
    """
    entries = []
    for word in text.replace("\n", ",").split(","):
        word = word.partition("#")[0].strip()  # noqa: PLW2901 - a comment is no part of it
        if word:
            entries.append(_entry(word))
    if not {_USER_OBJ, _GROUP_OBJ, _OTHER} <= {tag for tag, _, _ in entries}:
        raise ValueError("no user::, group:: or other::")
    # The kernel wants them in this order.
    packed = b"".join(_ENTRY.pack(*entry) for entry in sorted(entries, key=lambda e: (e[0], e[2])))
    return _HEADER.pack(_VERSION) + packed


def to_text(value: bytes) -> str:
    """Return the ACL *value* as `from_text` reads it, users and groups by number."""
    words = []
    names = {tag: kind for (kind, _), tag in _TAGS.items()}
    for tag, permissions, number in _ENTRY.iter_unpack(value[_HEADER.size :]):
        letters = "".join(
            letter if permissions & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1))
        )
        qualifier = str(number) if tag in (_USER, _GROUP) else ""
        words.append(f"{names[tag]}:{qualifier}:{letters}")
    return ",".join(words)


def _entry(word: str) -> tuple[int, int, int]:
    fields = word.split(":")
    if not 3 <= len(fields) <= 4 or not set(fields[2]) <= set("rwx-"):
        raise ValueError(word)
    kind, qualifier, letters = fields[:3]
    tag = _TAGS.get((_SHORT.get(kind, kind), bool(qualifier)))
    if tag is None:
        raise ValueError(word)
    permissions = sum(bit for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if letter in letters)
    if not qualifier:
        return tag, permissions, _NO_ID
    return tag, permissions, _number(tag, fields[3] if len(fields) == 4 else qualifier)


def _number(tag: int, qualifier: str) -> int:
    if qualifier.isascii() and qualifier.isdigit() and len(qualifier) <= 10:
        number = int(qualifier)
        if number < _NO_ID:
            return number
        raise ValueError(qualifier)
    try:
        if tag == _USER:
            return pwd.getpwnam(qualifier).pw_uid
        return grp.getgrnam(qualifier).gr_gid
    except KeyError:
        raise ValueError(f"{qualifier} is nobody here") from None
