"""A client of `UnionFS` without a kernel: requests by path, as the kernel would make them.

It keeps the kernel's side of the bargain, so that what it has not given back can be counted.
"""

from __future__ import annotations

import inspect
import os
import stat
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.mounts import Layers
from unionfs.fuse.interface import ROOT_ID, Caller, Changes, DirectoryEntry, Entry
from unionfs.fuse.tasks import on_trio
from unionfs.layer import syscalls
from unionfs.layer.stack import LayerStack
from unionfs.options import MountOptions
from unionfs.union.operations import UnionFS

CALLER = Caller(0, 0, os.getpid())
#: Inode flags that a copy-up keeps.
_FLAGS = syscalls.FS_IMMUTABLE_FL | syscalls.FS_APPEND_FL | syscalls.FS_NOATIME_FL


@contextmanager
def opened(layers: Layers, **options: Any) -> Iterator[Client]:
    """A client of a union over *layers*; the workdir must be left clean."""
    chosen = MountOptions(
        lowerdirs=tuple(os.fsencode(lower) for lower in layers.lowers),
        upperdir=os.fsencode(layers.upper) if layers.upper else None,
        workdir=os.fsencode(layers.work) if layers.work else None,
        **options,
    )
    stack = LayerStack.open(chosen)
    try:
        yield Client(UnionFS(stack, chosen))
    finally:
        stack.close()
    layers.check_work()


class _OnTrio:
    """The methods of a union, each run in the task that calls it."""

    def __init__(self, fs: UnionFS) -> None:
        self._fs = fs

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._fs, name)
        if not inspect.iscoroutinefunction(member):
            return member
        return lambda *args, **kwargs: on_trio(member(*args, **kwargs))


class Client:
    """Requests by path. What is looked up for a request is given back after it."""

    def __init__(self, fs: UnionFS) -> None:
        self.fs: Any = _OnTrio(fs)
        self.counts: Counter[int] = Counter()

    def took(self, entry: Entry) -> int:
        """Count an entry that a reply gave us."""
        self.counts[entry.node] += 1
        return entry.node

    def forget(self, node: int) -> None:
        """Give one reference back."""
        self.counts[node] -= 1
        self.fs.forget(node, 1)

    @asynccontextmanager
    async def node(self, path: str) -> AsyncIterator[int]:
        """The node at *path*, held for as long as the context lasts."""
        held: list[int] = []
        try:
            node = ROOT_ID
            for name in Path(path).parts:
                node = self.took(self._found(node, os.fsencode(name)))
                held.append(node)
            yield node
        finally:
            for node in reversed(held):
                self.forget(node)

    @asynccontextmanager
    async def present(self, path: str) -> AsyncIterator[int | None]:
        """The node at *path*, held, or None: the kernel holds what it removes or replaces."""
        try:
            node = self.took(await self._lookup(path))
        except FileNotFoundError:
            yield None
            return
        try:
            yield node
        finally:
            self.forget(node)

    async def _lookup(self, path: str) -> Entry:
        async with self.place(path) as (parent, name):
            return self._found(parent, name)

    def _found(self, parent: int, name: bytes) -> Entry:
        entry: Entry | None = self.fs.lookup(parent, name)
        if entry is None:
            raise FileNotFoundError(name)
        return entry

    async def absent(self, parent: int, name: bytes) -> None:
        """Demand that nothing shows as *name*."""
        entry = self.fs.lookup(parent, name)
        assert entry is None, f"{name!r} is there: {entry}"

    @asynccontextmanager
    async def place(self, path: str) -> AsyncIterator[tuple[int, bytes]]:
        """The directory of *path*, held, and the last name."""
        async with self.node(os.path.dirname(path)) as parent:
            yield parent, os.fsencode(os.path.basename(path))

    async def chmod(self, path: str, mode: int) -> None:
        async with self.node(path) as node:
            await self.fs.setattr(node, Changes(mode=mode))

    async def chown(self, path: str, uid: int, gid: int) -> None:
        async with self.node(path) as node:
            await self.fs.setattr(node, Changes(uid=uid, gid=gid))

    async def truncate(self, path: str, size: int) -> None:
        async with self.node(path) as node:
            await self.fs.setattr(node, Changes(size=size))

    async def setxattr(self, path: str, name: bytes, value: bytes) -> None:
        async with self.node(path) as node:
            await self.fs.setxattr(node, name, value, 0, CALLER)

    async def write(self, path: str, data: bytes, offset: int = 0) -> None:
        async with self.node(path) as node:
            handle = (await self.fs.open(node, os.O_RDWR)).handle
            try:
                await self.fs.write(handle, offset, data)
            finally:
                self.fs.release(handle)

    async def read(self, path: str) -> bytes:
        async with self.node(path) as node:
            handle = (await self.fs.open(node, os.O_RDONLY)).handle
            try:
                data: bytes = await self.fs.read(handle, 0, 1 << 24)
                return data
            finally:
                self.fs.release(handle)

    async def chattr(self, path: str, added: int) -> None:
        async with self.node(path) as node:
            await self.fs.set_flags(node, self.fs.get_flags(node) | added)

    async def fallocate(self, path: str, mode: int, offset: int, length: int) -> None:
        async with self.node(path) as node:
            handle = (await self.fs.open(node, os.O_RDWR)).handle
            try:
                await self.fs.fallocate(handle, offset, length, mode)
            finally:
                self.fs.release(handle)

    async def copy_range(self, source: str, target: str, length: int) -> None:
        async with self.node(source) as reader, self.node(target) as writer:
            handles = [(await self.fs.open(node, os.O_RDWR)).handle for node in (reader, writer)]
            try:
                await self.fs.copy_range(handles[0], 0, handles[1], 0, length)
            finally:
                for handle in handles:
                    self.fs.release(handle)

    async def tmpfile(self, path: str) -> None:
        """Make a file without a name, and give it one."""
        async with self.place(path) as (parent, name):
            entry, file = self.fs.tmpfile(parent, 0o640, os.O_RDWR, CALLER)
            self.took(entry)
            try:
                self.forget(self.took(await self.fs.link(entry.node, parent, name)))
            finally:
                self.fs.release(file.handle)
                self.forget(entry.node)

    async def create(self, path: str, mode: int = 0o644) -> None:
        async with self.place(path) as (parent, name):
            entry, file = self.fs.create(parent, name, mode, os.O_RDWR, CALLER)
            self.fs.release(file.handle)
            self.forget(self.took(entry))

    async def mkdir(self, path: str, mode: int = 0o755) -> None:
        async with self.place(path) as (parent, name):
            self.forget(self.took(self.fs.mkdir(parent, name, mode, CALLER)))

    async def symlink(self, path: str, target: bytes) -> None:
        async with self.place(path) as (parent, name):
            self.forget(self.took(self.fs.symlink(parent, name, target, CALLER)))

    async def mknod(self, path: str, mode: int) -> None:
        async with self.place(path) as (parent, name):
            self.forget(self.took(self.fs.mknod(parent, name, mode, 0, CALLER)))

    async def link(self, old: str, new: str) -> None:
        async with self.node(old) as node, self.place(new) as (parent, name):
            self.forget(self.took(await self.fs.link(node, parent, name)))

    async def unlink(self, path: str) -> None:
        async with self.present(path), self.place(path) as (parent, name):
            await self.fs.unlink(parent, name)

    async def rmdir(self, path: str) -> None:
        async with self.present(path), self.place(path) as (parent, name):
            await self.fs.rmdir(parent, name)

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        async with (
            self.present(old),
            self.present(new),
            self.place(old) as source,
            self.place(new) as target,
        ):
            await self.fs.rename(*source, *target, flags)

    async def names(self, path: str) -> list[str]:
        async with self.node(path) as node:
            listed = [one for one in await self.fs.readdir_plus(node, 0) if self._take(one)]
        for one in listed:
            if one.entry is not None:
                self.forget(one.entry.node)
        return sorted(os.fsdecode(one.name) for one in listed)

    def _take(self, listed: DirectoryEntry) -> bool:
        if listed.name in (b".", b".."):
            return False
        if listed.entry is not None:
            self.took(listed.entry)
            self.fs.remember(listed.entry.node)
        return True

    async def tree(self, path: str = "") -> dict[str, tuple[Any, ...]]:
        """Everything that shows below *path*; times and directories' link counts left out."""
        found: dict[str, tuple[Any, ...]] = {}
        for name in await self.names(path):
            where = f"{path}/{name}".lstrip("/")
            async with self.node(where) as node:
                found[where] = await self._describe(where, node)
            if stat.S_ISDIR(found[where][0]):
                found |= await self.tree(where)
        return found

    async def _describe(self, path: str, node: int) -> tuple[Any, ...]:
        attr = self.fs.getattr(node)
        names = self.fs.listxattr(node, CALLER)
        values = {name: self.fs.getxattr(node, name) for name in sorted(names)}
        content: bytes | None = None
        flags: int | None = None
        if stat.S_ISREG(attr.status.st_mode) or stat.S_ISDIR(attr.status.st_mode):
            flags = self.fs.get_flags(node) & _FLAGS
        nlink: int | None = attr.nlink
        if stat.S_ISREG(attr.status.st_mode):
            content = await self.read(path)
        elif stat.S_ISLNK(attr.status.st_mode):
            content = self.fs.readlink(node)
        elif stat.S_ISDIR(attr.status.st_mode):
            nlink = None
        return (
            attr.status.st_mode,
            attr.uid,
            attr.gid,
            nlink,
            attr.status.st_rdev,
            values,
            flags,
            content,
        )
