"""Ranges: fallocate, SEEK_DATA and SEEK_HOLE, copy_file_range; a plain file is the oracle."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests import build
from tests.mounts import Layers
from tests.oracle import Pair
from tests.system import attempt, fallocate
from tests.union.client import CALLER, Client
from unionfs.fuse.interface import Changes
from unionfs.layer import syscalls
from unionfs.layer.xattrs import CAPABILITY

pytestmark = [pytest.mark.needs_root]
#: How files are opened matters here.
OPENLESS_TOO = True

Make = Callable[..., Pair]
KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40
DATA = os.urandom(40_000)
LARGE = os.urandom(400_000)
CAP_NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")

RANGES = {
    "reserve within": (0, 100, 5000),
    "reserve beyond": (0, 39_000, 50_000),
    "keep the size": (KEEP, 39_000, 50_000),
    "punch": (PUNCH | KEEP, 5000, 20_000),
    "punch without keeping": (PUNCH, 5000, 20_000),
    "zero": (ZERO, 30_000, 20_000),
    "zero and keep": (ZERO | KEEP, 30_000, 20_000),
    "collapse": (COLLAPSE, 4096, 8192),
    "collapse unaligned": (COLLAPSE, 100, 100),
    "collapse all": (COLLAPSE, 0, 65_536),
    "insert": (INSERT, 8192, 4096),
    "insert unaligned": (INSERT, 100, 100),
    "unshare": (UNSHARE, 0, 4096),
    "unknown": (0x1000, 0, 4096),
    "nothing": (0, 0, 0),
    "too far": (0, (1 << 63) - 4096, 4095),
}


def fill(layers: Layers) -> None:
    lower, upper = layers.lowers[0], layers.upper
    assert upper is not None
    for where in (lower, upper):
        sort = "lower" if where is lower else "upper"
        build.write(where / sort, DATA)
        build.write(where / f"{sort}-large", LARGE)
        with (where / f"{sort}-sparse").open("wb") as file:
            os.pwrite(file.fileno(), b"data", 1 << 20)
            file.truncate(3 << 20)
        program = build.write(where / f"{sort}-program", DATA, 0o6755)
        os.setxattr(program, CAPABILITY, CAP_NET_RAW)


@asynccontextmanager
async def file(client: Client, path: str, flags: int = os.O_RDWR) -> AsyncIterator[int]:
    async with client.node(path) as node:
        handle: int = (await client.fs.open(node, flags)).handle
        try:
            yield handle
        finally:
            client.fs.release(handle)


async def outcome(call: Any) -> int | None:
    """The errno of a call that may wait, or of one that is only named, or nothing."""
    try:
        await call() if callable(call) else await call
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("where", ["lower", "upper"])
@pytest.mark.parametrize("name", RANGES)
async def test_fallocate_as_a_plain_file(
    client: Client, scratch: Path, where: str, name: str
) -> None:
    mode, offset, length = RANGES[name]
    plain = build.write(scratch / "plain", DATA)
    expected = attempt(fallocate, plain, mode, offset, length).error
    async with file(client, where) as handle:
        found = await outcome(client.fs.fallocate(handle, offset, length, mode))
    assert (found and errno.errorcode[found]) == expected
    assert await client.read(where) == plain.read_bytes()


@pytest.mark.parametrize("where", ["lower", "upper"])
async def test_fallocate_reserves(client: Client, where: str) -> None:
    async with file(client, where) as handle:
        await client.fs.fallocate(handle, 0, 1 << 20, KEEP)
    async with client.node(where) as node:
        attr = client.fs.getattr(node)
    assert attr.status.st_size == len(DATA)
    assert attr.status.st_blocks * 512 >= 1 << 20


@pytest.mark.parametrize("where", ["lower", "upper"])
async def test_no_space(client: Client, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(syscalls, "fallocate", full)
    async with file(client, where) as handle:
        assert await outcome(client.fs.fallocate(handle, 0, 4096, 0)) == errno.ENOSPC
    assert await client.read(where) == DATA


@pytest.mark.parametrize("where", ["lower", "upper"])
@pytest.mark.parametrize("change", ["fallocate", "copy_range"])
async def test_set_ids_and_capabilities_go(client: Client, where: str, change: str) -> None:
    told = Told()
    client.fs.connect(told)
    async with (
        file(client, f"{where}-program") as handle,
        file(client, "lower", os.O_RDONLY) as source,
        client.node(f"{where}-program") as node,
    ):
        if change == "fallocate":
            await client.fs.fallocate(handle, 0, 10, ZERO)
        else:
            assert await client.fs.copy_range(source, 0, handle, 0, 10) == 10
        assert stat.S_IMODE(client.fs.getattr(node).status.st_mode) == 0o755
        assert CAPABILITY not in client.fs.listxattr(node, CALLER)
        assert node in told.nodes, "the kernel has the old mode"


class Told:
    """What the kernel is told of."""

    def __init__(self) -> None:
        self.nodes: list[int] = []

    def attributes_changed(self, node: int) -> None:
        self.nodes.append(node)

    def open_backing(self, fd: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "no passthrough", fd)

    def close_backing(self, backing: int) -> None:
        raise AssertionError(f"{backing} was never given out")


async def test_protected_while_it_is_open(client: Client) -> None:
    """The flag came after the open; a write goes on, as the kernel's overlayfs has it."""
    async with file(client, "lower") as handle, client.node("lower") as node:
        fs = client.fs
        flags = fs.get_flags(node)
        await fs.set_flags(node, flags | syscalls.FS_APPEND_FL)
        assert await outcome(fs.fallocate(handle, 0, 10, KEEP)) is None
        assert await outcome(fs.fallocate(handle, 0, 4096, PUNCH | KEEP)) == errno.EPERM
        assert await outcome(fs.copy_range(handle, 0, handle, 20_000, 10)) is None
        await fs.set_flags(node, flags | syscalls.FS_IMMUTABLE_FL)
        assert await outcome(fs.fallocate(handle, 0, 10, KEEP)) == errno.EPERM
        assert await outcome(fs.copy_range(handle, 0, handle, 20_000, 10)) == errno.EPERM
        await fs.set_flags(node, flags)


async def test_a_slow_range_holds_up_nobody(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it lose its file when that is closed meanwhile."""
    reached, go_on = threading.Event(), threading.Event()
    done: list[int] = []

    def slow(fd: int, *_arguments: int) -> None:
        reached.set()
        assert go_on.wait(20)
        done.append(os.fstat(fd).st_size)

    monkeypatch.setattr(syscalls, "fallocate", slow)
    async with client.node("upper") as node, trio.open_nursery() as nursery:
        handle = (await client.fs.open(node, os.O_RDWR)).handle
        nursery.start_soon(client.fs.fallocate, handle, 0, 10, 0)
        await trio.to_thread.run_sync(reached.wait, 20)
        with trio.fail_after(5):
            assert await client.read("lower") == DATA
            client.fs.release(handle)
        go_on.set()
    assert done == [len(DATA)]


@pytest.mark.parametrize("where", ["lower", "upper"])
async def test_seek(client: Client, where: str) -> None:
    async with file(client, f"{where}-sparse", os.O_RDONLY) as handle:
        assert client.fs.seek(handle, 0, os.SEEK_HOLE) == 0
        assert client.fs.seek(handle, 0, os.SEEK_DATA) == 1 << 20
        assert client.fs.seek(handle, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096
        assert await outcome(partial(client.fs.seek, handle, 2 << 20, os.SEEK_DATA)) == errno.ENXIO
        assert await outcome(partial(client.fs.seek, handle, 3 << 20, os.SEEK_HOLE)) == errno.ENXIO
        for whence in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 99):
            assert await outcome(partial(client.fs.seek, handle, 0, whence)) == errno.EINVAL
        assert await client.fs.read(handle, 0, 4) == bytes(4)


async def test_seek_after_a_copy_up_and_a_punch(client: Client) -> None:
    async with file(client, "lower") as handle:
        await client.fs.fallocate(handle, 8192, 4096, PUNCH | KEEP)
        assert client.fs.seek(handle, 0, os.SEEK_HOLE) == 8192
        assert client.fs.seek(handle, 8192, os.SEEK_DATA) == 12_288


@pytest.mark.parametrize("source", ["lower", "upper"])
@pytest.mark.parametrize("target", ["lower", "upper"])
@pytest.mark.parametrize("size", ["", "-large"])
async def test_copy(client: Client, layers: Layers, source: str, target: str, size: str) -> None:
    """*size* decides whether it is done at once or in a thread."""
    await client.create("empty")
    content = LARGE if size else DATA
    name = target if source != target else "empty"
    async with (
        file(client, source + size, os.O_RDONLY) as reader,
        file(client, name, os.O_WRONLY) as writer,
    ):
        assert await client.fs.copy_range(reader, 1000, writer, 10, 1 << 20) == len(content) - 1000
        assert await client.fs.copy_range(reader, len(content), writer, 0, 10) == 0
    wanted = b"" if name == "empty" else DATA
    expected = wanted[:10].ljust(10, b"\0") + content[1000:] + wanted[10 + len(content) - 1000 :]
    assert await client.read(name) == expected
    assert layers.upper is not None
    assert (layers.upper / name).exists()
    if source == "lower" != name:
        assert not (layers.upper / (source + size)).exists()


async def test_copy_within_one_lower_file(client: Client) -> None:
    async with file(client, "lower") as handle:
        assert await client.fs.copy_range(handle, 0, handle, 30_000, 20_000) == 20_000
        call = client.fs.copy_range(handle, 0, handle, 10, 1000)
        assert await outcome(call) == errno.EINVAL, "the ranges overlap"
    assert await client.read("lower") == DATA[:30_000] + DATA[:20_000]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSPC, errno.EIO])
async def test_copy_that_the_disk_refuses(
    client: Client, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The kernel reads and writes itself when it hears EXDEV or EOPNOTSUPP."""
    async with file(client, "lower") as reader, file(client, "upper") as writer:

        def refuses(*_arguments: int) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "copy_file_range", refuses)
        for length in (10, 1 << 20):
            assert await outcome(client.fs.copy_range(reader, 0, writer, 0, length)) == code


async def test_readers_of_a_copied_source_see_its_changes(client: Client) -> None:
    async with file(client, "lower") as source, file(client, "upper") as target:
        await client.fs.write(source, 0, b"changed")
        assert await client.fs.copy_range(source, 0, target, 0, 7) == 7
    assert (await client.read("upper"))[:7] == b"changed"


async def test_handles_that_are_not_open(client: Client) -> None:
    async with file(client, "upper") as handle:
        for call in (
            client.fs.fallocate(77, 0, 1, 0),
            partial(client.fs.seek, 77, 0, os.SEEK_DATA),
            client.fs.copy_range(77, 0, handle, 0, 1),
            client.fs.copy_range(handle, 0, 77, 0, 1),
        ):
            assert await outcome(call) == errno.EBADF


async def test_synchronous_files(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    async with file(client, "upper", os.O_RDWR | os.O_SYNC) as handle:
        await client.fs.fallocate(handle, 0, 10, ZERO)
        await client.fs.copy_range(handle, 0, handle, 50_000, 10)
    assert len(synced) == 2


async def test_truncated_meanwhile(client: Client) -> None:
    """Nothing keeps a copy from finding less than was there."""
    async with file(client, "upper") as handle, client.node("upper") as node:
        await client.fs.setattr(node, Changes(size=100))
        assert await client.fs.copy_range(handle, 90, handle, 1000, 1 << 20) == 10


def at_once(root: Path, where: str, mode: int, offset: int, length: int) -> Any:
    """fallocate(2) on a mount, and what came of it."""
    result = attempt(fallocate, root / where, mode, offset, length).error
    return result, (root / where).read_bytes()


#: What the kernel's FUSE client does not pass on: EOPNOTSUPP whatever the upper can do.
_NOT_BY_FUSE = COLLAPSE | INSERT | UNSHARE


@pytest.mark.device_session
@pytest.mark.kernel_overlay
@pytest.mark.parametrize("where", ["lower", "upper"])
@pytest.mark.parametrize("name", [name for name in RANGES if not RANGES[name][0] & _NOT_BY_FUSE])
def test_fallocate_as_the_kernel_has_it(pair: Make, where: str, name: str) -> None:
    both = pair(fill)
    both.same(lambda root: at_once(root, where, *RANGES[name]))
    both.same_tree()


@pytest.mark.device_session
@pytest.mark.kernel_overlay
@pytest.mark.parametrize("name", ["collapse", "insert"])
def test_ranges_that_the_kernel_keeps_to_itself(pair: Make, ours_only: None, name: str) -> None:
    both = pair(fill)
    assert at_once(both.theirs.root, "lower", *RANGES[name])[0] is None
    assert at_once(both.ours.root, "lower", *RANGES[name]) == ("ENOTSUP", DATA)


@pytest.mark.device_session
@pytest.mark.kernel_overlay
def test_roots_ranges_drop_setuid_too(pair: Make, ours_only: None) -> None:
    both = pair(fill)
    for one, mode in ((both.theirs, 0o6755), (both.ours, 0o755)):
        fallocate(one.root / "lower-program", 0, 0, 10)
        assert stat.S_IMODE((one.root / "lower-program").stat().st_mode) == mode


def map_of(path: Path) -> list[tuple[int, int]]:
    """Where data and holes begin."""
    found: list[tuple[int, int]] = []
    with path.open("rb") as one:
        size = os.fstat(one.fileno()).st_size
        end = 0
        while end < size:
            step = attempt(os.lseek, one.fileno(), end, os.SEEK_DATA)
            if step.error is not None:
                assert step.error == "ENXIO"
                break
            end = os.lseek(one.fileno(), step.value, os.SEEK_HOLE)
            found.append((step.value, end))
    return found


@pytest.mark.device_session
@pytest.mark.kernel_overlay
@pytest.mark.parametrize("where", ["lower", "lower-sparse", "upper-sparse"])
def test_seek_as_the_kernel_has_it(pair: Make, where: str) -> None:
    pair(fill).same(lambda root: map_of(root / where))


@pytest.mark.device_session
@pytest.mark.kernel_overlay
@pytest.mark.parametrize("where", ["lower", "upper-sparse"])
def test_punch_as_the_kernel_has_it(pair: Make, where: str) -> None:
    """Not of a sparse lower: its copy has the holes that overlayfs fills."""
    both = pair(fill)
    both.same(lambda root: fallocate(root / where, PUNCH | KEEP, 8192, 8192))
    both.same(lambda root: map_of(root / where))
    both.same_tree()


@pytest.mark.device_session
@pytest.mark.kernel_overlay
@pytest.mark.parametrize("source", ["lower-large", "upper-large", "lower"])
@pytest.mark.parametrize("target", ["lower", "upper", "new"])
def test_copy_as_the_kernel_has_it(pair: Make, source: str, target: str) -> None:
    def copy(root: Path) -> Any:
        flags = os.O_RDWR | os.O_CREAT
        reader, writer = os.open(root / source, os.O_RDONLY), os.open(root / target, flags, 0o644)
        try:
            small = attempt(os.copy_file_range, reader, writer, 100, 5, 7)
            large = attempt(os.copy_file_range, reader, writer, 1 << 20, 10_000, 200_000)
            beyond = attempt(os.copy_file_range, reader, writer, 100, 1 << 20, 0)
            return small, large, beyond
        finally:
            os.close(reader)
            os.close(writer)

    both = pair(fill)
    both.same(copy)
    both.same_everywhere()
