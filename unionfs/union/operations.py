"""UnionFS: each request of the kernel, told in the union's own words.

What a request means stands in the module it calls; here numbers become nodes, and
nodes entries. See ``fuse.interface.FileSystem`` for what each method promises.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from unionfs.fuse.interface import (
    Attr,
    Caller,
    Changes,
    DirectoryEntry,
    Entry,
    Kernel,
    ListedName,
    Opened,
    Statfs,
)
from unionfs.layer import syscalls
from unionfs.layer.stack import LayerStack
from unionfs.options import MountOptions
from unionfs.union import attributes, create, linking, ranges, remove
from unionfs.union.exporting import Exports
from unionfs.union.files import OpenFiles
from unionfs.union.flags import get_flags, get_xflags, measure_verity, set_flags
from unionfs.union.indexed import remove_orphans
from unionfs.union.listing import Listings
from unionfs.union.lookup import look
from unionfs.union.nodes import FileNode, Node
from unionfs.union.reconnect import connected
from unionfs.union.rename import rename
from unionfs.union.tree import MergedTree, fail
from unionfs.waiting import blocking


class UnionFS:
    """A merged tree that a session can serve."""

    def __init__(self, stack: LayerStack, options: MountOptions) -> None:
        self.timeout = options.timeout
        self._without_xattrs = options.noxattrs
        self._tree = MergedTree(stack, options)
        if stack.handle_table is not None:
            self._tree.exports = Exports(self._tree, stack.handle_table)
        remove_orphans(self._tree)
        self._nodes = self._tree.nodes
        self._files = OpenFiles(self._tree)
        self._listings = Listings(self._tree)

    def connect(self, kernel: Kernel) -> None:
        self._tree.kernel = kernel

    def statistics(self) -> str:
        """Return what is held in memory: nodes, files and directories that are open."""
        directories = len(self._tree.stack.descriptors)
        return (
            f"{len(self._nodes)} nodes, {len(self._files)} files and {directories} directories open"
        )

    # Nodes

    def lookup(self, parent: int, name: bytes) -> Entry | None:
        if name in (b".", b".."):
            return self._entry(connected(self._tree, parent, name))
        directory = self._nodes.directory(parent)
        node, status = look(self._tree, directory, name)
        return None if node is None else self._entry(node, status)

    def _entry(self, node: Node, status: os.stat_result | None = None) -> Entry:
        """Return the entry for *node*, counted as a reference of the kernel's."""
        entry = self._tree.entry(node, status)
        node.lookups += 1
        return entry

    def remember(self, node: int) -> None:
        self._nodes.get(node).lookups += 1

    def forget(self, node: int, count: int) -> None:
        self._nodes.forget(node, count)

    # Attributes

    def getattr(self, node: int) -> Attr:
        return self._tree.attr(self._nodes.get(node))

    async def setattr(self, node: int, changes: Changes) -> Attr:
        found = self._nodes.get(node)
        status = await attributes.set_attributes(self._tree, found, changes)
        return self._tree.attr(found, status)

    def _refuse_xattrs(self) -> None:
        """Raise ENOSYS where there are to be none: the kernel asks no more."""
        if self._without_xattrs:
            fail(errno.ENOSYS)

    def getxattr(self, node: int, name: bytes) -> bytes:
        self._refuse_xattrs()
        return attributes.get_xattr(self._tree, self._nodes.get(node), name)

    def listxattr(self, node: int, caller: Caller) -> Sequence[bytes]:
        self._refuse_xattrs()
        return attributes.list_xattrs(self._tree, self._nodes.get(node), caller)

    async def setxattr(
        self, node: int, name: bytes, value: bytes, flags: int, caller: Caller
    ) -> None:
        self._refuse_xattrs()
        found = self._nodes.get(node)
        await attributes.set_xattr(self._tree, found, name, value, flags, caller)

    async def removexattr(self, node: int, name: bytes) -> None:
        self._refuse_xattrs()
        await attributes.remove_xattr(self._tree, self._nodes.get(node), name)

    def readlink(self, node: int) -> bytes:
        found = self._nodes.get(node)
        if found.pinned >= 0:
            return os.readlink(b"", dir_fd=found.pinned)
        if self._tree.freshness.holds(found):
            dirfd, name = self._tree.location(found)
            return os.readlink(name, dir_fd=dirfd)
        fd = self._tree.open_object(found)
        try:
            return os.readlink(b"", dir_fd=fd)
        finally:
            os.close(fd)

    def statfs(self) -> Statfs:
        stack = self._tree.stack
        layer = stack.lowers[0] if stack.upper is None else stack.upper
        sizes = os.statvfs(layer.root_fd)
        return Statfs(
            sizes.f_bsize,
            sizes.f_frsize,
            sizes.f_blocks,
            sizes.f_bfree,
            sizes.f_bavail,
            sizes.f_files,
            sizes.f_ffree,
            sizes.f_favail,
            sizes.f_namemax,
        )

    def birth_time(self, node: int) -> int | None:
        return attributes.birth_time(self._tree, self._nodes.get(node))

    def get_flags(self, node: int) -> int:
        return get_flags(self._tree, self._nodes.get(node))

    async def set_flags(self, node: int, flags: int) -> None:
        await set_flags(self._tree, self._nodes.get(node), flags)

    def get_xflags(self, node: int) -> bytes:
        return get_xflags(self._tree, self._nodes.get(node))

    def measure_verity(self, node: int, size: int) -> bytes:
        return measure_verity(self._tree, self._nodes.get(node), size)

    async def syncfs(self) -> None:
        work = self._tree.stack.work
        if work is not None and not work.volatile:
            await blocking(syscalls.syncfs, work.sync_fd)

    # Names

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        directory, maker = self._nodes.directory(parent), self._tree.owners.maker(caller)
        return self._entry(*create.create_special(self._tree, directory, name, mode, rdev, maker))

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        directory = self._nodes.directory(parent)
        maker = self._tree.owners.maker(caller)
        return self._entry(*create.create_directory(self._tree, directory, name, mode, maker))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Entry:
        directory = self._nodes.directory(parent)
        maker = self._tree.owners.maker(caller)
        return self._entry(*create.create_symlink(self._tree, directory, name, target, maker))

    async def link(self, node: int, parent: int, name: bytes) -> Entry:
        found = self._nodes.file(node)
        await linking.link(self._tree, found, self._nodes.directory(parent), name)
        return self._entry(found)

    async def unlink(self, parent: int, name: bytes) -> None:
        await remove.unlink(self._tree, self._nodes.directory(parent), name)

    async def rmdir(self, parent: int, name: bytes) -> None:
        await remove.rmdir(self._tree, self._nodes.directory(parent), name)

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        source, target = self._nodes.directory(parent), self._nodes.directory(new_parent)
        await rename(self._tree, source, name, target, new_name, flags)

    # Files

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Entry, Opened]:
        directory = self._nodes.directory(parent)
        made = create.create_file(
            self._tree, directory, name, mode, self._tree.owners.maker(caller)
        )
        return self._created(*made, flags)

    def tmpfile(self, parent: int, mode: int, flags: int, caller: Caller) -> tuple[Entry, Opened]:
        directory = self._nodes.directory(parent)
        made = create.create_nameless(
            self._tree, directory, mode, flags, self._tree.owners.maker(caller)
        )
        return self._created(*made, flags)

    def _created(
        self, node: FileNode, fd: int, status: os.stat_result, flags: int
    ) -> tuple[Entry, Opened]:
        opened = self._files.adopt(node, fd, flags, status)
        try:
            return self._entry(node, status), opened
        except BaseException:
            self._files.release(opened.handle)
            raise

    async def open(self, node: int, flags: int, *, keeps_set_ids: bool = False) -> Opened:
        found = self._nodes.file(node)
        return await self._files.open(found, flags, keeps_set_ids=keeps_set_ids)

    async def read(self, handle: int, offset: int, size: int) -> bytes | memoryview:
        return await self._files.read(handle, offset, size)

    async def write(
        self,
        handle: int,
        offset: int,
        data: bytes | memoryview,
        *,
        keeps_set_ids: bool = False,
        synced: bool = False,
    ) -> int:
        where = handle, offset, data
        count = await self._files.write(*where, keeps_set_ids=keeps_set_ids, synced=synced)
        if synced:
            await self._sync_handles()
        return count

    async def fallocate(self, handle: int, offset: int, length: int, mode: int) -> None:
        await ranges.fallocate(self._tree, self._files, handle, offset, length, mode)

    def seek(self, handle: int, offset: int, whence: int) -> int:
        return ranges.seek(self._files, handle, offset, whence)

    async def copy_range(
        self, source: int, source_offset: int, target: int, target_offset: int, length: int
    ) -> int:
        places = (source, source_offset), (target, target_offset)
        return await ranges.copy_range(self._tree, self._files, *places, length)

    def release(self, handle: int) -> None:
        self._nodes.drop_unknown(self._files.release(handle))

    async def fsync(self, handle: int, *, data_only: bool) -> None:
        await self._files.fsync(handle, data_only=data_only)
        await self._sync_handles()

    # Directories

    async def readdir_plus(self, node: int, offset: int) -> Iterator[DirectoryEntry | ListedName]:
        return await self._listings.entries(self._nodes.directory(node, removed=True), offset)

    async def readdir_names(self, node: int, offset: int) -> Iterator[ListedName]:
        return await self._listings.names(self._nodes.directory(node, removed=True), offset)

    async def fsyncdir(self, node: int, *, data_only: bool) -> None:
        found = self._nodes.directory(node, removed=True)
        if found.upper is None or self._tree.stack.work is None or self._tree.work.volatile:
            return
        fd = self._tree.open_object(found, os.O_RDONLY | os.O_DIRECTORY)
        try:
            await blocking(os.fdatasync if data_only else os.fsync, fd)
        finally:
            os.close(fd)
        await self._sync_handles()

    async def _sync_handles(self) -> None:
        """Bring what NFS clients' handles mean to the disk, with what was synced for them."""
        exports, work = self._tree.exports, self._tree.stack.work
        if exports is not None and work is not None and not work.volatile:
            await blocking(exports.table.sync)
