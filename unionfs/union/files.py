"""Open files: one descriptor for each regular file, however many have it open.

A file opened for reading or writing stays lower until the first change; then everyone
who has it open goes on with the copy, which is why a handle is just a node and flags.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from unionfs.fuse.interface import Changes, Opened
from unionfs.layer import xattrs
from unionfs.layer.tree import opened_up
from unionfs.union import passthrough
from unionfs.union.attributes import set_size, strip_set_ids
from unionfs.union.copyup import copy_up, open_lower, refuse_metacopy
from unionfs.union.nodes import FileNode, OpenFile
from unionfs.union.protect import APPEND, IMMUTABLE, protection
from unionfs.union.tree import MergedTree, fail
from unionfs.waiting import blocking, brief

if TYPE_CHECKING:
    from collections.abc import Iterator

_SYNCS = os.O_SYNC | os.O_DSYNC
#: Of execve(2), as include/linux/fs.h has it and FUSE_OPEN passes it on.
_FMODE_EXEC: Final = 0x20


#: Reads of up to this size (bytes) copy so little that others need not be let in meanwhile.
_AT_ONCE: Final = 64 * 1024


class FileHandle(NamedTuple):
    """A file that somebody has open, with the flags of that open(2)."""

    node: FileNode
    flags: int


class OpenFiles:
    """The handles that the kernel holds."""

    def __init__(self, tree: MergedTree) -> None:
        self._tree = tree
        self._handles: dict[int, FileHandle] = {}
        self._numbers: Iterator[int] = itertools.count(1)

    def __len__(self) -> int:
        return len(self._handles)

    def get(self, number: int) -> FileHandle:
        """Return a handle; EBADF for one that is not open."""
        handle = self._handles.get(number)
        if handle is None:
            fail(errno.EBADF)
        return handle

    async def open(self, node: FileNode, flags: int, *, keeps_set_ids: bool = False) -> Opened:
        """Open *node*. Waits while it is copied up, which only ``O_TRUNC`` asks for.

        That takes setuid and setgid away unless *keeps_set_ids*, as any truncation does.
        Raises EROFS, EPERM for protected files, and what the layer says.
        """
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        passthrough.settle(self._tree, node)
        if flags & _FMODE_EXEC and node.ino in self._tree.stripped:
            # Who is about to run it would run it with its old mode: the kernel looks again.
            self._tree.stripped.discard(node.ino)
            fail(errno.ESTALE)
        if writes or flags & os.O_TRUNC:
            self._tree.refuse_read_only()
            _refuse_protected(self._tree, node, flags)
            await passthrough.refuse_writing(node)
        if flags & os.O_TRUNC:
            if node.opened is None:
                refuse_metacopy(self._tree, node)
            await self._truncate(node, keeps_set_ids=keeps_set_ids)
        elif writes and node.upper and node.loose:
            await copy_up(self._tree, node)  # the first write may be one that we do not see
        if node.opened is None:
            node.opened = self._open_node(node, flags)
            if node.upper or not writes:
                # The kernel would open the lower for writing, or answer EIO.
                passthrough.begin(self._tree, node, node.opened)
        elif writes and node.upper:
            make_writable(self._tree, node, node.opened)
        return self._add(node, flags)

    async def _truncate(self, node: FileNode, *, keeps_set_ids: bool) -> None:
        mode = self._tree.status(node).st_mode
        cut = Changes(size=0, keeps_set_ids=keeps_set_ids)
        if not await copy_up(self._tree, node, changes=cut):
            strip_set_ids(self._tree, node, keeps_set_ids=keeps_set_ids)
            set_size(self._tree, node, 0)
        if mode & (stat.S_ISUID | stat.S_ISGID) and not keeps_set_ids:
            self._tree.tell_changed(node)  # of a mode that changes, the kernel knows nothing

    def adopt(self, node: FileNode, fd: int, flags: int, status: os.stat_result) -> Opened:
        """Take over *fd*, on which a new file was made that has the attributes *status*."""
        node.opened = OpenFile(fd, writable=True)
        if not status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            node.opened.may_strip = False  # it was just made, and has no capability either
        passthrough.begin(self._tree, node, node.opened, status)
        return self._add(node, flags)

    def _add(self, node: FileNode, flags: int) -> Opened:
        assert node.opened is not None
        node.opened.users += 1
        number = next(self._numbers)
        self._handles[number] = FileHandle(node, flags)
        return Opened(number, node.opened.backing, not node.backed)

    def _open_node(self, node: FileNode, flags: int) -> OpenFile:
        fd, writable = self._open_shown(node, flags)
        try:
            refuse_metacopy(self._tree, node, fd)
        except BaseException:
            os.close(fd)
            raise
        return OpenFile(fd, writable=writable)

    def _open_shown(self, node: FileNode, flags: int) -> tuple[int, bool]:
        """Open what *node* shows; say whether it may be written by that."""
        if not node.upper:
            return open_lower(self._tree, node), False
        try:
            return self._tree.open_object(node, os.O_RDWR), True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ETXTBSY):
                raise
            # An unprivileged daemon is bound by the mode of its own files.
            mode = flags & os.O_ACCMODE
            try:
                return self._tree.open_object(node, mode), mode != os.O_RDONLY
            except PermissionError:
                return self._open_own(node), True

    def _open_own(self, node: FileNode) -> int:
        """Open a file that shuts its owner out: who may use it, the kernel has checked."""
        bits = stat.S_IRUSR | stat.S_IWUSR
        with self._tree.object(node) as target:
            path = xattrs.path_to(target)
            with opened_up(path, bits, follow=True):
                return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    async def write(
        self,
        number: int,
        offset: int,
        data: bytes | memoryview,
        *,
        keeps_set_ids: bool,
        synced: bool,
    ) -> int:
        """Write all of *data* at *offset*. Waits while the file is copied up.

        Capabilities go, and setuid and setgid unless *keeps_set_ids*. With *synced* it waits
        for the disk, even if the file was not opened so.
        """
        handle = self.get(number)
        if handle.flags & os.O_ACCMODE == os.O_RDONLY:
            self._refuse_unasked(handle.node)
        await self.prepare_write(handle.node, keeps_set_ids=keeps_set_ids)
        opened = _opened(handle.node)
        written = 0
        view = memoryview(data)
        while written < len(data):
            try:
                written += await brief(os.pwrite, opened.fd, view[written:], offset + written)
            except OSError:
                if written:
                    break  # what did arrive is reported; the next write meets the error
                raise
        await self.sync_if_asked(handle, opened.fd, synced=synced)
        return written

    def _refuse_unasked(self, node: FileNode) -> None:
        """Raise what an open(2) for writing would have, which the kernel has not told us of."""
        if node.opened is None or node.opened.may_strip:
            self._tree.refuse_read_only()
            _refuse_protected(self._tree, node, os.O_APPEND)

    async def prepare_write(self, node: FileNode, *, keeps_set_ids: bool) -> None:
        """Let an open file be upper and writable, without what a change takes away.

        Waits while the file is copied up.
        """
        if not node.upper or node.loose:
            await copy_up(self._tree, node)
        opened = _opened(node)
        if not opened.writable:
            make_writable(self._tree, node, opened)
        if strip_set_ids(self._tree, node, keeps_set_ids=keeps_set_ids):
            self._tree.tell_changed(node)  # of a mode that changes, the kernel knows nothing

    async def sync_if_asked(self, handle: FileHandle, fd: int, *, synced: bool = False) -> None:
        """Bring a change to the disk where the open(2) asked for that, or the change (*synced*)."""
        if (synced or handle.flags & _SYNCS) and not self._tree.work.volatile:
            await blocking(os.fsync, fd)

    def descriptor(self, node: FileNode) -> int:
        """Return the descriptor of an open file, good until the next await."""
        return _opened(node).fd

    async def read(self, number: int, offset: int, size: int) -> bytes | memoryview:
        """Read from the layer that has the file now. Waits for what is not in memory."""
        fd = _opened(self.get(number).node).fd
        if size <= _AT_ONCE:
            buffer = bytearray(size)
            count = _read_cached(fd, buffer, offset)
            if count == size or (count > 0 and offset + count == os.fstat(fd).st_size):
                return memoryview(buffer)[:count]
        elif _read_cached(fd, bytearray(1), offset) and _read_cached(
            fd, bytearray(1), offset + size - 1
        ):
            return await brief(os.pread, fd, size, offset)
        return await blocking(os.pread, fd, size, offset)

    def release(self, number: int) -> FileNode:
        """Forget a handle and, with the last one, close the file; return its node."""
        node, flags = self.get(number)
        del self._handles[number]
        opened = _opened(node)
        opened.users -= 1
        if flags & os.O_ACCMODE != os.O_RDONLY:
            passthrough.settle(self._tree, node)
        if opened.users == 0:
            passthrough.end(self._tree, opened)
            os.close(opened.fd)
            node.opened = None
        return node

    async def fsync(self, number: int, *, data_only: bool) -> None:
        """Bring the file to the disk; a lower one is there already. Waits for the disk."""
        node = self.get(number).node
        if not node.upper or self._tree.stack.work is None or self._tree.work.volatile:
            return
        # A descriptor of its own: the file may be closed while the disk works.
        fd = os.dup(_opened(node).fd)
        try:
            await blocking(os.fdatasync if data_only else os.fsync, fd)
        finally:
            os.close(fd)


def _opened(node: FileNode) -> OpenFile:
    if node.opened is None:
        fail(errno.EBADF)
    return node.opened


def _read_cached(fd: int, buffer: bytearray, offset: int) -> int:
    """Read what is in memory at *offset*; 0 where nothing is, or that cannot be known."""
    try:
        return os.preadv(fd, (buffer,), offset, os.RWF_NOWAIT)
    except OSError:
        return 0


def make_writable(tree: MergedTree, node: FileNode, opened: OpenFile) -> None:
    """Let an upper file that is open for reading be written, too."""
    if opened.writable:
        return
    try:
        fd = tree.open_object(node, os.O_RDWR)
    except PermissionError:
        fd = tree.open_object(node, os.O_WRONLY)
    opened.become(fd)


def _refuse_protected(tree: MergedTree, node: FileNode, flags: int) -> None:
    bits = protection(tree, node)
    appends = flags & os.O_APPEND and not flags & os.O_TRUNC
    if bits & IMMUTABLE or (bits & APPEND and not appends):
        fail(errno.EPERM)
