"""A union served without a kernel, and the handles that NFS clients hold of what it has.

Each object carries a mark that no other has, so that what a handle leads to can be told.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import stat
from typing import TYPE_CHECKING, Any

from tests import build
from tests.union.client import Client, opened

if TYPE_CHECKING:
    from tests.mounts import Layers

MARK = b"trusted.mark"


def fill(layers: Layers) -> None:
    """Directories in one layer, in two, in all; files of several names in a lower and the upper."""
    upper, lower, lowest = layers.upper, *layers.lowers
    assert upper is not None
    for layer in (lowest, lower, upper):
        build.write(layer / "a" / layer.name, layer.name)
    build.write(lowest / "b" / "c" / "d", "deep")
    build.write(lower / "b" / "a", "linked")
    os.link(lower / "b" / "a", lower / "d")
    os.link(lower / "b" / "a", lower / "b" / "b")
    build.write(upper / "c" / "a", "linked above")
    os.link(upper / "c" / "a", upper / "c" / "b")
    for layer in (upper, lower, lowest):
        for where, directories, files in os.walk(layer):
            for number, name in enumerate((*directories, *files)):
                path = os.path.join(where, name)
                with contextlib.suppress(OSError):
                    os.setxattr(path, MARK, f"{path}{number}".encode(), os.XATTR_CREATE)


class Exported:
    """The union over *layers*, and the handles that were taken."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.taken: dict[bytes, set[tuple[int, int]]] = {}
        self._marks = itertools.count()
        self._files = contextlib.ExitStack()
        self.reopen()

    def reopen(self) -> None:
        """Serve again after ``close``."""
        self.client: Client = self._files.enter_context(opened(self.layers, nfs_export=True))
        self.held: list[int] = []

    def close(self) -> None:
        self._files.close()

    async def step(self, verb: str, *arguments: Any) -> None:
        """Do one thing; what cannot be done changes nothing."""
        if verb == "restart":
            await self.restart()
            return
        with contextlib.suppress(OSError):
            await getattr(self, verb)(*arguments)

    async def restart(self) -> None:
        """Serve anew, try all handles in any order, and compare with what has names."""
        self.close()
        self.reopen()
        found = {}
        handles = [(mark, handle) for mark, all_ in self.taken.items() for handle in all_]
        random.Random(len(handles)).shuffle(handles)
        for mark, handle in handles:
            led_to = self.led_to(*handle)
            assert led_to in (mark, None), f"the handle of {mark!r} leads to {led_to!r}"
            found[mark, handle] = led_to
        living = {mark async for mark in self._living("")}
        for (mark, handle), led_to in found.items():
            assert (led_to is not None) == (mark in living), (mark, handle)

    def led_to(self, number: int, generation: int) -> bytes | None:
        """The mark of the object that a handle leads to, None if it is stale."""
        try:
            entry = self.client.fs.lookup(number, b".")
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return None
        try:
            mark: bytes = self.client.fs.getxattr(entry.node, MARK)
            return mark if entry.generation == generation else None
        finally:
            self.client.fs.forget(entry.node, 1)

    async def _living(self, path: str) -> Any:
        for name in await self.client.names(path):
            where = f"{path}/{name}".lstrip("/")
            async with self.client.node(where) as node:
                yield self.client.fs.getxattr(node, MARK)
                mode = self.client.fs.getattr(node).status.st_mode
            if stat.S_ISDIR(mode):
                async for mark in self._living(where):
                    yield mark

    async def take_all(self, path: str = "") -> None:
        """Take a handle of everything below *path*."""
        for name in await self.client.names(path):
            where = f"{path}/{name}".lstrip("/")
            await self.take(where)
            with contextlib.suppress(NotADirectoryError):
                await self.take_all(where)

    # What is done

    async def _made(self, path: str) -> None:
        await self.client.setxattr(path, MARK, b"made %d" % next(self._marks))
        await self.take(path)

    async def create(self, path: str) -> None:
        await self.client.create(path)
        await self._made(path)

    async def mkdir(self, path: str) -> None:
        await self.client.mkdir(path)
        await self._made(path)

    async def symlink(self, path: str) -> None:
        await self.client.symlink(path, b"target")
        await self._made(path)

    async def tmpfile(self, path: str) -> None:
        await self.client.tmpfile(path)
        await self._made(path)

    async def write(self, path: str) -> None:
        await self.client.write(path, b"written")

    async def link(self, old: str, new: str) -> None:
        await self.client.link(old, new)

    async def unlink(self, path: str) -> None:
        await self.client.unlink(path)

    async def rmdir(self, path: str) -> None:
        await self.client.rmdir(path)

    async def rename(self, old: str, new: str, flags: int) -> None:
        if not f"{new}/".startswith(f"{old}/") and not f"{old}/".startswith(f"{new}/"):
            await self.client.rename(old, new, flags)

    async def hold(self, path: str) -> None:
        """Keep an object in use: its number stays taken, whatever becomes of its names."""
        async with self.client.place(path) as (parent, name):
            entry = self.client.fs.lookup(parent, name)
            if entry is not None:
                self.held.append(entry.node)

    async def release(self) -> None:
        while self.held:
            self.client.fs.forget(self.held.pop(), 1)

    async def take(self, path: str) -> None:
        async with self.client.place(path) as (parent, name):
            entry = self.client.fs.lookup(parent, name)
            if entry is None:
                return
            try:
                mark = self.client.fs.getxattr(entry.node, MARK)
                self.taken.setdefault(mark, set()).add((entry.node, entry.generation))
            finally:
                self.client.fs.forget(entry.node, 1)
