"""PyfuseSession: the union served through libfuse 3, by pyfuse3 on trio.

The portable session. What libfuse's low-level interface as pyfuse3 has it cannot carry
(fallocate, SEEK_HOLE, copy_file_range, O_TMPFILE, ioctl, statx) is answered by the kernel's
own fallbacks. pyfuse3 keeps its session in module globals: one mount in a process.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio

from unionfs.errors import MountError
from unionfs.fuse.interface import Attr, Caller, Changes, ListedName, Opened
from unionfs.fuse.mounting import words_of_libfuse
from unionfs.fuse.tasks import on_trio
from unionfs.log import OUTPUT, Log, described

if TYPE_CHECKING:
    from unionfs.fuse.interface import Entry, FileSystem
    from unionfs.options import MountOptions

log = Log(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")
#: A number that no object has, for names whose object cannot be looked at.
_UNKNOWN_NODE = (1 << 63) - 1
_NO_SUCH_CONNECTION = (errno.ECONNABORTED, errno.ENODEV, errno.ENOTCONN)


def _answered(
    handler: Callable[Concatenate[_Handlers, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[_Handlers, _P], Coroutine[Any, Any, _R]]:
    """Turn what *handler* raises into the one exception that pyfuse3 survives."""

    async def answered(self: _Handlers, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await on_trio(handler(self, *args, **kwargs))
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except Exception as error:
            if isinstance(error, pyfuse3.FUSEError):
                raise
            log.exception("%s failed", getattr(handler, "__name__", handler))
            raise pyfuse3.FUSEError(errno.EIO) from error

    return answered


class _Handler(logging.Handler):
    """Hands on what pyfuse3 and trio log."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        # A reply that nobody waits for any more: interrupted, or unmounted.
        if "fuse_reply_* failed with No such file or directory" in text:
            return
        if record.exc_info:
            text += f"\n{described(record.exc_info[1])}"
        OUTPUT.line(record.name, record.levelname, text)


class PyfuseSession:
    """See ``fuse.interface.Session``."""

    name = "pyfuse3"

    def __init__(self, filesystem: FileSystem, options: MountOptions) -> None:
        self._handlers = _Handlers(filesystem, options)
        self._trio: trio.lowlevel.TrioToken | None = None
        self._stopping = False
        filesystem.connect(_Pyfuse())
        level = logging.DEBUG if options.debug else logging.WARNING
        logging.basicConfig(handlers=[_Handler()], level=level)

    def mount(self, target: bytes, source: str, words: Sequence[str]) -> None:
        # libfuse takes a comma for the end of an option unless it is escaped.
        escaped = source.replace("\\", "\\\\").replace(",", "\\,")
        options = {*words_of_libfuse(words), f"fsname={escaped}", "subtype=unionfs"}
        shown = os.fsdecode(target)
        with _stderr_kept() as said:
            try:
                pyfuse3.init(self._handlers, shown, options)
            except (RuntimeError, UnicodeEncodeError) as error:
                reasons = [line.strip() for line in said().splitlines() if line.strip()]
                reason = reasons[-1] if reasons else "mounting through libfuse failed"
                raise MountError(f"{shown}: {reason}") from error

    def serve(self, ready: Callable[[], None]) -> None:
        trio.run(self._serve, ready)

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._trio = trio.lowlevel.current_trio_token()
        if self._stopping:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce, ready)
            try:
                await pyfuse3.main()
            except* OSError as group:
                # An aborted connection (fusectl, umount -f) ends the loop as unmounting does.
                if not all(_is_disconnect(error) for error in _flatten(group)):
                    raise
            nursery.cancel_scope.cancel()

    async def _announce(self, ready: Callable[[], None]) -> None:
        """Say *ready* once libfuse has answered INIT: it does so in the step that asks us."""
        await self._handlers.initialised.wait()
        ready()

    def stop(self) -> None:
        self._stopping = True
        if self._trio is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._trio.run_sync_soon(pyfuse3.terminate)

    def counted(self) -> str:
        return ""

    def close(self, *, unmount: bool) -> None:
        pyfuse3.close(unmount=unmount)


@contextlib.contextmanager
def _stderr_kept() -> Iterator[Callable[[], str]]:
    """Catch what libfuse and fusermount3 say on stderr, where alone they tell reasons.

    Yields what returns the text so far; without an exception it is passed on at the end.
    """
    with tempfile.TemporaryFile() as file, os.fdopen(os.dup(2), "wb") as stderr:

        def said() -> bytes:
            return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)

        os.dup2(file.fileno(), 2)
        try:
            yield lambda: said().decode(errors="replace")
            stderr.write(said())
        finally:
            os.dup2(stderr.fileno(), 2)


def _is_disconnect(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _NO_SUCH_CONNECTION


def _flatten(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _flatten(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


class _Pyfuse:
    """See ``fuse.interface.Kernel``: what of it pyfuse3 can reach."""

    def open_backing(self, fd: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "passthrough", fd)

    def close_backing(self, backing: int) -> None:
        pass

    def attributes_changed(self, node: int) -> None:
        with contextlib.suppress(OSError):  # the kernel does not know the node any more
            pyfuse3.invalidate_inode(pyfuse3.InodeT(node), attr_only=True)


class _Handlers(pyfuse3.Operations):
    """pyfuse3's names for requests, translated and nothing else."""

    enable_writeback_cache = False
    supports_dot_lookup = True

    def __init__(self, filesystem: FileSystem, options: MountOptions) -> None:
        super().__init__()
        self._fs = filesystem
        self.enable_acl = not options.noacl
        self._entry_timeout, self._negative_timeout, self._attr_timeout = options.timeouts()
        # Unless others change the layers, pages stay good between two opens.
        self._keeps_pages = not options.layers_change
        self.initialised = trio.Event()

    def init(self) -> None:
        self.initialised.set()

    def _attributes(self, attr: Attr) -> pyfuse3.EntryAttributes:
        status = attr.status
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(attr.ino)
        entry.st_mode = pyfuse3.ModeT(status.st_mode)
        entry.st_nlink = attr.nlink
        entry.st_uid, entry.st_gid = attr.uid, attr.gid
        entry.st_rdev, entry.st_size = status.st_rdev, status.st_size
        entry.st_blocks, entry.st_blksize = status.st_blocks, status.st_blksize
        entry.st_atime_ns = status.st_atime_ns
        entry.st_mtime_ns = status.st_mtime_ns
        entry.st_ctime_ns = status.st_ctime_ns
        entry.entry_timeout, entry.attr_timeout = self._entry_timeout, self._attr_timeout
        return entry

    def _entry(self, entry: Entry) -> pyfuse3.EntryAttributes:
        return self._attributes(entry.attr)

    @_answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        entry = self._fs.lookup(parent_inode, name)
        if entry is not None:
            return self._entry(entry)
        missing = pyfuse3.EntryAttributes()
        missing.st_ino = pyfuse3.InodeT(0)  # "not there", which the kernel may remember
        missing.entry_timeout = self._negative_timeout
        return missing

    @_answered
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, count in inode_list:
            self._fs.forget(inode, count)

    @_answered
    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attributes(self._fs.getattr(inode))

    @_answered
    async def setattr(
        self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._attributes(await self._fs.setattr(inode, changes))

    @_answered
    async def readlink(self, inode: int, ctx: Any) -> bytes:
        return self._fs.readlink(inode)

    @_answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        return self._entry(self._fs.mknod(parent_inode, name, mode, rdev, _caller(ctx)))

    @_answered
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        return self._entry(self._fs.mkdir(parent_inode, name, mode, _caller(ctx)))

    @_answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        return self._entry(self._fs.symlink(parent_inode, name, target, _caller(ctx)))

    @_answered
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.link(inode, new_parent_inode, new_name))

    @_answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        await self._fs.unlink(parent_inode, name)

    @_answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        await self._fs.rmdir(parent_inode, name)

    @_answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: Any,
    ) -> None:
        await self._fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @_answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        entry, opened = self._fs.create(parent_inode, name, mode, flags, _caller(ctx))
        return _file_info(opened, keep_pages=self._keeps_pages), self._entry(entry)

    @_answered
    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        opened = await self._fs.open(inode, flags)
        return _file_info(opened, keep_pages=self._keeps_pages)

    @_answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(await self._fs.read(fh, off, size))

    @_answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._fs.write(fh, off, buf)

    @_answered
    async def flush(self, fh: int) -> None:
        # Nothing is held back, so there is nothing to flush: the kernel need not ask again.
        raise OSError(errno.ENOSYS, "flush")

    @_answered
    async def release(self, fh: int) -> None:
        self._fs.release(fh)

    @_answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._fs.fsync(fh, data_only=datasync)

    @_answered
    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode  # a directory is listed by its number, and need not be opened

    @_answered
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        for listed in await self._fs.readdir_plus(fh, start_id):
            entry = None if isinstance(listed, ListedName) else listed.entry
            if isinstance(listed, ListedName):
                shown = _named(listed.ino, listed.kind)
            else:
                shown = _named(_UNKNOWN_NODE, 0) if entry is None else self._entry(entry)
            if not pyfuse3.readdir_reply(token, listed.name, shown, listed.offset):
                return
            if entry is not None:
                self._fs.remember(entry.node)

    @_answered
    async def releasedir(self, fh: int) -> None:
        pass

    @_answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._fs.fsyncdir(fh, data_only=datasync)

    @_answered
    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        sizes = self._fs.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize, data.f_frsize = sizes.bsize, sizes.frsize
        data.f_blocks, data.f_bfree, data.f_bavail = sizes.blocks, sizes.bfree, sizes.bavail
        data.f_files, data.f_ffree, data.f_favail = sizes.files, sizes.ffree, sizes.favail
        data.f_namemax = sizes.namemax
        return data

    @_answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        await self._fs.setxattr(inode, name, value, 0, _caller(ctx))

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        return self._fs.getxattr(inode, name)

    @_answered
    async def listxattr(self, inode: int, ctx: Any) -> Sequence[bytes]:
        return self._fs.listxattr(inode, _caller(ctx))

    @_answered
    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        await self._fs.removexattr(inode, name)


def _named(ino: int, kind: int) -> pyfuse3.EntryAttributes:
    """Return attributes that end at once: the kernel must look the name up to use it."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino, entry.st_mode = pyfuse3.InodeT(ino), pyfuse3.ModeT(kind)
    entry.entry_timeout = entry.attr_timeout = 0
    return entry


def _caller(ctx: Any) -> Caller:
    # The kernel has applied the umask already: libfuse's DONT_MASK is out of reach.
    return Caller(ctx.uid, ctx.gid, ctx.pid)


def _file_info(opened: Opened, *, keep_pages: bool) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(opened.handle), keep_cache=keep_pages)
