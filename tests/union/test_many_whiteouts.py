"""Directories that show nothing but hold many whiteouts: removing them holds nobody up."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

from tests import build
from tests.mounts import Layers
from tests.union.client import Client
from unionfs.layer import workdir
from unionfs.layer.walk import remove_tree
from unionfs.union import emptiness, listing

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

WHITEOUTS = 50


def fill(layers: Layers) -> None:
    assert layers.upper is not None
    for name in ("merged", "pure"):
        for number in range(WHITEOUTS):
            build.whiteout(layers.upper / name / f"{number}")
    build.write(layers.lowers[0] / "merged" / "1", "hidden")
    build.write(layers.lowers[0] / "file", "content")
    build.write(layers.upper / "replacement" / "inside", "content")


class Gate:
    """Holds a call in its thread until it is opened."""

    def __init__(self) -> None:
        self.calls = 0
        self._reached = threading.Event()
        self._open = threading.Event()

    def wait(self) -> None:
        self.calls += 1
        self._reached.set()
        assert self._open.wait(20)

    async def reached(self) -> None:
        await trio.to_thread.run_sync(self._reached.wait, 20)

    def open(self) -> None:
        self._open.set()


REMOVALS: dict[str, Callable[[Client, str], Awaitable[None]]] = {
    "rmdir": lambda client, path: client.rmdir(path),
    "rename over": lambda client, path: client.rename("replacement", path),
}


@pytest.fixture
def gate() -> Iterator[Gate]:
    one = Gate()
    yield one
    one.open()


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("path", ["merged", "pure"])
async def test_others_go_on_while_whiteouts_are_removed(
    client: Client, monkeypatch: pytest.MonkeyPatch, gate: Gate, removal: str, path: str
) -> None:
    def slow(dirfd: int, name: bytes) -> None:
        if gate.calls == 0:
            gate.wait()
        remove_tree(dirfd, name)

    monkeypatch.setattr(workdir, "remove_tree", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(REMOVALS[removal], client, path)
        await gate.reached()
        with trio.fail_after(5):
            shown = ["inside"] if removal == "rename over" else None
            assert (await client.names(path) if shown else None) == shown
            assert (path in await client.names("")) is (shown is not None)
            assert await client.read("file") == b"content"
            await client.mkdir("other")
            if shown is None:
                await client.mkdir(path)
        gate.open()
    assert gate.calls == 1, "it was done where others wait"
    assert path in await client.names("")


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("path", ["merged", "pure"])
async def test_what_cannot_be_removed_fails_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch, removal: str, path: str
) -> None:
    def fails(_dirfd: int, _name: bytes) -> None:
        raise OSError(errno.EIO, "the disk fails")

    with monkeypatch.context() as broken:
        broken.setattr(workdir, "remove_tree", fails)
        await REMOVALS[removal](client, path)
    assert ("inside" if removal == "rename over" else path) not in await client.names("")
    assert not +client.counts


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("path", ["merged", "pure"])
async def test_a_name_that_comes_meanwhile_is_seen(
    client: Client, monkeypatch: pytest.MonkeyPatch, gate: Gate, removal: str, path: str
) -> None:
    """The kernel's locks keep it away; nothing is lost should they not."""
    errors: list[int | None] = []
    monkeypatch.setattr(emptiness, "AT_ONCE", WHITEOUTS - 1)
    monkeypatch.setattr(os, "sched_yield", gate.wait)

    async def remove() -> None:
        try:
            await REMOVALS[removal](client, path)
        except OSError as error:
            errors.append(error.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(remove)
        await gate.reached()
        await client.create(f"{path}/0")
        gate.open()
    assert errors == [errno.ENOTEMPTY]
    assert await client.names(path) == ["0"]


async def test_a_listing_gives_way_to_others(
    client: Client, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    monkeypatch.setattr(listing, "AT_ONCE", 10)
    monkeypatch.setattr(os, "sched_yield", gate.wait)
    found: list[Any] = []

    async def names() -> None:
        found.append(await client.names("pure"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(names)
        await gate.reached()
        with trio.fail_after(5):
            await client.create("pure/0")
        gate.open()
    assert found[0] in ([], ["0"])
    assert await client.names("pure") == ["0"]
    assert gate.calls >= WHITEOUTS // 10
