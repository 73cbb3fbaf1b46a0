"""What each opcode means: a request's bytes become a call of the file system, its answer bytes.

One function for each opcode, called with the node that is asked about, the body of the
request and who makes it; it returns the body of the reply, ``None`` where the kernel wants
none. Where that may have to wait it is a coroutine. ``OSError`` is the errno to reply. The
body is only lent: it is good until the function or coroutine ends.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from unionfs.fuse import protocol
from unionfs.fuse.habit import Habit
from unionfs.fuse.interface import Attr, Caller, Changes, DirectoryEntry, Entry, ListedName, Opened
from unionfs.fuse.protocol import Opcode, Valid
from unionfs.waiting import Blocking

if TYPE_CHECKING:
    from unionfs.fuse.interface import FileSystem

_BILLION: Final = 1_000_000_000
_RENAME_FLAGS: Final = 3  # NOREPLACE and EXCHANGE; the kernel refuses them together

FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_MEASURE_VERITY: Final = 0xC0046686


#: Who asks, of ``fuse_in_header``: uid, gid and thread.
Who = tuple[int, int, int]
Reply = bytes | bytearray | memoryview | None
#: What may have to wait, and what answers either at once or so.
WaitingHandler = Callable[[int, memoryview, Who], Coroutine[Blocking, Any, Reply]]
Handler = Callable[[int, memoryview, Who], Reply] | WaitingHandler


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
        self._habit = Habit()
        self._missing = protocol.pack_missing(self._negative_valid)

    def handlers(self) -> dict[int, Handler]:
        """Return the handler of every opcode that is served."""
        return {
            int(opcode): getattr(self, opcode.name.lower())
            for opcode in Opcode
            if hasattr(self, opcode.name.lower())
        }

    def _entry(self, entry: Entry) -> bytes:
        return protocol.pack_entry(entry, self._entry_valid, self._attr_valid)

    def _attr(self, attr: Attr) -> bytes:
        return protocol.pack_attr(attr, self._attr_valid)

    # Nodes

    def lookup(self, node: int, body: memoryview, who: Who) -> Reply:
        entry = self._fs.lookup(node, _name(body))
        if entry is None:
            return self._missing
        if entry.attr.status.st_mode & _S_IFMT != _S_IFDIR:
            self._habit.looked(node)  # a directory is looked up by all who go into it
        return self._entry(entry)

    def forget(self, node: int, body: memoryview, who: Who) -> Reply:
        self._fs.forget(node, protocol.FORGET_IN.unpack_from(body)[0])
        return None

    def batch_forget(self, node: int, body: memoryview, who: Who) -> Reply:
        for forgotten, lookups in protocol.forgotten(body):
            self._fs.forget(forgotten, lookups)
        return None

    # Attributes

    def getattr(self, node: int, body: memoryview, who: Who) -> Reply:
        return self._attr(self._fs.getattr(node))

    def statx(self, node: int, body: memoryview, who: Who) -> Reply:
        attr = self._fs.getattr(node)
        birth = self._fs.birth_time(node)
        return protocol.pack_statx(attr, birth, self._attr_valid)

    async def setattr(self, node: int, body: memoryview, who: Who) -> Reply:
        return self._attr(await self._fs.setattr(node, _changes(body)))

    def readlink(self, node: int, body: memoryview, who: Who) -> Reply:
        return self._fs.readlink(node)

    def statfs(self, node: int, body: memoryview, who: Who) -> Reply:
        return protocol.pack_statfs(self._fs.statfs())

    def getxattr(self, node: int, body: memoryview, who: Who) -> Reply:
        size, _ = protocol.GETXATTR_IN.unpack_from(body)
        name = _name(body[protocol.GETXATTR_IN.size :])
        return _sized(self._fs.getxattr(node, name), size)

    def listxattr(self, node: int, body: memoryview, who: Who) -> Reply:
        size, _ = protocol.GETXATTR_IN.unpack_from(body)
        names = self._fs.listxattr(node, Caller(*who))
        return _sized(b"".join(name + b"\0" for name in names), size)

    async def setxattr(self, node: int, body: memoryview, who: Who) -> Reply:
        size, flags = protocol.SETXATTR_IN.unpack_from(body)
        name, value = _name_and_rest(body[protocol.SETXATTR_IN.size :])
        if len(value) != size:
            raise OSError(errno.EINVAL, "a value of another size than announced")
        await self._fs.setxattr(node, name, value, flags, Caller(*who))
        return b""

    async def removexattr(self, node: int, body: memoryview, who: Who) -> Reply:
        await self._fs.removexattr(node, _name(body))
        return b""

    # Names

    def mknod(self, node: int, body: memoryview, who: Who) -> Reply:
        mode, rdev, umask, _ = protocol.MKNOD_IN.unpack_from(body)
        name = _name(body[protocol.MKNOD_IN.size :])
        device = protocol.unpack_rdev(rdev)
        caller = Caller(*who, umask)
        return self._entry(self._fs.mknod(node, name, mode, device, caller))

    def mkdir(self, node: int, body: memoryview, who: Who) -> Reply:
        mode, umask = protocol.MKDIR_IN.unpack_from(body)
        name = _name(body[protocol.MKDIR_IN.size :])
        caller = Caller(*who, umask)
        return self._entry(self._fs.mkdir(node, name, mode, caller))

    def symlink(self, node: int, body: memoryview, who: Who) -> Reply:
        name, rest = _name_and_rest(body)
        return self._entry(self._fs.symlink(node, name, _target(rest), Caller(*who)))

    async def link(self, node: int, body: memoryview, who: Who) -> Reply:
        (linked,) = protocol.LINK_IN.unpack_from(body)
        name = _name(body[protocol.LINK_IN.size :])
        return self._entry(await self._fs.link(linked, node, name))

    async def unlink(self, node: int, body: memoryview, who: Who) -> Reply:
        await self._fs.unlink(node, _name(body))
        return b""

    async def rmdir(self, node: int, body: memoryview, who: Who) -> Reply:
        await self._fs.rmdir(node, _name(body))
        return b""

    async def rename(self, node: int, body: memoryview, who: Who) -> Reply:
        (new_parent,) = protocol.RENAME_IN.unpack_from(body)
        old, new = _two_names(body[protocol.RENAME_IN.size :])
        await self._fs.rename(node, old, new_parent, new, 0)
        return b""

    async def rename2(self, node: int, body: memoryview, who: Who) -> Reply:
        new_parent, flags, _ = protocol.RENAME2_IN.unpack_from(body)
        if flags & ~_RENAME_FLAGS:
            raise OSError(errno.EINVAL, "rename flags")
        old, new = _two_names(body[protocol.RENAME2_IN.size :])
        await self._fs.rename(node, old, new_parent, new, flags)
        return b""

    # Files

    def create(self, node: int, body: memoryview, who: Who) -> Reply:
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(body)
        name = _name(body[protocol.CREATE_IN.size :])
        caller = Caller(*who, umask)
        entry, opened = self._fs.create(node, name, mode, flags, caller)
        return self._entry(entry) + _open_out(opened)

    def tmpfile(self, node: int, body: memoryview, who: Who) -> Reply:
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(body)
        caller = Caller(*who, umask)
        entry, opened = self._fs.tmpfile(node, mode, flags, caller)
        return self._entry(entry) + _open_out(opened)

    async def open(self, node: int, body: memoryview, who: Who) -> Reply:
        flags, how = protocol.OPEN_IN.unpack_from(body)
        keeps = not how & protocol.OPEN_KILL_SUIDGID
        return _open_out(await self._fs.open(node, flags, keeps_set_ids=keeps))

    async def read(self, node: int, body: memoryview, who: Who) -> Reply:
        handle, offset, size, *_ = protocol.READ_IN.unpack_from(body)
        return await self._fs.read(handle, offset, min(size, protocol.MAX_DATA))

    async def write(self, node: int, body: memoryview, who: Who) -> Reply:
        handle, offset, size, flags, _, how, _ = protocol.WRITE_IN.unpack_from(body)
        data = body[protocol.WRITE_IN.size :]
        if len(data) != size:
            raise OSError(errno.EINVAL, "data of another size than announced")
        keeps = not flags & protocol.WRITE_KILL_SUIDGID
        # Of the file's open(2), or of this write alone: pwritev2(2), an NFS server's stable ones.
        synced = bool(how & os.O_DSYNC)
        written = await self._fs.write(handle, offset, data, keeps_set_ids=keeps, synced=synced)
        return protocol.WRITE_OUT.pack(written, 0)

    def release(self, node: int, body: memoryview, who: Who) -> Reply:
        self._fs.release(protocol.RELEASE_IN.unpack_from(body)[0])
        return b""

    async def fsync(self, node: int, body: memoryview, who: Who) -> Reply:
        handle, flags, _ = protocol.FSYNC_IN.unpack_from(body)
        await self._fs.fsync(handle, data_only=bool(flags & protocol.FSYNC_FDATASYNC))
        return b""

    async def fallocate(self, node: int, body: memoryview, who: Who) -> Reply:
        handle, offset, length, mode, _ = protocol.FALLOCATE_IN.unpack_from(body)
        await self._fs.fallocate(handle, offset, length, mode)
        return b""

    async def lseek(self, node: int, body: memoryview, who: Who) -> Reply:
        handle, offset, whence, _ = protocol.LSEEK_IN.unpack_from(body)
        return protocol.LSEEK_OUT.pack(self._fs.seek(handle, offset, whence))

    async def copy_file_range(self, node: int, body: memoryview, who: Who) -> Reply:
        return protocol.WRITE_OUT.pack(await self._copy_range(body), 0)

    async def copy_file_range_64(self, node: int, body: memoryview, who: Who) -> Reply:
        return protocol.COPY_FILE_RANGE_OUT.pack(await self._copy_range(body))

    async def _copy_range(self, body: memoryview) -> int:
        source, source_offset, _, target, target_offset, length, _ = (
            protocol.COPY_FILE_RANGE_IN.unpack_from(body)
        )
        # The older reply has 32 bits for the count; users of either go on after a short one.
        length = min(length, _MOST_COPIED)
        return await self._fs.copy_range(source, source_offset, target, target_offset, length)

    # Directories, which need not be opened: OPENDIR is answered ENOSYS

    async def readdir(self, node: int, body: memoryview, who: Who) -> Reply:
        _, offset, size, *_ = protocol.READ_IN.unpack_from(body)
        return await self._names(node, offset, size, b"")

    async def _names(self, node: int, offset: int, size: int, head: bytes) -> bytearray:
        """Return up to *size* bytes of names, with *head* before each."""
        reply = bytearray()
        for name, following, number, kind in await self._fs.readdir_names(node, offset):
            packed = head + protocol.pack_dirent(name, number, following, kind)
            if len(reply) + len(packed) > size:
                break
            reply += packed
        return reply

    async def readdirplus(self, node: int, body: memoryview, who: Who) -> Reply:
        _, offset, size, *_ = protocol.READ_IN.unpack_from(body)
        if not self._habit.wants_attributes(node, offset):
            names = await self._names(node, offset, size, _NO_ENTRY)
            self._habit.told(node, len(names) // _TYPICAL_ENTRY)
            return names
        reply = bytearray()
        for listed in await self._fs.readdir_plus(node, offset):
            entry = None if isinstance(listed, ListedName) else listed.entry
            packed = self._listed(listed)
            if len(reply) + len(packed) > size:
                break
            reply += packed
            if entry is not None:
                self._fs.remember(entry.node)
        return reply

    def _listed(self, listed: DirectoryEntry | ListedName) -> bytes:
        """Return ``fuse_direntplus`` for a name."""
        if isinstance(listed, ListedName):
            name, following, number, kind = listed
            return _NO_ENTRY + protocol.pack_dirent(name, number, following, kind)
        name, following, entry = listed
        if entry is None:
            return _NO_ENTRY + protocol.pack_dirent(name, _UNKNOWN_NODE, following, 0)
        attr = entry.attr
        head = self._entry(entry)
        return head + protocol.pack_dirent(name, attr.ino, following, attr.status.st_mode)

    async def fsyncdir(self, node: int, body: memoryview, who: Who) -> Reply:
        _, flags, _ = protocol.FSYNC_IN.unpack_from(body)
        await self._fs.fsyncdir(node, data_only=bool(flags & protocol.FSYNC_FDATASYNC))
        return b""

    # The rest

    async def syncfs(self, node: int, body: memoryview, who: Who) -> Reply:
        await self._fs.syncfs()
        return b""

    async def ioctl(self, node: int, body: memoryview, who: Who) -> Reply:
        _, _, command, _, in_size, out_size = protocol.IOCTL_IN.unpack_from(body)
        start = protocol.IOCTL_IN.size
        sent = bytes(body[start : start + in_size])
        if command == FS_IOC_GETFLAGS:
            flags = self._fs.get_flags(node)
            answer = flags.to_bytes(8 if out_size >= 8 else 4, protocol.BYTE_ORDER)
        elif command == FS_IOC_SETFLAGS:
            flags = int.from_bytes(sent[:4], protocol.BYTE_ORDER)
            await self._fs.set_flags(node, flags)
            answer = b""
        elif command == FS_IOC_FSGETXATTR:
            answer = self._fs.get_xflags(node)
        elif command == FS_IOC_MEASURE_VERITY and len(sent) >= _DIGEST_HEAD:
            room = int.from_bytes(sent[2:4], protocol.BYTE_ORDER)
            answer = self._fs.measure_verity(node, room)
        else:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return protocol.IOCTL_OUT.pack(0, 0, 0, 0) + answer[:out_size]


_UNKNOWN_NODE: Final = (1 << 63) - 1
#: ``fuse_entry_out`` of nothing: the kernel lists the name and looks it up when it must.
_NO_ENTRY: Final = bytes(protocol.ENTRY_OUT.size)
#: Bytes of a name in a listing, more or less.
_TYPICAL_ENTRY: Final = len(_NO_ENTRY) + 40
_S_IFMT: Final = 0o170000
_S_IFDIR: Final = 0o040000
_MOST_COPIED: Final = (1 << 31) - protocol.MAX_DATA
_DIGEST_HEAD: Final = 4


def _name(body: memoryview) -> bytes:
    """Return the one name in *body*, which ends with a NUL."""
    return _checked(bytes(body).rstrip(b"\0"))


def _checked(name: bytes) -> bytes:
    """Return *name*; EINVAL if it is none. One with a slash could lead out of a layer."""
    if not name or b"\0" in name or b"/" in name:
        raise OSError(errno.EINVAL, "a malformed name")
    return name


def _two_names(body: memoryview) -> tuple[bytes, bytes]:
    """Return the names in *body*, which end with a NUL each."""
    first, second = _name_and_rest(body)
    return first, _checked(second.rstrip(b"\0"))


def _name_and_rest(body: memoryview) -> tuple[bytes, bytes]:
    """Return the name in *body* and what stands after its NUL."""
    name, separator, rest = bytes(body).partition(b"\0")
    if not separator:
        raise OSError(errno.EINVAL, "a malformed name")
    return _checked(name), rest


def _target(rest: bytes) -> bytes:
    """Return what a symbolic link is to contain; EINVAL for what no link can."""
    target = rest.removesuffix(b"\0")
    if not target or b"\0" in target:
        raise OSError(errno.EINVAL, "a malformed target")
    return target


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
