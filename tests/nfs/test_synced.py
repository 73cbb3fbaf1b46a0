"""What is on the disk when an NFS server has told its client so: the file, and what a handle means.

A power cut shows it (`tests/vm/test_nfs.py`); here is what is asked of the disk, without one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import build
from tests.mounts import Layers
from tests.union.client import Client, opened

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

#: The last of a path: SQLite's log of the table.
TABLE = "handles.sqlite-wal"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were synced, in that order."""
    names: list[str] = []

    def noting(sync: Callable[[int], None]) -> Callable[[int], None]:
        def noted(fd: int) -> None:
            names.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
            sync(fd)

        return noted

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))
    return names


@pytest.fixture
def client(layers: Layers) -> Iterator[Client]:
    build.write(layers.lowers[0] / "lower", "from below")
    with opened(layers, nfs_export=True) as one:
        yield one


async def test_fsync_of_a_file(client: Client, synced: list[str]) -> None:
    await client.create("new")
    async with client.node("new") as node:
        handle = (await client.fs.open(node, os.O_RDWR)).handle
        await client.fs.fsync(handle, data_only=False)
        assert synced == ["new", TABLE]
        await client.fs.fsync(handle, data_only=True)
        assert synced == ["new", TABLE, "new"], "nothing was new in the table"
        client.fs.release(handle)


async def test_fsync_of_a_directory(client: Client, synced: list[str]) -> None:
    await client.mkdir("directory")
    await client.create("directory/new")
    async with client.node("directory") as node:
        await client.fs.fsyncdir(node, data_only=False)
    assert synced == ["directory", TABLE]


async def test_a_write_that_is_to_be_stable(client: Client, synced: list[str]) -> None:
    """As a server writes what its client wants on the disk, without an fsync."""
    await client.create("new")
    async with client.node("new") as node:
        handle = (await client.fs.open(node, os.O_RDWR)).handle
        await client.fs.write(handle, 0, b"not so")
        assert synced == []
        await client.fs.write(handle, 0, b"stable", synced=True)
        assert synced == ["new", TABLE]
        client.fs.release(handle)


@pytest.mark.parametrize("options", [{}, {"nfs_export": True, "volatile": True}])
async def test_where_there_is_nothing_to_sync(
    layers: Layers, synced: list[str], options: dict[str, bool]
) -> None:
    with opened(layers, **options) as client:
        await client.create("new")
        async with client.node("new") as node:
            handle = (await client.fs.open(node, os.O_RDWR)).handle
            await client.fs.write(handle, 0, b"stable", synced=True)
            await client.fs.fsync(handle, data_only=False)
            client.fs.release(handle)
    assert synced == ([] if options else ["new", "new"])
