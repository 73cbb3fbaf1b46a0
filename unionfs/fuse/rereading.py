"""Requests where layers change below us: the kernel keeps nothing for longer than ``timeout``.

What it keeps without a timeout (the listing of a directory nobody opens, the target of a
symbolic link, the pages of a file that looks the same) it is not let keep, or is asked to
read anew at each open(2). A file stays what it was when it was opened, so opens must be seen.
"""

from __future__ import annotations

from typing import Final

from unionfs.fuse import protocol
from unionfs.fuse.protocol import Init
from unionfs.fuse.requests import Reply, Requests, Who

#: What lets the kernel keep things for good.
NOT_WANTED: Final = Init.CACHE_SYMLINKS | Init.NO_OPENDIR_SUPPORT


class RereadingRequests(Requests):
    """The handlers of a mount whose layers others change."""

    async def open(self, node: int, body: memoryview, who: Who) -> Reply:
        reply = await super().open(node, body, who)
        assert reply
        handle, flags, backing = protocol.OPEN_OUT.unpack(reply)
        return protocol.OPEN_OUT.pack(handle, flags & ~protocol.FOPEN_KEEP_CACHE, backing)

    async def opendir(self, node: int, body: memoryview, who: Who) -> Reply:
        return protocol.OPEN_OUT.pack(0, 0, 0)  # without FOPEN_CACHE_DIR, which ENOSYS implies

    async def releasedir(self, node: int, body: memoryview, who: Who) -> Reply:
        return b""
