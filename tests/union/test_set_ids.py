"""What takes setuid, setgid and capabilities away: writes, truncations, new owners."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import build
from tests.mounts import Layers
from tests.oracle import Pair
from tests.system import attempt, fallocate, in_child
from tests.union.client import CALLER, Client, opened
from tests.union.test_ranges import CAP_NET_RAW, Told
from unionfs.fuse.interface import Changes
from unionfs.layer.xattrs import CAPABILITY

pytestmark = [pytest.mark.needs_root]
#: How files are opened matters here.
OPENLESS_TOO = True

Make = Callable[..., Pair]
MODES = [0o4755, 0o2755, 0o6755, 0o2745, 0o6644, 0o755]
OWNER, STRANGER = 1000, 4321


def program(path: Path, mode: int) -> None:
    build.write(path, "program")
    os.chown(path, OWNER, OWNER)
    os.setxattr(path, CAPABILITY, CAP_NET_RAW)
    path.chmod(mode)


def fill(layers: Layers) -> None:
    for sort, where in (("lower", layers.lowers[0]), ("upper", layers.upper)):
        assert where is not None
        for mode in MODES:
            program(where / f"{sort}-{mode:o}", mode)
        (where / f"{sort}-directory").mkdir()
        os.mkfifo(where / f"{sort}-fifo")
        for name in ("directory", "fifo"):
            (where / f"{sort}-{name}").chmod(0o6775)


def stripped(mode: int) -> int:
    return mode & ~stat.S_ISUID & ~(stat.S_ISGID if mode & stat.S_IXGRP else 0)


async def seen(client: Client, path: str) -> tuple[int, bool]:
    async with client.node(path) as node:
        names = client.fs.listxattr(node, CALLER)
        return stat.S_IMODE(client.fs.getattr(node).status.st_mode), CAPABILITY in names


async def change(client: Client, path: str, changes: Changes) -> None:
    async with client.node(path) as node:
        await client.fs.setattr(node, changes)


async def write(client: Client, path: str, *, keeps: bool) -> None:
    async with client.node(path) as node:
        handle = (await client.fs.open(node, os.O_WRONLY)).handle
        assert await client.fs.write(handle, 0, b"other", keeps_set_ids=keeps) == 5
        client.fs.release(handle)


DATA_CHANGES: dict[str, Callable[[Client, str, bool], Awaitable[None]]] = {
    "shorter": lambda c, p, k: change(c, p, Changes(size=3, keeps_set_ids=k)),
    "empty": lambda c, p, k: change(c, p, Changes(size=0, keeps_set_ids=k)),
    "longer": lambda c, p, k: change(c, p, Changes(size=300, keeps_set_ids=k)),
    "same size": lambda c, p, k: change(c, p, Changes(size=7, keeps_set_ids=k)),
    "write": lambda c, p, k: write(c, p, keeps=k),
}
OWNER_CHANGES = {
    "owner": Changes(uid=5),
    "group": Changes(gid=5),
    "both": Changes(uid=5, gid=5),
    "the same": Changes(uid=OWNER, gid=OWNER),
}


@pytest.mark.parametrize("sort", ["lower", "upper"])
@pytest.mark.parametrize("name", DATA_CHANGES)
@pytest.mark.parametrize("keeps", [False, True])
async def test_changes_of_data(client: Client, sort: str, name: str, keeps: bool) -> None:
    for mode in MODES:
        path = f"{sort}-{mode:o}"
        assert await seen(client, path) == (mode, True)
        await DATA_CHANGES[name](client, path, keeps)
        assert await seen(client, path) == (mode if keeps else stripped(mode), False)


@pytest.mark.parametrize("sort", ["lower", "upper"])
@pytest.mark.parametrize("name", OWNER_CHANGES)
@pytest.mark.parametrize("keeps", [False, True])
async def test_changes_of_the_owner(client: Client, sort: str, name: str, keeps: bool) -> None:
    """CAP_FSETID does not help: chown(2) by root takes them, too."""
    changes = OWNER_CHANGES[name]
    changes = Changes(uid=changes.uid, gid=changes.gid, keeps_set_ids=keeps)
    for mode in MODES:
        path = f"{sort}-{mode:o}"
        await change(client, path, changes)
        assert await seen(client, path) == (stripped(mode), False)
    await change(client, f"{sort}-directory", changes)
    assert (await seen(client, f"{sort}-directory"))[0] == 0o6775
    await change(client, f"{sort}-fifo", changes)
    assert (await seen(client, f"{sort}-fifo"))[0] == 0o775


@pytest.mark.parametrize("sort", ["lower", "upper"])
@pytest.mark.parametrize("keeps", [False, True])
async def test_no_new_owner_takes_nothing(client: Client, sort: str, keeps: bool) -> None:
    """A stranger may ask for that: chown(path, -1, -1) is not refused by the kernel."""
    for mode in MODES:
        async with client.node(f"{sort}-{mode:o}") as node:
            before = client.fs.getattr(node)
            after = await client.fs.setattr(node, Changes(keeps_set_ids=keeps))
        assert await seen(client, f"{sort}-{mode:o}") == (mode, True)
        old, new = before.status, after.status
        assert (new.st_atime_ns, new.st_mtime_ns) == (old.st_atime_ns, old.st_mtime_ns)
        assert new.st_ctime_ns > old.st_ctime_ns


@pytest.mark.parametrize("sort", ["lower", "upper"])
async def test_a_mode_set_with_the_owner_is_the_mode(client: Client, sort: str) -> None:
    await change(client, f"{sort}-755", Changes(uid=5, mode=0o6711))
    assert await seen(client, f"{sort}-755") == (0o6711, False)


@pytest.mark.parametrize("sort", ["lower", "upper"])
async def test_squashed_owners_lose_them_too(layers: Layers, sort: str, ours_only: None) -> None:
    fill(layers)
    with opened(layers, squash_to_uid=0, squash_to_gid=0) as client:
        await change(client, f"{sort}-6755", Changes(uid=0, gid=0))
        assert await seen(client, f"{sort}-6755") == (0o755, False)


@pytest.mark.parametrize("sort", ["lower", "upper"])
async def test_one_may_keep_what_the_next_may_not(client: Client, sort: str) -> None:
    async with client.node(f"{sort}-6755") as node:
        handle = (await client.fs.open(node, os.O_WRONLY)).handle
        for keeps, mode in ((True, 0o6755), (True, 0o6755), (False, 0o755), (True, 0o755)):
            await client.fs.write(handle, 0, b"x", keeps_set_ids=keeps)
            assert stat.S_IMODE(client.fs.getattr(node).status.st_mode) == mode
        await client.fs.setxattr(node, CAPABILITY, CAP_NET_RAW, 0, CALLER)
        await client.fs.setattr(node, Changes(mode=0o4755))
        await client.fs.write(handle, 0, b"x", keeps_set_ids=True)
        assert await seen(client, f"{sort}-6755") == (0o4755, False)
        client.fs.release(handle)


@pytest.mark.parametrize("sort", ["lower", "upper"])
async def test_the_kernel_is_told_of_a_mode_it_does_not_set(client: Client, sort: str) -> None:
    told = Told()
    client.fs.connect(told)
    for mode, expected in ((0o6755, True), (0o755, False)):
        async with client.node(f"{sort}-{mode:o}") as node:
            for flags in (os.O_WRONLY, os.O_WRONLY | os.O_TRUNC):
                await client.fs.setattr(node, Changes(mode=mode))
                told.nodes.clear()
                handle = (await client.fs.open(node, flags)).handle
                await client.fs.write(handle, 0, b"x")
                client.fs.release(handle)
                assert (node in told.nodes) is expected


# Mounts, as the kernel's overlayfs has them


def _write(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, b"other")
    finally:
        os.close(fd)


ON_A_MOUNT: dict[str, Callable[[Path], Any]] = {
    "write": _write,
    "truncate": lambda path: os.truncate(path, 3),
    "truncate to nothing": lambda path: os.truncate(path, 0),
    "open with O_TRUNC": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "chown": lambda path: os.chown(path, 5, 5),
    "chown to the same": lambda path: os.chown(path, OWNER, OWNER),
    "chgrp": lambda path: os.chown(path, -1, OWNER),
    "chmod": lambda path: os.chmod(path, 0o6711),
}


def _as_user(function: Callable[[], Any], uid: int | None) -> Any:
    return in_child(function, uid=uid)


def on_a_mount(root: Path, name: str, uid: int | None) -> list[Any]:
    """Do it to every program and tell what is left."""
    found: list[Any] = []
    for sort in ("lower", "upper"):
        for mode in MODES:
            path = root / f"{sort}-{mode:o}"
            outcome = attempt(_as_user, partial(ON_A_MOUNT[name], path), uid)
            has = os.fsdecode(CAPABILITY) in os.listxattr(path)
            found.append((outcome.error, stat.S_IMODE(path.stat().st_mode), has))
    return found


@pytest.mark.device_session
@pytest.mark.kernel_overlay
@pytest.mark.parametrize("name", ON_A_MOUNT)
@pytest.mark.parametrize("uid", [None, OWNER, STRANGER])
def test_as_the_kernel_has_it(pair: Make, name: str, uid: int | None) -> None:
    both = pair(fill)
    both.same(lambda root: on_a_mount(root, name, uid))
    both.same_tree()


@pytest.mark.device_session
@pytest.mark.kernel_overlay
def test_fallocate_by_an_ordinary_user(pair: Make) -> None:
    def reserve(root: Path) -> list[Any]:
        return [
            attempt(_as_user, partial(fallocate, path, 0, 0, 99), OWNER).error
            for path in sorted(root.iterdir())
            if path.is_file()
        ]

    both = pair(fill)
    both.same(reserve)
    both.same_tree()


@pytest.mark.device_session
@pytest.mark.kernel_overlay
@pytest.mark.parametrize("uid", [None, OWNER, STRANGER])
def test_chown_to_nobody_takes_nothing(pair: Make, ours_only: None, uid: int | None) -> None:
    """The kernel does not tell it from other requests, nor ask whether it is allowed."""

    def chown(root: Path) -> list[Any]:
        modes = []
        for mode in MODES:
            path = root / f"lower-{mode:o}"
            outcome = attempt(_as_user, partial(os.chown, path, -1, -1), uid)
            modes.append((outcome.error, stat.S_IMODE(path.stat().st_mode)))
        return modes

    both = pair(fill)
    assert chown(both.ours.root) == [(None, mode) for mode in MODES]
    refused = uid == STRANGER
    theirs = [
        ("EPERM", mode) if refused and mode & 0o6000 else (None, stripped(mode)) for mode in MODES
    ]
    assert chown(both.theirs.root) == theirs
