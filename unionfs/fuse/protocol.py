"""The kernel's FUSE protocol: opcodes, flags and structures, by the names of linux/fuse.h.

Versions 7.31 (Linux 5.4) to 7.45 (Linux 6.18); what is newer answers ENOSYS. Every
structure is little or big endian as the machine is, and padded to 8 bytes.
"""

from __future__ import annotations

import enum
import errno
import os
import sys
from collections.abc import Iterator
from struct import Struct
from typing import Any, Final, NamedTuple

from unionfs.fuse.interface import Attr, Entry, Statfs

MAJOR: Final = 7
#: The newest minor version spoken, and the oldest.
MINOR: Final = 45
OLDEST_MINOR: Final = 31

#: Bytes of one WRITE or READ at most, and what a request has beside them at most.
MAX_DATA: Final = 1 << 20
_PAGE: Final = os.sysconf("SC_PAGESIZE")
BUFFER_SIZE: Final = MAX_DATA + max(_PAGE, 8192)
MAX_PAGES: Final = MAX_DATA // _PAGE


BYTE_ORDER: Final = sys.byteorder


class Opcode(enum.IntEnum):
    """What a request asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Init(enum.IntFlag):
    """Capabilities that INIT negotiates (``flags``, from bit 32 on ``flags2``)."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37


# Flags of single requests and replies.
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_KILL_SUIDGID: Final = 1 << 11
OPEN_KILL_SUIDGID: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PASSTHROUGH: Final = 1 << 7
WRITE_KILL_SUIDGID: Final = 1 << 2
FSYNC_FDATASYNC: Final = 1 << 0
IOCTL_DIR: Final = 1 << 4
NOTIFY_INVAL_INODE: Final = 2

# ioctl(2) requests of the device itself.
DEV_IOC_BACKING_OPEN: Final = 0x4010E501
DEV_IOC_BACKING_CLOSE: Final = 0x4004E502

# Offsets and sizes of files are signed here: beyond what a file can have they are negative,
# which the system calls refuse.
IN_HEADER: Final = Struct("=IIQQIIIHH")
OUT_HEADER: Final = Struct("=IiQ")
INIT_IN: Final = Struct("=IIII")
INIT_OUT: Final = Struct("=IIIIHHIIHHIIH22x")
OPEN_IN: Final = Struct("=II")
OPEN_OUT: Final = Struct("=QIi")
CREATE_IN: Final = Struct("=IIII")
MKNOD_IN: Final = Struct("=IIII")
MKDIR_IN: Final = Struct("=II")
RENAME_IN: Final = Struct("=Q")
RENAME2_IN: Final = Struct("=QII")
LINK_IN: Final = Struct("=Q")
SETATTR_IN: Final = Struct("=IIQqQqqqIIIIIIII")
READ_IN: Final = Struct("=QqIIQII")
WRITE_IN: Final = Struct("=QqIIQII")
WRITE_OUT: Final = Struct("=II")
RELEASE_IN: Final = Struct("=QIIQ")
FSYNC_IN: Final = Struct("=QII")
SETXATTR_IN: Final = Struct("=II")
GETXATTR_IN: Final = Struct("=II")
GETXATTR_OUT: Final = Struct("=II")
FORGET_IN: Final = Struct("=Q")
BATCH_FORGET_IN: Final = Struct("=II")
FORGET_ONE: Final = Struct("=QQ")
FALLOCATE_IN: Final = Struct("=QqqII")
LSEEK_IN: Final = Struct("=QqII")
LSEEK_OUT: Final = Struct("=Q")
COPY_FILE_RANGE_IN: Final = Struct("=QqQQqQQ")
COPY_FILE_RANGE_OUT: Final = Struct("=Q")
IOCTL_IN: Final = Struct("=QIIQII")
IOCTL_OUT: Final = Struct("=iIII")
STATX_IN: Final = Struct("=IIQII")
BACKING_MAP: Final = Struct("=iIQ")
INVAL_INODE_OUT: Final = Struct("=Qqq")

# nodeid, generation, entry_valid, attr_valid, and both in nanoseconds; then fuse_attr.
_ENTRY_HEAD: Final = "QQQQII"
_ATTR: Final = "QQQqqqIIIIIIIIII"
ENTRY_OUT: Final = Struct("=" + _ENTRY_HEAD + _ATTR)
ATTR_OUT: Final = Struct("=QII" + _ATTR)
DIRENT: Final = Struct("=QQII")
DIRENTPLUS: Final = Struct("=" + _ENTRY_HEAD + _ATTR + "QQII")
_STATFS_OUT: Final = Struct("=QQQQQIIII24x")
_STATX_OUT: Final = Struct("=QII16xIIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIII112x")

_BILLION: Final = 1_000_000_000
_ALIGN: Final = 8
_STATX_BASIC: Final = 0x7FF
_STATX_BTIME: Final = 0x800


class Valid(NamedTuple):
    """How long the kernel may keep something: seconds and nanoseconds."""

    seconds: int
    nanoseconds: int

    @classmethod
    def of(cls, seconds: float) -> Valid:
        """Return *seconds*, of which the kernel keeps no more than its own clock can count."""
        whole = int(min(seconds, 1 << 40))
        return cls(whole, int((seconds - whole) * _BILLION) if seconds < 1 << 40 else 0)


class InitRequest(NamedTuple):
    """What the kernel offers in INIT."""

    major: int
    minor: int
    max_readahead: int
    flags: Init


def parse_init(body: memoryview) -> InitRequest:
    """Read the body of an INIT request; EPROTO for one that is too short."""
    if len(body) < INIT_IN.size:
        raise OSError(errno.EPROTO, "a short INIT request")
    major, minor, readahead, flags = INIT_IN.unpack_from(body)
    if flags & Init.INIT_EXT and len(body) >= INIT_IN.size + 4:
        flags |= int.from_bytes(body[INIT_IN.size : INIT_IN.size + 4], BYTE_ORDER) << 32
    return InitRequest(major, minor, readahead, Init(flags))


def forgotten(body: memoryview) -> Iterator[tuple[int, int]]:
    """Return the nodes, and the references to each, that a BATCH_FORGET gives back."""
    count, _ = BATCH_FORGET_IN.unpack_from(body)
    start = BATCH_FORGET_IN.size
    count = min(count, (len(body) - start) // FORGET_ONE.size)
    return FORGET_ONE.iter_unpack(body[start : start + count * FORGET_ONE.size])


def init_reply(request: InitRequest, flags: Init, *, stack_depth: int) -> bytes:
    """Return the body of the INIT reply that takes *flags* of what was offered."""
    return INIT_OUT.pack(
        MAJOR,
        min(MINOR, request.minor),
        max(request.max_readahead, MAX_DATA),
        int(flags) & 0xFFFFFFFF,
        _MAX_BACKGROUND,
        _MAX_BACKGROUND * 3 // 4,
        MAX_DATA,
        1,  # time_gran: nanoseconds
        MAX_PAGES,
        0,  # map_alignment: no DAX
        int(flags) >> 32,
        stack_depth,
        0,  # request_timeout: a slow disk is no reason to abort
    )


#: Requests that nobody waits for (readahead, releases) which the kernel sends at once.
_MAX_BACKGROUND: Final = 64


def pack_entry(entry: Entry, entry_valid: Valid, attr_valid: Valid) -> bytes:
    """Return ``fuse_entry_out`` for *entry*."""
    return ENTRY_OUT.pack(
        entry.node,
        entry.generation,
        entry_valid[0],
        attr_valid[0],
        entry_valid[1],
        attr_valid[1],
        *_attr_fields(entry.attr),
    )


def _attr_fields(attr: Attr) -> tuple[Any, ...]:
    """Return what ``fuse_attr`` has, in its order."""
    ino, nlink, uid, gid, status = attr
    mode, _, _, _, _, _, size, atime, mtime, ctime = status  # times in seconds
    rdev = status.st_rdev
    return (
        ino,
        size,
        status.st_blocks,
        atime,
        mtime,
        ctime,
        status.st_atime_ns % _BILLION,
        status.st_mtime_ns % _BILLION,
        status.st_ctime_ns % _BILLION,
        mode,
        nlink,
        uid,
        gid,
        pack_rdev(rdev) if rdev else 0,
        status.st_blksize,
        0,
    )


def pack_missing(valid: Valid) -> bytes:
    """Return ``fuse_entry_out`` for a name that is not there, to be remembered."""
    return ENTRY_OUT.pack(0, 0, valid[0], 0, valid[1], 0, *_NO_ATTR)


_NO_ATTR: Final = (0,) * 16


def pack_attr(attr: Attr, valid: Valid) -> bytes:
    """Return ``fuse_attr_out`` for *attr*."""
    return ATTR_OUT.pack(valid[0], valid[1], 0, *_attr_fields(attr))


def pack_statx(attr: Attr, birth_ns: int | None, valid: Valid) -> bytes:
    """Return ``fuse_statx_out`` for *attr* and the birth time."""
    birth, birth_frac = divmod(birth_ns or 0, _BILLION)
    status = attr.status
    return _STATX_OUT.pack(
        valid[0],
        valid[1],
        0,
        _STATX_BASIC | (0 if birth_ns is None else _STATX_BTIME),
        status.st_blksize,
        0,
        attr.nlink,
        attr.uid,
        attr.gid,
        status.st_mode,
        attr.ino,
        status.st_size,
        status.st_blocks,
        0,
        *divmod(status.st_atime_ns, _BILLION),
        birth,
        birth_frac,
        *divmod(status.st_ctime_ns, _BILLION),
        *divmod(status.st_mtime_ns, _BILLION),
        os.major(status.st_rdev),
        os.minor(status.st_rdev),
        0,
        0,
    )


def pack_statfs(sizes: Statfs) -> bytes:
    """Return ``fuse_statfs_out``."""
    return _STATFS_OUT.pack(
        sizes.blocks,
        sizes.bfree,
        sizes.bavail,
        sizes.files,
        sizes.ffree,
        sizes.bsize,
        sizes.namemax,
        sizes.frsize,
        0,
    )


def pack_dirent(name: bytes, node: int, offset: int, kind: int) -> bytes:
    """Return ``fuse_dirent`` for *name*; *kind* is ``st_mode``."""
    padding = bytes(-len(name) % _ALIGN)
    return DIRENT.pack(node, offset, len(name), kind >> 12 & 15) + name + padding


def pack_rdev(rdev: int) -> int:
    """Return the 32 bits that the kernel's new_encode_dev makes of a device number."""
    major, minor = os.major(rdev), os.minor(rdev)
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def unpack_rdev(encoded: int) -> int:
    """Return the device number that `pack_rdev` has encoded."""
    return os.makedev((encoded & 0xFFF00) >> 8, (encoded & 0xFF) | (encoded >> 12 & 0xFFF00))
