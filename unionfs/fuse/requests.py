"""What each opcode means: a request's bytes become a call of the file system, its answer bytes.

One coroutine for each opcode, called with the header and the body of a request; it returns
the body of the reply, ``None`` where the kernel wants none. ``OSError`` is the errno to
reply. The body is only lent: it is good until the coroutine ends.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from unionfs.fuse import protocol
from unionfs.fuse.interface import Attr, Caller, Changes, Entry, Opened
from unionfs.fuse.protocol import Opcode, Valid
from unionfs.waiting import Blocking

if TYPE_CHECKING:
    from unionfs.fuse.interface import FileSystem

#: FUSE_OPEN_KILL_SUIDGID: O_TRUNC is by one without CAP_FSETID.
_OPEN_KILL_SUIDGID: Final = 1 << 0
_BILLION: Final = 1_000_000_000
_RENAME_FLAGS: Final = 3  # NOREPLACE and EXCHANGE; the kernel refuses them together

FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_MEASURE_VERITY: Final = 0xC0046686


class Header(NamedTuple):
    """``fuse_in_header``."""

    length: int
    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int
    extensions: int
    padding: int


Reply = bytes | bytearray | memoryview | None
Handler = Callable[[Header, memoryview], Coroutine[Blocking, Any, Reply]]


class Timeouts(NamedTuple):
    """How long the kernel may keep what it was told."""

    entry: Valid
    negative: Valid
    attr: Valid


class Requests:
    """The handlers of one mount."""

    def __init__(self, filesystem: FileSystem, timeouts: Timeouts) -> None:
        self._fs = filesystem
        self._entry_valid, self._negative_valid, self._attr_valid = timeouts
        self._missing = protocol.pack_missing(self._negative_valid)

    def handlers(self) -> dict[int, Handler]:
        """Return the handler of every opcode that is served."""
        return {
            opcode: getattr(self, opcode.name.lower())
            for opcode in Opcode
            if hasattr(self, opcode.name.lower())
        }

    def _entry(self, entry: Entry) -> bytes:
        return protocol.pack_entry(entry, self._entry_valid, self._attr_valid)

    def _attr(self, attr: Attr) -> bytes:
        return protocol.pack_attr(attr, self._attr_valid)

    # Nodes

    async def lookup(self, header: Header, body: memoryview) -> Reply:
        try:
            return self._entry(await self._fs.lookup(header.node, _name(body)))
        except FileNotFoundError:
            return self._missing

    async def forget(self, header: Header, body: memoryview) -> Reply:
        self._fs.forget(header.node, protocol.FORGET_IN.unpack_from(body)[0])
        return None

    async def batch_forget(self, header: Header, body: memoryview) -> Reply:
        count, _ = protocol.BATCH_FORGET_IN.unpack_from(body)
        start = protocol.BATCH_FORGET_IN.size
        size = protocol.FORGET_ONE.size
        for node, lookups in protocol.FORGET_ONE.iter_unpack(body[start : start + count * size]):
            self._fs.forget(node, lookups)
        return None

    # Attributes

    async def getattr(self, header: Header, body: memoryview) -> Reply:
        return self._attr(await self._fs.getattr(header.node))

    async def statx(self, header: Header, body: memoryview) -> Reply:
        attr = await self._fs.getattr(header.node)
        birth = await self._fs.birth_time(header.node)
        return protocol.pack_statx(attr, birth, self._attr_valid)

    async def setattr(self, header: Header, body: memoryview) -> Reply:
        return self._attr(await self._fs.setattr(header.node, _changes(body)))

    async def readlink(self, header: Header, body: memoryview) -> Reply:
        return await self._fs.readlink(header.node)

    async def statfs(self, header: Header, body: memoryview) -> Reply:
        return protocol.pack_statfs(await self._fs.statfs())

    async def getxattr(self, header: Header, body: memoryview) -> Reply:
        size, _ = protocol.GETXATTR_IN.unpack_from(body)
        name = _name(body[protocol.GETXATTR_IN.size :])
        return _sized(await self._fs.getxattr(header.node, name), size)

    async def listxattr(self, header: Header, body: memoryview) -> Reply:
        size, _ = protocol.GETXATTR_IN.unpack_from(body)
        names = await self._fs.listxattr(header.node, _caller(header))
        return _sized(b"".join(name + b"\0" for name in names), size)

    async def setxattr(self, header: Header, body: memoryview) -> Reply:
        size, flags = protocol.SETXATTR_IN.unpack_from(body)
        name, value = _two_names(body[protocol.SETXATTR_IN.size :])
        if len(value) != size:
            raise OSError(errno.EINVAL, "a value of another size than announced")
        await self._fs.setxattr(header.node, name, value, flags, _caller(header))
        return b""

    async def removexattr(self, header: Header, body: memoryview) -> Reply:
        await self._fs.removexattr(header.node, _name(body))
        return b""

    # Names

    async def mknod(self, header: Header, body: memoryview) -> Reply:
        mode, rdev, umask, _ = protocol.MKNOD_IN.unpack_from(body)
        name = _name(body[protocol.MKNOD_IN.size :])
        device = protocol.unpack_rdev(rdev)
        caller = _caller(header, umask)
        return self._entry(await self._fs.mknod(header.node, name, mode, device, caller))

    async def mkdir(self, header: Header, body: memoryview) -> Reply:
        mode, umask = protocol.MKDIR_IN.unpack_from(body)
        name = _name(body[protocol.MKDIR_IN.size :])
        caller = _caller(header, umask)
        return self._entry(await self._fs.mkdir(header.node, name, mode, caller))

    async def symlink(self, header: Header, body: memoryview) -> Reply:
        name, target = _two_names(body)
        return self._entry(await self._fs.symlink(header.node, name, target[:-1], _caller(header)))

    async def link(self, header: Header, body: memoryview) -> Reply:
        (node,) = protocol.LINK_IN.unpack_from(body)
        name = _name(body[protocol.LINK_IN.size :])
        return self._entry(await self._fs.link(node, header.node, name))

    async def unlink(self, header: Header, body: memoryview) -> Reply:
        await self._fs.unlink(header.node, _name(body))
        return b""

    async def rmdir(self, header: Header, body: memoryview) -> Reply:
        await self._fs.rmdir(header.node, _name(body))
        return b""

    async def rename(self, header: Header, body: memoryview) -> Reply:
        (new_parent,) = protocol.RENAME_IN.unpack_from(body)
        old, new = _two_names(body[protocol.RENAME_IN.size :])
        await self._fs.rename(header.node, old, new_parent, new[:-1], 0)
        return b""

    async def rename2(self, header: Header, body: memoryview) -> Reply:
        new_parent, flags, _ = protocol.RENAME2_IN.unpack_from(body)
        if flags & ~_RENAME_FLAGS:
            raise OSError(errno.EINVAL, "rename flags")
        old, new = _two_names(body[protocol.RENAME2_IN.size :])
        await self._fs.rename(header.node, old, new_parent, new[:-1], flags)
        return b""

    # Files

    async def create(self, header: Header, body: memoryview) -> Reply:
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(body)
        name = _name(body[protocol.CREATE_IN.size :])
        caller = _caller(header, umask)
        entry, opened = await self._fs.create(header.node, name, mode, flags, caller)
        return self._entry(entry) + _open_out(opened)

    async def tmpfile(self, header: Header, body: memoryview) -> Reply:
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(body)
        caller = _caller(header, umask)
        entry, opened = await self._fs.tmpfile(header.node, mode, flags, caller)
        return self._entry(entry) + _open_out(opened)

    async def open(self, header: Header, body: memoryview) -> Reply:
        flags, how = protocol.OPEN_IN.unpack_from(body)
        keeps = not how & _OPEN_KILL_SUIDGID
        return _open_out(await self._fs.open(header.node, flags, keeps_set_ids=keeps))

    async def read(self, header: Header, body: memoryview) -> Reply:
        handle, offset, size, *_ = protocol.READ_IN.unpack_from(body)
        return await self._fs.read(handle, offset, min(size, protocol.MAX_DATA))

    async def write(self, header: Header, body: memoryview) -> Reply:
        handle, offset, size, flags, *_ = protocol.WRITE_IN.unpack_from(body)
        data = body[protocol.WRITE_IN.size :]
        if len(data) != size:
            raise OSError(errno.EINVAL, "data of another size than announced")
        keeps = not flags & protocol.WRITE_KILL_SUIDGID
        written = await self._fs.write(handle, offset, data, keeps_set_ids=keeps)
        return protocol.WRITE_OUT.pack(written, 0)

    async def release(self, header: Header, body: memoryview) -> Reply:
        await self._fs.release(protocol.RELEASE_IN.unpack_from(body)[0])
        return b""

    async def fsync(self, header: Header, body: memoryview) -> Reply:
        handle, flags, _ = protocol.FSYNC_IN.unpack_from(body)
        await self._fs.fsync(handle, data_only=bool(flags & protocol.FSYNC_FDATASYNC))
        return b""

    async def fallocate(self, header: Header, body: memoryview) -> Reply:
        handle, offset, length, mode, _ = protocol.FALLOCATE_IN.unpack_from(body)
        await self._fs.fallocate(handle, offset, length, mode)
        return b""

    async def lseek(self, header: Header, body: memoryview) -> Reply:
        handle, offset, whence, _ = protocol.LSEEK_IN.unpack_from(body)
        return protocol.LSEEK_OUT.pack(await self._fs.seek(handle, offset, whence))

    async def copy_file_range(self, header: Header, body: memoryview) -> Reply:
        return protocol.WRITE_OUT.pack(await self._copy_range(body), 0)

    async def copy_file_range_64(self, header: Header, body: memoryview) -> Reply:
        return protocol.COPY_FILE_RANGE_OUT.pack(await self._copy_range(body))

    async def _copy_range(self, body: memoryview) -> int:
        source, source_offset, _, target, target_offset, length, _ = (
            protocol.COPY_FILE_RANGE_IN.unpack_from(body)
        )
        # The older reply has 32 bits for the count; users of either go on after a short one.
        length = min(length, _MOST_COPIED)
        return await self._fs.copy_range(source, source_offset, target, target_offset, length)

    # Directories, which need not be opened: OPENDIR is answered ENOSYS

    async def readdir(self, header: Header, body: memoryview) -> Reply:
        _, offset, size, *_ = protocol.READ_IN.unpack_from(body)
        reply = bytearray()
        for name, following, number, kind in await self._fs.readdir_names(header.node, offset):
            packed = protocol.pack_dirent(name, number, following, kind)
            if len(reply) + len(packed) > size:
                break
            reply += packed
        return reply

    async def readdirplus(self, header: Header, body: memoryview) -> Reply:
        _, offset, size, *_ = protocol.READ_IN.unpack_from(body)
        reply = bytearray()
        for name, following, entry in await self._fs.readdir_plus(header.node, offset):
            dots = name in (b".", b"..")
            if entry is None:
                packed = _NO_ENTRY + protocol.pack_dirent(name, _UNKNOWN_NODE, following, 0)
            else:
                mode = entry.attr.mode
                head = _NO_ENTRY if dots else self._entry(entry)
                packed = head + protocol.pack_dirent(name, entry.attr.ino, following, mode)
            if len(reply) + len(packed) > size:
                break
            reply += packed
            if entry is not None and not dots:
                self._fs.remember(entry.node)
        return reply

    async def fsyncdir(self, header: Header, body: memoryview) -> Reply:
        _, flags, _ = protocol.FSYNC_IN.unpack_from(body)
        await self._fs.fsyncdir(header.node, data_only=bool(flags & protocol.FSYNC_FDATASYNC))
        return b""

    # The rest

    async def syncfs(self, header: Header, body: memoryview) -> Reply:
        await self._fs.syncfs()
        return b""

    async def ioctl(self, header: Header, body: memoryview) -> Reply:
        _, _, command, _, in_size, out_size = protocol.IOCTL_IN.unpack_from(body)
        start = protocol.IOCTL_IN.size
        sent = bytes(body[start : start + in_size])
        if command == FS_IOC_GETFLAGS:
            flags = await self._fs.get_flags(header.node)
            answer = flags.to_bytes(max(out_size, 4), protocol.BYTE_ORDER)
        elif command == FS_IOC_SETFLAGS:
            flags = int.from_bytes(sent[:4], protocol.BYTE_ORDER)
            await self._fs.set_flags(header.node, flags)
            answer = b""
        elif command == FS_IOC_FSGETXATTR:
            answer = await self._fs.get_xflags(header.node)
        elif command == FS_IOC_MEASURE_VERITY and len(sent) >= _DIGEST_HEAD:
            room = int.from_bytes(sent[2:4], protocol.BYTE_ORDER)
            answer = await self._fs.measure_verity(header.node, room)
        else:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return protocol.IOCTL_OUT.pack(0, 0, 0, 0) + answer[:out_size]


_UNKNOWN_NODE: Final = (1 << 63) - 1
#: ``fuse_entry_out`` of nothing: the kernel lists the name and looks it up when it must.
_NO_ENTRY: Final = bytes(protocol.ENTRY_OUT.size)
_MOST_COPIED: Final = (1 << 31) - protocol.MAX_DATA
_DIGEST_HEAD: Final = 4


def _name(body: memoryview) -> bytes:
    """Return the one name in *body*, which ends with a NUL."""
    name = bytes(body).rstrip(b"\0")
    if not name or b"\0" in name:
        raise OSError(errno.EINVAL, "a malformed name")
    return name


def _two_names(body: memoryview) -> tuple[bytes, bytes]:
    """Return what stands before and after the first NUL of *body*."""
    first, separator, second = bytes(body).partition(b"\0")
    if not first or not separator:
        raise OSError(errno.EINVAL, "a malformed name")
    return first, second


def _caller(header: Header, umask: int = 0) -> Caller:
    return Caller(header.uid, header.gid, header.pid, umask)


def _sized(value: bytes, size: int) -> bytes:
    """Return *value*, or its length where the caller asks with no *size*; ERANGE beyond it."""
    if size == 0:
        return protocol.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def _open_out(opened: Opened) -> bytes:
    flags = protocol.FOPEN_NOFLUSH
    if opened.backing:
        flags |= protocol.FOPEN_PASSTHROUGH
    elif opened.keep_pages:
        flags |= protocol.FOPEN_KEEP_CACHE
    return protocol.OPEN_OUT.pack(opened.handle, flags, opened.backing)


def _changes(body: memoryview) -> Changes:
    (valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = (
        protocol.SETATTR_IN.unpack_from(body)
    )
    return Changes(
        mode=mode if valid & protocol.FATTR_MODE else None,
        uid=uid if valid & protocol.FATTR_UID else None,
        gid=gid if valid & protocol.FATTR_GID else None,
        size=size if valid & protocol.FATTR_SIZE else None,
        atime_ns=atime * _BILLION + atime_ns if valid & protocol.FATTR_ATIME else None,
        mtime_ns=mtime * _BILLION + mtime_ns if valid & protocol.FATTR_MTIME else None,
        keeps_set_ids=not valid & protocol.FATTR_KILL_SUIDGID,
    )
