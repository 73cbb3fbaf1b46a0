"""Inode flags (chattr, lsattr), fs-verity and birth times."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import build
from tests.mounts import Layers
from tests.oracle import Pair
from tests.system import attempt, in_child
from tests.union.client import Client, opened
from tests.union.test_protected import changes
from tests.union.test_ranges import Told, outcome
from unionfs.fuse.interface import Changes
from unionfs.layer import syscalls
from unionfs.layer.syscalls import FS_APPEND_FL as A
from unionfs.layer.syscalls import FS_IMMUTABLE_FL as I
from unionfs.layer.syscalls import FS_NOATIME_FL as NOATIME
from unionfs.layer.syscalls import FS_SYNC_FL as SYNC

pytestmark = [pytest.mark.needs_root]

Make = Callable[..., Pair]
PROTATTR = "trusted.overlay.protattr"
NODUMP = 0x40


def fill(layers: Layers) -> None:
    for where in (layers.lowers[0], layers.upper):
        assert where is not None
        sort = "lower" if where is layers.lowers[0] else "upper"
        build.write(where / sort / "file", "content")
        os.mkfifo(where / sort / "fifo")
        os.symlink("file", where / sort / "symlink")
        build.write(where / sort / "flagged" / "file", "content")
        names = (where / sort / "flagged", where / sort / "flagged" / "file")
        subprocess.run(["chattr", "+ASd", *names], check=True)


async def get(client: Client, path: str) -> int:
    async with client.node(path) as node:
        flags: int = client.fs.get_flags(node)
        (xflags,) = struct.unpack_from("=I", client.fs.get_xflags(node))
        assert bool(flags & I) == bool(xflags & syscalls.FS_XFLAG_IMMUTABLE)
        assert bool(flags & A) == bool(xflags & syscalls.FS_XFLAG_APPEND)
        return flags


async def put(client: Client, path: str, flags: int) -> None:
    async with client.node(path) as node:
        await client.fs.set_flags(node, flags)


def real(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return syscalls.inode_flags(fd)
    finally:
        os.close(fd)


def mark(path: Path) -> bytes | None:
    return os.getxattr(path, PROTATTR) if PROTATTR in os.listxattr(path) else None


@pytest.mark.parametrize("path", ["lower", "upper", "lower/file", "upper/file"])
@pytest.mark.parametrize(("bits", "letters"), [(I, b"i"), (A, b"a"), (A | I, b"ai")])
async def test_protection_is_a_mark(
    client: Client, layers: Layers, path: str, bits: int, letters: bytes
) -> None:
    before = await get(client, path)
    assert layers.upper is not None
    await put(client, path, before | bits)
    assert await get(client, path) == before | bits
    assert mark(layers.upper / path) == letters
    assert real(layers.upper / path) & (A | I) == 0
    assert await outcome(client.chmod(path, 0o700)) == errno.EPERM
    await put(client, path, before)
    assert await get(client, path) == before
    assert mark(layers.upper / path) is None
    await client.chmod(path, 0o700)


@pytest.mark.parametrize("path", ["lower", "upper", "lower/file", "upper/file"])
async def test_other_flags_are_the_uppers(client: Client, layers: Layers, path: str) -> None:
    before = await get(client, path)
    await put(client, path, before | NODUMP | NOATIME)
    assert layers.upper is not None
    assert real(layers.upper / path) == before | NODUMP | NOATIME
    assert await get(client, path) == before | NODUMP | NOATIME
    assert mark(layers.upper / path) is None


@pytest.mark.parametrize("path", ["lower/flagged", "lower/flagged/file"])
async def test_flags_that_come_with_a_copy(client: Client, layers: Layers, path: str) -> None:
    """S and A, as with the kernel's overlayfs; ``d`` stays behind."""
    assert await get(client, path) & (SYNC | NOATIME | NODUMP) == SYNC | NOATIME | NODUMP
    await client.chmod(path, 0o700)
    assert await get(client, path) & (SYNC | NOATIME | NODUMP) == SYNC | NOATIME
    assert layers.upper is not None
    assert real(layers.upper / path) & (SYNC | NOATIME | NODUMP) == SYNC | NOATIME


@pytest.mark.parametrize("sort", ["lower", "upper"])
@pytest.mark.parametrize("name", ["fifo", "symlink"])
async def test_objects_without_flags(client: Client, layers: Layers, sort: str, name: str) -> None:
    async with client.node(f"{sort}/{name}") as node:
        for call in (
            partial(client.fs.get_flags, node),
            partial(client.fs.get_xflags, node),
            client.fs.set_flags(node, NODUMP),
            partial(client.fs.measure_verity, node, 32),
        ):
            assert await outcome(call) == errno.ENOTTY
    assert layers.upper is not None
    assert not (layers.upper / "lower").exists(), "copied up for nothing"


async def test_read_only(layers: Layers, ours_only: None) -> None:
    fill(layers)
    layers.upper = layers.work = None
    with opened(layers) as client:
        flags = await get(client, "lower/flagged")
        assert flags & NOATIME
        assert await outcome(put(client, "lower/file", flags)) == errno.EROFS
        await client.fs.syncfs()


async def test_flags_of_an_open_and_of_a_removed_file(client: Client) -> None:
    async with client.node("lower/file") as node:
        handle = (await client.fs.open(node, os.O_RDONLY)).handle
        before = await get(client, "lower/file")
        await client.unlink("lower/file")
        assert client.fs.get_flags(node) == before
        await client.fs.set_flags(node, before | NODUMP | I)
        assert client.fs.get_flags(node) == before | NODUMP | I
        await client.fs.set_flags(node, before)
        client.fs.release(handle)


async def test_the_kernel_is_told(client: Client) -> None:
    told = Told()
    client.fs.connect(told)
    async with client.node("lower/file") as node, client.node("lower") as parent:
        await client.fs.set_flags(node, NODUMP)
        assert told.nodes[-1] == node
        assert parent in told.nodes, "it was copied up on the way"


@pytest.mark.parametrize("path", ["lower/file", "upper/file"])
async def test_a_mark_that_cannot_be_made(
    client: Client, layers: Layers, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await get(client, path)

    def fails(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as broken:
        broken.setattr(type(client.fs._tree.upper_layer), "write_mark", fails)
        found = await outcome(put(client, path, before | NODUMP | I))
    assert found == errno.ENOSPC
    assert await get(client, path) == before
    await put(client, path, before | NODUMP | I)
    assert await get(client, path) == before | NODUMP | I
    await put(client, path, before)


async def test_flags_that_the_disk_refuses(
    client: Client, layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_fd: int, _flags: int) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    before = await get(client, "upper/file")
    monkeypatch.setattr(syscalls, "set_inode_flags", refuses)
    assert await outcome(put(client, "upper/file", I)) == errno.EPERM
    assert await get(client, "upper/file") == before


async def test_really_immutable_in_the_upper(client: Client, layers: Layers) -> None:
    """As older kernels left it: shown, enforced, and cleared where overlayfs cannot."""
    assert layers.upper is not None
    fd = os.open(layers.upper / "upper" / "file", os.O_RDONLY)
    syscalls.set_inode_flags(fd, syscalls.inode_flags(fd) | I)
    os.close(fd)
    flags = await get(client, "upper/file")
    assert flags & I
    assert await outcome(client.chmod("upper/file", 0o700)) == errno.EPERM
    await put(client, "upper/file", flags & ~I)
    assert not real(layers.upper / "upper" / "file") & I
    await client.chmod("upper/file", 0o700)


@pytest.mark.parametrize("path", ["lower/file", "upper/file"])
async def test_verity_where_the_disk_has_none(client: Client, path: str) -> None:
    async with client.node(path) as node:
        for size in (0, 32, 1 << 20):
            expected = attempt(_measure, client.fs._tree.stack.lowers[0].path + b"/lower/file")
            found = await outcome(partial(client.fs.measure_verity, node, size))
            assert errno.errorcode[found or 0] == expected.error


def _measure(path: bytes) -> None:
    with open(path, "rb") as one:
        syscalls.measure_verity(one.fileno(), 32)


@pytest.mark.parametrize("size", [32, 64])
async def test_verity_as_the_disk_says(
    client: Client, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """No disk here has it, so the answer is made up: what matters is the struct."""

    def answers(_fd: int, request: int, buffer: bytearray) -> int:
        assert request == 0xC0046686
        assert len(buffer) == 4 + size
        assert struct.unpack_from("=HH", buffer) == (0, size)
        buffer[: 4 + 32] = struct.pack("=HH", 1, 32) + bytes(range(32))
        return 0

    async with client.node("lower/file") as node:
        with monkeypatch.context() as fake:
            fake.setattr(fcntl, "ioctl", answers)
            found = client.fs.measure_verity(node, size)
    assert found == struct.pack("=HH", 1, 32) + bytes(range(32))


@pytest.mark.parametrize("path", ["lower/file", "lower", "lower/symlink", "lower/fifo"])
async def test_birth_is_that_of_what_is_shown(client: Client, layers: Layers, path: str) -> None:
    assert layers.upper is not None
    async with client.node(path) as node:
        assert client.fs.birth_time(node) == birth(layers.lowers[0] / path)
        await client.fs.setattr(node, Changes(uid=0))
        copied = client.fs.birth_time(node)
    assert copied == birth(layers.upper / path)
    assert copied != birth(layers.lowers[0] / path)


def birth(path: Path) -> int | None:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return syscalls.birth_time(fd)
    finally:
        os.close(fd)


async def test_birth_that_nobody_knows(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_statx", lambda *_arguments: bytes(256))
    async with client.node("lower/file") as node:
        assert client.fs.birth_time(node) is None


@pytest.mark.parametrize("volatile", [False, True])
async def test_syncfs(
    layers: Layers, monkeypatch: pytest.MonkeyPatch, ours_only: None, volatile: bool
) -> None:
    calls: list[int] = []
    original = syscalls.syncfs

    def counted(fd: int) -> None:
        calls.append(fd)
        original(fd)

    monkeypatch.setattr(syscalls, "syncfs", counted)
    fill(layers)
    with opened(layers, volatile=volatile) as client:
        await client.fs.syncfs()
    assert len(calls) == (0 if volatile else 1)


async def test_syncfs_tells_of_a_loss(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_fd: int) -> None:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(syscalls, "syncfs", lost)
    assert await outcome(client.fs.syncfs()) == errno.EIO


# Mounts, as the kernel's overlayfs has them


def chattr(root: Path, path: str, change: Callable[[int], int]) -> list[Any]:
    """Change the flags of *path* and tell what shows then."""
    fd = os.open(root / path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        seen: list[Any] = [attempt(syscalls.inode_flags, fd)]
        if seen[0].error is None:
            flags = change(seen[0].value)
            seen.append(attempt(syscalls.set_inode_flags, fd, flags))
        seen.append(attempt(syscalls.inode_flags, fd))
        seen.append(attempt(syscalls.extended_flags, fd))
        return seen
    finally:
        os.close(fd)


CHANGES: dict[str, Callable[[int], int]] = {
    "+i": lambda flags: flags | I,
    "+a": lambda flags: flags | A,
    "+ai": lambda flags: flags | A | I,
    "+d": lambda flags: flags | NODUMP,
    "+iA": lambda flags: flags | I | NOATIME,
    "-AS": lambda flags: flags & ~(NOATIME | SYNC),
    "nothing": lambda flags: flags,
    "unknown": lambda flags: flags | 0x00400000,
}
PATHS = ["lower", "lower/file", "lower/flagged", "lower/flagged/file", "upper", "upper/file"]


@pytest.mark.device_session
@pytest.mark.kernel_overlay
@pytest.mark.parametrize("path", [*PATHS, "lower/fifo", "upper/fifo"])
@pytest.mark.parametrize("change", CHANGES)
def test_chattr_as_the_kernel_has_it(pair: Make, path: str, change: str) -> None:
    both = pair(fill)
    both.same(lambda root: chattr(root, path, CHANGES[change]))
    both.same(lambda root: attempt(os.chmod, root / path, 0o700))
    both.remount()
    both.same(lambda root: chattr(root, path, lambda flags: flags))
    both.cross()
    both.same(lambda root: attempt(os.chmod, root / path, 0o700))
    both.same(lambda root: chattr(root, path, lambda flags: flags & ~(A | I)))
    both.same(lambda root: attempt(os.chmod, root / path, 0o711))
    both.same_tree()


@pytest.mark.device_session
@pytest.mark.kernel_overlay
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mine", [False, True])
def test_chattr_by_an_ordinary_user(pair: Make, change: str, mine: bool) -> None:
    def make(layers: Layers) -> None:
        fill(layers)
        if mine:
            os.chown(layers.lowers[0] / "lower" / "file", 1000, 1000)

    both = pair(make)
    both.same(lambda root: in_child(partial(chattr, root, "lower/file", CHANGES[change]), uid=1000))
    both.same_tree()


@pytest.mark.opens
@pytest.mark.device_session
@pytest.mark.kernel_overlay
@pytest.mark.parametrize("flag", ["a", "i"])
def test_what_chattr_protects(pair: Make, flag: str) -> None:
    """All that ``test_protected`` tries, with flags that came through the mount."""

    def make(layers: Layers) -> None:
        build.write(layers.lowers[0] / f"file-{flag}", "content")
        build.write(layers.lowers[0] / f"directory-{flag}" / "inside", "inside")
        build.write(layers.lowers[0] / f"directory-{flag}" / "sub" / "deep", "deep")

    both = pair(make)
    for one in (both.theirs, both.ours):
        names = (one.root / f"file-{flag}", one.root / f"directory-{flag}")
        subprocess.run(["chattr", f"+{flag}", *names], check=True)
    both.same(lambda root: changes(root, flag))
    both.remount()
    both.same(lambda root: changes(root, flag))
    both.cross()
    both.same(lambda root: changes(root, flag))


@pytest.mark.device_session
@pytest.mark.kernel_overlay
@pytest.mark.parametrize("path", ["lower/file", "upper/file", "lower", "lower/symlink"])
def test_births_are_known(pair: Make, path: str) -> None:
    def is_of(sort: str, root: Path) -> bool:
        layers = (both.theirs if root == both.theirs.root else both.ours).layers
        where = layers.lowers[0] if sort == "lower" else layers.upper
        assert where is not None
        return birth(root / path) == birth(where / path)

    both = pair(fill)
    if path.startswith("lower"):
        assert both.same(partial(is_of, "lower")).value
        both.same(lambda root: os.chown(root / path, 0, 5, follow_symlinks=False))
        both.remount()  # what was copied up meanwhile has the birth time that was asked for
    assert both.same(partial(is_of, "upper")).value


@pytest.mark.device_session
@pytest.mark.kernel_overlay
def test_births_stay_in_the_kernels_cache(pair: Make, ours_only: None) -> None:
    both = pair(fill)
    for one, stays in ((both.theirs, False), (both.ours, True)):
        before = birth(one.root / "lower" / "file")
        (one.root / "lower" / "file").chmod(0o600)
        assert (birth(one.root / "lower" / "file") == before) is stays


@pytest.mark.device_session
@pytest.mark.kernel_overlay
def test_syncfs_through_the_mount(pair: Make) -> None:
    def sync(root: Path) -> None:
        fd = os.open(root, os.O_RDONLY)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)

    pair(fill).same(sync)
