"""Files that the kernel reads and writes without opening them.

A connection that answers OPEN with ENOSYS is asked about inodes, not handles: opening and
closing costs no trip at all. Then it is we who open a file, at the first request for its
data, and keep it open until others have been used since or the kernel forgets the inode.
"""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final

from unionfs.fuse import protocol
from unionfs.fuse.protocol import Opcode
from unionfs.fuse.requests import Handler, Reply, Requests, Timeouts, WaitingHandler, Who

if TYPE_CHECKING:
    from unionfs.fuse.interface import FileSystem

#: Files that are kept open at most while nobody reads or writes them.
_MOST_IDLE: Final = 512


class ImplicitFile:
    """A file open on behalf of the kernel, and how many requests use it now."""

    __slots__ = ("handle", "users")

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.users = 0


class ImplicitFiles:
    """The files that are open on behalf of the kernel, by node."""

    def __init__(self, filesystem: FileSystem) -> None:
        self._fs = filesystem
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = min(_MOST_IDLE, soft // 4)
        #: The one that was used longest ago comes first.
        self._files: OrderedDict[int, ImplicitFile] = OrderedDict()

    async def use(self, node: int) -> ImplicitFile:
        """Return the open file of *node*, to be handed to ``leave`` after use.

        Raises what opening it raises.
        """
        file = self._files.get(node)
        if file is None:
            opened = await self._fs.open(node, os.O_RDONLY)
            file = self._files.get(node)
            if file is None:
                file = self._files[node] = ImplicitFile(opened.handle)
            else:
                self._fs.release(opened.handle)  # another request was first
        file.users += 1
        self._files.move_to_end(node)
        return file

    def adopt(self, node: int, handle: int) -> None:
        """Take over the handle of a file that was just made."""
        before = self._files.pop(node, None)
        if before is not None:
            self._fs.release(before.handle)
        file = self._files[node] = ImplicitFile(handle)
        file.users += 1
        self.leave(file)

    def leave(self, file: ImplicitFile) -> None:
        """Give a file back; the one that nobody has used for longest may be closed."""
        file.users -= 1
        if len(self._files) > self._limit:
            node, oldest = next(iter(self._files.items()))
            if oldest.users == 0:
                del self._files[node]
                self._fs.release(oldest.handle)

    def forget(self, node: int) -> None:
        """Close the file of an inode that the kernel lets go of."""
        file = self._files.get(node)
        if file is not None and file.users == 0:
            del self._files[node]
            self._fs.release(file.handle)


class OpenlessRequests(Requests):
    """The handlers of a mount whose files are not opened.

    Where a request says handle 0, that of the implicit file is filled in. So it says of
    files that the kernel has made, too: who is not asked to open is told of no release.
    """

    def __init__(self, filesystem: FileSystem, timeouts: Timeouts) -> None:
        super().__init__(filesystem, timeouts)
        self._files = ImplicitFiles(filesystem)

    def handlers(self) -> dict[int, Handler]:
        """Return the handler of every opcode that is served."""
        served = super().handlers()
        del served[Opcode.OPEN]
        one = {
            Opcode.READ: self.read,
            Opcode.WRITE: self.write,
            Opcode.FSYNC: self.fsync,
            Opcode.FALLOCATE: self.fallocate,
            Opcode.LSEEK: self.lseek,
        }
        two = {
            Opcode.COPY_FILE_RANGE: self.copy_file_range,
            Opcode.COPY_FILE_RANGE_64: self.copy_file_range_64,
        }
        served |= {opcode: partial(self._with_file, handler) for opcode, handler in one.items()}
        served |= {opcode: partial(self._with_two_files, one) for opcode, one in two.items()}
        return served

    async def _with_file(
        self, handler: WaitingHandler, node: int, body: memoryview, who: Who, at: int = 0
    ) -> Reply:
        """Run *handler* with the handle of *node* at offset *at* of the request."""
        if len(body) < at + _HANDLE or any(body[at : at + _HANDLE]):
            return await handler(node, body, who)
        file = await self._files.use(node)
        try:
            body[at : at + _HANDLE] = file.handle.to_bytes(_HANDLE, protocol.BYTE_ORDER)
            return await handler(node, body, who)
        finally:
            self._files.leave(file)

    async def _with_two_files(
        self, handler: WaitingHandler, node: int, body: memoryview, who: Who
    ) -> Reply:
        """Run *handler*, which copies from *node* to another that the request names."""
        target = int.from_bytes(body[_TARGET_NODE:_TARGET_HANDLE], protocol.BYTE_ORDER)

        async def with_source(_target: int, body: memoryview, who: Who) -> Reply:
            return await self._with_file(handler, node, body, who)

        return await self._with_file(with_source, target, body, who, _TARGET_HANDLE)

    def create(self, node: int, body: memoryview, who: Who) -> Reply:
        return self._made(super().create(node, body, who))

    def tmpfile(self, node: int, body: memoryview, who: Who) -> Reply:
        return self._made(super().tmpfile(node, body, who))

    def _made(self, reply: Reply) -> Reply:
        """Keep the handle in the reply of a CREATE, and let the kernel have 0."""
        assert reply
        (node,) = _NODE.unpack_from(reply)
        head, opened = reply[: -protocol.OPEN_OUT.size], reply[-protocol.OPEN_OUT.size :]
        handle, flags, _ = protocol.OPEN_OUT.unpack(opened)
        self._files.adopt(node, handle)
        return bytes(head) + protocol.OPEN_OUT.pack(0, flags, 0)

    def release(self, node: int, body: memoryview, who: Who) -> Reply:
        return b""  # of a file that was made before the first OPEN was refused

    def forget(self, node: int, body: memoryview, who: Who) -> Reply:
        super().forget(node, body, who)
        self._files.forget(node)
        return None

    def batch_forget(self, node: int, body: memoryview, who: Who) -> Reply:
        super().batch_forget(node, body, who)
        for forgotten, _ in protocol.forgotten(body):
            self._files.forget(forgotten)
        return None


_HANDLE: Final = 8
_NODE: Final = Struct("=Q")
# Where COPY_FILE_RANGE names the file to write.
_TARGET_NODE: Final = 16
_TARGET_HANDLE: Final = 24
