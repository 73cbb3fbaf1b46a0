"""Members of a tar archive, told in our words and checked: nothing of them is believed.

The standard library's tarfile reads the headers (ustar, GNU, pax; sparse members of GNU's old
form and of pax 0.0, 0.1 and 1.0). What they say is refused, by the member's name, where it
leads out of a tree or means something to overlayfs.
"""

from __future__ import annotations

import enum
import os
import tarfile
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple, cast

from unionfs.errors import ArchiveError
from unionfs.layer import acl, xattrs
from unionfs.layer.override import NAMES as OVERRIDES
from unionfs.layer.tape import Tape

_PATH_MAX: Final = 4095
_NAME_MAX: Final = 255
_SHOWN: Final = 200
#: What chown(2) takes as "leave it".
_NO_ID: Final = 2**32 - 1
#: A time later than any that the kernel can be told, in nanoseconds.
_NEVER: Final = 10**9 << 63
_XATTR: Final = "SCHILY.xattr."
#: As star and GNU tar have them, in words.
_ACLS: Final = {"SCHILY.acl.access": xattrs.ACL_ACCESS, "SCHILY.acl.default": xattrs.ACL_DEFAULT}
#: What tarfile raises for headers that nobody thought of.
_BROKEN: Final = (
    ArchiveError, tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError
)  # fmt: skip
#: Only a union puts these on disk: as a mark, or in place of a mark that a user has set.
_MARKS: Final = (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")


class Kind(enum.Enum):
    """What a member is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARD_LINK = "hard link"
    CHARACTER = "character device"
    BLOCK = "block device"
    FIFO = "fifo"


_KINDS: Final = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.CONTTYPE: Kind.FILE,
    tarfile.GNUTYPE_SPARSE: Kind.FILE,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.HARD_LINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.FIFOTYPE: Kind.FIFO,
}


class Member(NamedTuple):
    """One member. *path* has no ``.`` and no slash at its ends; the root is the empty path."""

    path: bytes
    kind: Kind
    mode: int
    """Permissions, set-id and sticky bits."""
    uid: int
    gid: int
    mtime: int
    """In nanoseconds, as all times."""
    atime: int | None = None
    size: int = 0
    """Of a file, holes included."""
    segments: tuple[tuple[int, int], ...] = ()
    """Offset and length of each part of a file that is no hole, as they stand in the archive."""
    target: bytes = b""
    """What a symbolic link says; the path of the member that a hard link is another name of."""
    rdev: int = 0
    xattrs: Mapping[bytes, bytes] = {}


def shown(path: bytes) -> str:
    """Return *path* as messages have it."""
    text = path.decode(errors="backslashreplace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def refuse(path: bytes, reason: str) -> ArchiveError:
    """Return the error that says why the member *path* is refused."""
    return ArchiveError(f"member {shown(path)}: {reason}")


def members(tape: Tape, *, vouched: bool = False) -> Iterator[Member]:
    """Yield what is in the archive on *tape*, to whose end it goes.

    The content of a file is to be read from *tape* before the next member is asked for, or is
    passed over. *vouched*: a digest of the whole archive is going to be checked, so that its
    end is known without the two blocks of zeros.

    Raises `ArchiveError` for what is no tar archive, for one that is cut off, and for members
    that are refused.
    """
    name = b""
    reader: tarfile.TarFile | None = None
    while True:
        tape.begin_member()
        try:
            reader = reader or _open(tape)
            header = reader.next()
        except _BROKEN as error:
            where = f"after member {shown(name)}: " if name else ""
            raise ArchiveError(f"{where}{_reason(error)}") from error
        reader.members = []  # type: ignore[attr-defined] # it would keep them all
        if header is None:
            break
        name = _bytes(header.name)
        yield _member(header, reader.offset)
    _check_end(tape, name, vouched=vouched)


def _open(tape: Tape) -> tarfile.TarFile:
    # The tape has of a file what tarfile uses to read one.
    return tarfile.TarFile(fileobj=tape, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]


def _reason(error: Exception) -> str:
    match error:
        case ArchiveError():
            return str(error)
        case tarfile.ReadError() if "unexpected end" in str(error):
            return "the archive ends too early"
        case _:
            return "no tar archive" if isinstance(error, tarfile.ReadError) else "a broken header"


def _check_end(tape: Tape, last: bytes, *, vouched: bool) -> None:
    """Raise `ArchiveError` unless *tape* came to the end that an archive has."""
    where = f"after member {shown(last)}: " if last else ""
    block = tape.newest
    if len(block) not in (0, tarfile.BLOCKSIZE) or (not block and not vouched):
        raise ArchiveError(f"{where}the archive ends too early")
    # tarfile takes a header that it cannot read for the end.
    if block.strip(b"\0"):
        raise ArchiveError(f"{where}a broken header")
    for data in tape.rest():
        if data.strip(b"\0"):
            raise ArchiveError(f"{where}something follows the end of the archive")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def member_path(name: bytes, shown_as: bytes) -> bytes:
    """Return the path beneath a root that *name* means.

    Raises `ArchiveError`, for the member *shown_as*, if it leads out or is none.
    """
    if not name or b"\0" in name:
        raise refuse(shown_as, "an empty name, or a NUL in it")
    if name.startswith(b"/"):
        raise refuse(shown_as, f"{shown(name)} is absolute")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise refuse(shown_as, f"{shown(name)} leads out of the tree")
    path = b"/".join(parts)
    if len(path) > _PATH_MAX or any(len(part) > _NAME_MAX for part in parts):
        raise refuse(shown_as, f"a name of {len(path)} bytes is too long")
    return path


def _member(header: tarfile.TarInfo, next_offset: int) -> Member:
    """Return what *header* says; the header after it begins at *next_offset*."""
    name = _bytes(header.name)
    path = member_path(name, name)
    kind = _KINDS.get(header.type)
    if kind is None:
        raise refuse(name, f"of a type that layers do not have ({header.type!r})")
    if not path and kind is not Kind.DIRECTORY:
        raise refuse(name, f"the root of a tree is no {kind.value}")
    for key in ("uid", "gid", "size"):
        if not header.pax_headers.get(key, "0").isdecimal():  # tarfile takes it for 0
            raise refuse(name, f"no number as its {key}")
    for number in (header.uid, header.gid):
        if not 0 <= number < _NO_ID:
            raise refuse(name, f"an owner that cannot be ({number})")
    times = header.pax_headers
    mtime = _nanoseconds(times.get("mtime", header.mtime), name)
    atime = _nanoseconds(times["atime"], name) if "atime" in times else None
    member = Member(
        path, kind, header.mode & 0o7777, header.uid, header.gid, mtime, atime,
        xattrs=_xattrs(header.pax_headers, name),
    )  # fmt: skip
    match kind:
        case Kind.FILE:
            segments = _segments(header, next_offset, name)
            return member._replace(size=header.size, segments=segments)
        case Kind.SYMLINK:
            return member._replace(target=_link_text(_bytes(header.linkname), name))
        case Kind.HARD_LINK:
            return member._replace(target=member_path(_bytes(header.linkname), name))
        case Kind.CHARACTER | Kind.BLOCK:
            return member._replace(rdev=_device(header, name))
        case _:
            return member


def _link_text(target: bytes, name: bytes) -> bytes:
    if not target or b"\0" in target or len(target) > _PATH_MAX:
        raise refuse(name, "a symbolic link to nothing, or to a name that is too long")
    return target


def _device(header: tarfile.TarInfo, name: bytes) -> int:
    # The numbers that Linux has for a device.
    if not (0 <= header.devmajor < 1 << 12 and 0 <= header.devminor < 1 << 20):
        raise refuse(name, f"no device has the number {header.devmajor}:{header.devminor}")
    rdev = os.makedev(header.devmajor, header.devminor)
    if rdev == 0 and header.type == tarfile.CHRTYPE:
        raise refuse(name, "a device 0:0 would hide what is below it; that is spelled .wh.NAME")
    return rdev


def _nanoseconds(value: str | float, name: bytes) -> int:
    """Return a time as tar has it, in seconds, in nanoseconds."""
    try:
        found = int(Decimal(value).scaleb(9))
    except (InvalidOperation, ValueError, OverflowError):
        found = _NEVER
    if abs(found) >= _NEVER:
        raise refuse(name, "a time that cannot be")
    return found


def _segments(
    header: tarfile.TarInfo, next_offset: int, name: bytes
) -> tuple[tuple[int, int], ...]:
    """Return where the bytes of a file belong. Raises `ArchiveError` where that makes no sense."""
    stored = next_offset - header.offset_data
    if not 0 <= header.size < 1 << 63:
        raise refuse(name, "a size that cannot be")
    # tarfile's list of (offset, length), of which its annotations know nothing.
    sparse = cast("list[tuple[int, int]] | None", header.sparse)
    if sparse is None:
        return ((0, header.size),) if header.size else ()
    # GNU's old form fills unused places with empty parts.
    segments = tuple((offset, length) for offset, length in sparse if length)
    position = total = 0
    for offset, length in segments:
        if offset < position or length < 0 or offset + length > header.size:
            raise refuse(name, "a map of holes that makes no sense")
        position = offset + length
        total += length
    if total > stored:
        raise refuse(name, "a map of holes for more than there is")
    return segments


def _xattrs(pax: Mapping[str, str], name: bytes) -> dict[bytes, bytes]:
    """Return the extended attributes, POSIX ACLs among them, in *pax*."""
    found = {}
    for key, value in pax.items():
        if key in _ACLS:
            found[_ACLS[key]] = _acl(value, name)
        elif key.startswith(_XATTR):
            # As GNU tar has it: a keyword of pax ends at the first "=".
            xattr = _bytes(key.removeprefix(_XATTR)).replace(b"%3D", b"=").replace(b"%25", b"%")
            if xattr.startswith(_MARKS) or xattr in OVERRIDES:
                raise refuse(name, f"{shown(xattr)} is a mark that only a union writes")
            if not xattr or b"\0" in xattr or len(xattr) > _NAME_MAX:
                raise refuse(name, "an extended attribute without a proper name")
            found[xattr] = _bytes(value)
    return found


def _acl(text: str, name: bytes) -> bytes:
    try:
        return acl.from_text(text)
    except ValueError as error:
        raise refuse(name, f"an ACL that cannot be: {error}") from error
