"""Members become a tar archive: the reverse of `unionfs.layer.archive`, the same each time.

The format is pax's (POSIX.1-2001): a ustar header for each member, and before it, where that
has no room, an extended one. Names and xattrs are bytes, as GNU tar and Go's archive/tar
write and read them. Files with holes are written whole, as engines expect of a layer, or
with a map of their holes (GNU's sparse format 1.0), which GNU tar, bsdtar and Go read.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from unionfs.layer.archive import Kind, Member

_BLOCK: Final = tarfile.BLOCKSIZE
_TYPES: Final = {
    Kind.FILE: tarfile.REGTYPE,
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.HARD_LINK: tarfile.LNKTYPE,
    Kind.CHARACTER: tarfile.CHRTYPE,
    Kind.BLOCK: tarfile.BLKTYPE,
    Kind.FIFO: tarfile.FIFOTYPE,
}
_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}
#: The most that the fields of a ustar header hold.
_NAME: Final = 100
_MAX_ID: Final = 0o7777777
_MAX_SIZE: Final = 0o77777777777
_MAX_TIME: Final = 0o77777777777
_XATTR: Final = b"SCHILY.xattr."
_SECOND: Final = 1_000_000_000


def kind_of(status: os.stat_result) -> Kind | None:
    """Return what kind of member an object is, ``None`` for a socket, which no archive has."""
    return _KINDS.get(stat.S_IFMT(status.st_mode))


def member_of(path: bytes, status: os.stat_result, kind: Kind) -> Member:
    """Return the member that an object with the attributes *status* is at *path*.

    Neither its xattrs nor the text of a symbolic link are in them.
    """
    size = status.st_size if kind is Kind.FILE else 0
    device = kind in (Kind.CHARACTER, Kind.BLOCK)
    return Member(
        path,
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        size=size,
        segments=((0, size),) if size else (),
        rdev=status.st_rdev if device else 0,
    )


class TarWriter:
    """Writes an archive by *write*, which takes all of what it is given."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def add(self, member: Member, content: Iterable[bytes] = ()) -> None:
        """Write *member*; *content* are the bytes of its segments, in order."""
        pax = _extended(member)
        stored = sum(length for _, length in member.segments)
        lead = b""
        name = _stored_name(member)
        if member.kind is Kind.FILE and stored != member.size:
            lead = _sparse_map(member)
            pax |= {
                b"GNU.sparse.major": b"1",
                b"GNU.sparse.minor": b"0",
                b"GNU.sparse.name": name,
                b"GNU.sparse.realsize": b"%d" % member.size,
            }
        length = len(lead) + stored
        if length > _MAX_SIZE:
            pax[b"size"] = b"%d" % length
        if pax:
            records = b"".join(_record(key, value) for key, value in sorted(pax.items()))
            self._write(_header(b"PaxHeaders/" + name, tarfile.XHDTYPE, 0o644, len(records)))
            self._write(_padded(records))
        self._write(_member_header(member, name, length))
        self._write(lead)
        given = len(lead)
        for data in content:
            self._write(data)
            given += len(data)
        assert given == length, member
        self._write(bytes(-given % _BLOCK))

    def finish(self) -> None:
        """Write the end of the archive."""
        self._write(bytes(2 * _BLOCK))


def _stored_name(member: Member) -> bytes:
    if member.kind is Kind.DIRECTORY:
        return member.path + b"/" if member.path else b"./"
    return member.path


def _extended(member: Member) -> dict[bytes, bytes]:
    """Return what does not fit into the header of *member*, by its pax keyword."""
    pax = {_XATTR + _keyword(name): value for name, value in member.xattrs.items()}
    if not _fits(_stored_name(member)):
        pax[b"path"] = _stored_name(member)
    if not _fits(member.target):
        pax[b"linkpath"] = member.target
    if member.uid > _MAX_ID:
        pax[b"uid"] = b"%d" % member.uid
    if member.gid > _MAX_ID:
        pax[b"gid"] = b"%d" % member.gid
    if member.mtime % _SECOND or not 0 <= member.mtime // _SECOND <= _MAX_TIME:
        pax[b"mtime"] = _time(member.mtime)
    if member.atime is not None:
        pax[b"atime"] = _time(member.atime)
    return pax


def _keyword(name: bytes) -> bytes:
    """Return the name of an xattr as GNU tar has it: a keyword of pax ends at the first "="."""
    return name.replace(b"%", b"%25").replace(b"=", b"%3D")


def _fits(name: bytes) -> bool:
    return len(name) <= _NAME and name.isascii()


def _time(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, rest = divmod(abs(nanoseconds), _SECOND)
    fraction = (b".%09d" % rest).rstrip(b"0") if rest else b""
    return b"%s%d%s" % (sign, seconds, fraction)


def _record(key: bytes, value: bytes) -> bytes:
    """Return a pax record, which begins with its own length."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d%s" % (length, rest)


def _sparse_map(member: Member) -> bytes:
    """Return the map of a file's data that GNU's format 1.0 has before them."""
    segments = member.segments
    if not segments or sum(segments[-1]) != member.size:
        segments = (*segments, (member.size, 0))
    numbers: Iterator[int] = (number for segment in segments for number in segment)
    return _padded(b"".join(b"%d\n" % number for number in (len(segments), *numbers)))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)


def file_header(name: bytes, size: int) -> bytes:
    """Return the header, always of one block, of a file of *size* bytes called *name*."""
    return _header(name, tarfile.REGTYPE, 0o644, size)


def _member_header(member: Member, name: bytes, length: int) -> bytes:
    seconds = member.mtime // _SECOND
    return _header(
        name,
        _TYPES[member.kind],
        member.mode,
        length if length <= _MAX_SIZE else 0,
        uid=member.uid if member.uid <= _MAX_ID else 0,
        gid=member.gid if member.gid <= _MAX_ID else 0,
        mtime=min(max(seconds, 0), _MAX_TIME),
        target=member.target,
        rdev=member.rdev,
    )


def _header(
    name: bytes,
    kind: bytes,
    mode: int,
    size: int,
    *,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    target: bytes = b"",
    rdev: int = 0,
) -> bytes:
    """Return a ustar header (POSIX.1-1988); names that are too long are cut.

    A size that is too large is in base 256, as GNU tar has it.
    """
    fields = (
        name[:_NAME].ljust(_NAME, b"\0"),
        b"%07o\0" % mode,
        b"%07o\0" % uid,
        b"%07o\0" % gid,
        b"%011o\0" % size if size <= _MAX_SIZE else b"\x80" + size.to_bytes(11, "big"),
        b"%011o\0" % mtime,
        b" " * 8,  # the sum, of which it counts as blanks
        kind,
        target[:_NAME].ljust(_NAME, b"\0"),
        b"ustar\x0000",
        bytes(64),  # names of user and group
        b"%07o\0" % os.major(rdev),
        b"%07o\0" % os.minor(rdev),
    )
    block = b"".join(fields).ljust(_BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
