"""`UnionFS` called directly: reference counts, and requests that overlap with a copy-up."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio

from tests import build
from tests.mounts import Layers
from tests.union.client import CALLER, Client
from unionfs.fuse.interface import ROOT_ID, Changes
from unionfs.layer.copydata import copy_data
from unionfs.union import copyup

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

LARGE = os.urandom(400_000)


def fill(layers: Layers) -> None:
    for name, kind in build.KINDS.items():
        kind(layers, f"zoo/{name}")
    build.write(layers.lowers[0] / "d" / "large", LARGE)
    build.write(layers.lowers[0] / "d" / "small", "small")
    build.write(layers.lowers[0] / "e" / "over", "over")
    layers.remember_lowers()


class Gate:
    """Holds copies of much data until it is opened; they wait in their thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copies = 0
        self.error: OSError | None = None
        self._reached = threading.Event()
        self._open = threading.Event()
        self._copy = copy_data
        monkeypatch.setattr(copyup, "copy_data", self._wait)

    def _wait(self, source: int, target: int, size: int) -> None:
        if size < len(LARGE) // 2:
            return self._copy(source, target, size)  # made at once, not in a thread
        self.copies += 1
        self._reached.set()
        assert self._open.wait(20)
        if self.error is not None:
            raise self.error
        return self._copy(source, target, size)

    async def reached(self) -> None:
        """Wait until a copy is under way."""
        await trio.to_thread.run_sync(self._reached.wait, 20)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    one = Gate(monkeypatch)
    yield one
    one.open()


async def test_all_references_can_be_given_back(client: Client) -> None:
    await client.tree()
    assert not +client.counts
    assert len(client.fs._nodes) == 1, "nodes stay that nobody knows"
    await client.mkdir("new")
    await client.rename("zoo/lower_full", "new/moved")
    await client.link("zoo/lower_links", "new/linked")
    await client.unlink("zoo/upper_file")
    await client.tree()
    assert len(client.fs._nodes) == 1


async def test_listing_alone_leaves_no_nodes(client: Client) -> None:
    for _ in range(3):
        await client.names("zoo")
    assert len(client.fs._nodes) == 1


async def test_listing_that_nobody_takes_leaves_no_nodes(client: Client) -> None:
    """As when a reply is full, or the reader goes away."""
    async with client.node("zoo") as node:
        assert len(list(await client.fs.readdir_plus(node, 0))) > 20
        entries = await client.fs.readdir_plus(node, 0)
        next(entries)
        next(entries)
        del entries
    assert len(client.fs._nodes) == 1


async def test_forgotten_number_is_stale(client: Client) -> None:
    node = client.took(client.fs.lookup(ROOT_ID, b"d"))
    client.forget(node)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        client.fs.getattr(node)


async def test_removed_file_lives_while_open(client: Client) -> None:
    async with client.node("d/small") as node:
        handle = (await client.fs.open(node, os.O_RDWR)).handle
    await client.unlink("d/small")
    await client.fs.write(handle, 0, b"S")
    assert await client.fs.read(handle, 0, 100) == b"Small"
    client.fs.release(handle)
    assert len(client.fs._nodes) == 1


async def test_numbers_do_not_depend_on_who_asks_first(client: Client) -> None:
    first = dict((await client.tree()).items())
    async with client.node("zoo/lower_links") as one, client.node("zoo/lower_links-other") as two:
        assert one == two
    assert await client.tree() == first


async def test_large_copy_holds_up_nobody(client: Client, gate: Gate) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.chmod, "d/large", 0o600)
        await gate.reached()
        with trio.fail_after(5):
            assert await client.read("d/small") == b"small"
            await client.write("d/small", b"S")
            await client.mkdir("d/new")
            assert "large" in await client.names("d")
            assert await client.read("d/large") == LARGE
        gate.open()
    assert gate.copies >= 1


async def test_two_changes_make_one_copy(client: Client, gate: Gate) -> None:
    async with trio.open_nursery() as nursery:
        for mode in (0o600, 0o640, 0o644):
            nursery.start_soon(client.chmod, "d/large", mode)
        nursery.start_soon(client.setxattr, "d/large", b"user.x", b"1")
        await gate.reached()
        gate.open()
    assert gate.copies == 1
    assert await client.read("d/large") == LARGE


DURING: dict[str, Callable[[Client], Awaitable[None]]] = {
    "unlink": lambda c: c.unlink("d/large"),
    "rename": lambda c: c.rename("d/large", "moved"),
    "rename over": lambda c: c.rename("e/over", "d/large"),
    "rename of the parent": lambda c: c.rename("d", "moved"),
    "truncate": lambda c: c.truncate("d/large", 10),
    "write": lambda c: c.write("d/large", b"other", 3),
    "link": lambda c: c.link("d/large", "e/linked"),
    "chmod of the parent": lambda c: c.chmod("d", 0o700),
}


@pytest.mark.parametrize("name", DURING)
async def test_change_during_a_copy(client: Client, gate: Gate, name: str) -> None:
    """Both are done, in one order or the other, and nothing is lost or left."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.write, "d/large", b"first")
        await gate.reached()
        nursery.start_soon(DURING[name], client)
        await trio.testing.wait_all_tasks_blocked(0.05)
        gate.open()
    shown = await client.tree()
    content = shown.get("moved/large", shown.get("moved", shown.get("d/large", (None,))))[-1]
    expected = {
        "unlink": None,
        "rename over": b"over",
        "truncate": b"first" + LARGE[5:10],
        "write": b"firother" + LARGE[8:],
    }.get(name, b"first" + LARGE[5:])
    assert content == expected
    if name == "link":
        assert shown["e/linked"][-1] == expected
    assert not +client.counts


async def test_failed_copy_can_be_tried_again(client: Client, gate: Gate, layers: Layers) -> None:
    gate.error = OSError(errno.EIO, "the disk fails")
    gate.open()
    before = await client.tree()
    for _ in range(2):
        with pytest.raises(OSError, match="the disk fails"):
            await client.chmod("d/large", 0o600)
    assert await client.tree() == before
    assert layers.work is not None
    assert os.listdir(layers.work / "work") == []
    gate.error = None
    await client.chmod("d/large", 0o600)
    assert await client.read("d/large") == LARGE


async def test_waiting_for_a_copy_that_fails(client: Client, gate: Gate) -> None:
    """Who waits for another's copy makes the next attempt, and has an error of its own."""
    gate.error = OSError(errno.ENOSPC, "full")
    errors = []

    async def change(mode: int) -> None:
        try:
            await client.chmod("d/large", mode)
        except OSError as error:
            errors.append(error.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change, 0o600)
        nursery.start_soon(change, 0o640)
        await gate.reached()
        gate.open()
    assert errors == [errno.ENOSPC] * 2
    assert await client.read("d/large") == LARGE


async def test_readers_go_on_with_the_copy(client: Client) -> None:
    async with client.node("d/small") as node:
        reader = (await client.fs.open(node, os.O_RDONLY)).handle
        writer = (await client.fs.open(node, os.O_WRONLY)).handle
        await client.fs.write(writer, 0, b"BIG!!")
        assert await client.fs.read(reader, 0, 100) == b"BIG!!"
        await client.fs.setattr(node, Changes(size=2))
        assert await client.fs.read(reader, 0, 100) == b"BI"
        for handle in (reader, writer):
            client.fs.release(handle)


async def test_handles_that_are_not_open(client: Client) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        await client.fs.read(77, 0, 1)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        client.fs.release(77)


async def test_new_file_is_its_makers_from_the_first_moment(client: Client, layers: Layers) -> None:
    maker = CALLER._replace(uid=1234, gid=5678, umask=0o027)
    entry, file = client.fs.create(ROOT_ID, b"new", 0o666, os.O_RDWR, maker)
    client.fs.release(file.handle)
    assert (entry.attr.uid, entry.attr.gid, entry.attr.status.st_mode & 0o777) == (
        1234,
        5678,
        0o640,
    )
    client.forget(client.took(entry))
    assert layers.upper is not None
    assert os.lstat(layers.upper / "new").st_uid == 1234
