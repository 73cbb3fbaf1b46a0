"""Files without a name (O_TMPFILE): what they are, and that they may be given one."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import build
from tests.mounts import Layers
from tests.oracle import Pair
from tests.system import attempt
from tests.union.client import CALLER, Client, opened
from unionfs.fuse.interface import ROOT_ID, Entry
from unionfs.layer.xattrs import ACL_ACCESS, ACL_DEFAULT

pytestmark = [pytest.mark.needs_root]
#: How files are opened matters here.
OPENLESS_TOO = True

overlayfs_has_them = pytest.mark.since(6, 10, "overlayfs makes files without a name")

Make = Callable[..., Pair]
DEFAULT = build.acl(
    (build.USER_OBJ, 7, build.NO_ID),
    (build.USER, 7, 1234),
    (build.GROUP_OBJ, 5, build.NO_ID),
    (build.MASK, 7, build.NO_ID),
    (build.OTHER, 0, build.NO_ID),
)


def fill(layers: Layers) -> None:
    lower = layers.lowers[0]
    build.write(lower / "d" / "file", "lower")
    build.write(lower / "d" / "gone", "lower")
    (lower / "group").mkdir()
    os.chown(lower / "group", 0, 77)
    (lower / "group").chmod(0o2775)
    (lower / "acl").mkdir()
    os.setxattr(lower / "acl", ACL_DEFAULT, DEFAULT)
    assert layers.upper is not None
    (layers.upper / "mine").mkdir()


async def make(
    client: Client, directory: str, mode: int = 0o644, flags: int = 0, **caller: Any
) -> tuple[Entry, int]:
    async with client.node(directory) as parent:
        who = CALLER._replace(**caller)
        entry, file = client.fs.tmpfile(parent, mode, os.O_RDWR | flags, who)
    client.took(entry)
    return entry, file.handle


async def drop(client: Client, entry: Entry, handle: int) -> None:
    client.fs.release(handle)
    client.forget(entry.node)


async def name(client: Client, entry: Entry, path: str) -> Entry:
    async with client.place(path) as (parent, last):
        linked: Entry = await client.fs.link(entry.node, parent, last)
        client.forget(client.took(linked))
        return linked


async def test_it_has_no_name_and_leaves_nothing(client: Client, layers: Layers) -> None:
    entry, handle = await make(client, "d")
    assert entry.attr.nlink == 0
    assert await client.fs.write(handle, 0, b"secret") == 6
    assert await client.fs.read(handle, 0, 100) == b"secret"
    assert client.fs.getattr(entry.node).status.st_size == 6
    assert await client.names("d") == ["file", "gone"]
    assert layers.work is not None
    assert layers.upper is not None
    assert os.listdir(layers.work / "work") == []
    assert not (layers.upper / "d").exists(), "nothing in the directory changed"
    await drop(client, entry, handle)
    assert len(client.fs._nodes) == 1


@pytest.mark.parametrize(
    ("directory", "mode", "gid"), [("d", 0o640, 5678), ("mine", 0o640, 5678), ("group", 0o640, 77)]
)
async def test_it_is_its_makers(client: Client, directory: str, mode: int, gid: int) -> None:
    entry, handle = await make(client, directory, 0o666, uid=1234, gid=5678, umask=0o027)
    assert (entry.attr.uid, entry.attr.gid) == (1234, gid)
    assert entry.attr.status.st_mode == stat.S_IFREG | mode
    await drop(client, entry, handle)


async def test_a_default_acl_counts_from_when_it_is_set(client: Client) -> None:
    """That there was none is remembered from one new file to the next."""
    parent = client.took(client.fs.mkdir(ROOT_ID, b"later", 0o755, CALLER))
    who = CALLER._replace(umask=0o077)
    for name, mode in ((b"before", 0o600), (b"after", 0o660)):
        entry, file = client.fs.create(parent, name, 0o666, os.O_RDWR, who)
        assert entry.attr.status.st_mode & 0o777 == mode
        client.fs.release(file.handle)
        client.forget(client.took(entry))
        await client.setxattr("later", ACL_DEFAULT, DEFAULT)
    client.forget(parent)


async def test_it_inherits_the_acl_in_place_of_the_umask(client: Client) -> None:
    entry, handle = await make(client, "acl", 0o666, umask=0o077)
    assert entry.attr.status.st_mode & 0o777 == 0o660
    assert build.USER.to_bytes(2, "little") in client.fs.getxattr(entry.node, ACL_ACCESS)
    await drop(client, entry, handle)


async def test_it_can_be_given_names(client: Client, layers: Layers) -> None:
    entry, handle = await make(client, "d")
    await client.fs.write(handle, 0, b"kept")
    first = await name(client, entry, "d/named")
    assert (first.node, first.attr.nlink) == (entry.node, 1)
    assert (await name(client, entry, "mine/other")).attr.nlink == 2
    await drop(client, entry, handle)
    assert await client.read("d/named") == b"kept"
    async with client.node("mine/other") as node:
        assert node == entry.node
    await client.unlink("d/named")
    await client.unlink("mine/other")
    assert len(client.fs._nodes) == 1
    assert layers.work is not None
    assert os.listdir(layers.work / "index") == []


async def test_names_that_go_again_cannot_come_back(client: Client) -> None:
    entry, handle = await make(client, "d")
    await name(client, entry, "d/named")
    await client.unlink("d/named")
    assert client.fs.getattr(entry.node).nlink == 0
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        await name(client, entry, "d/again")
    await drop(client, entry, handle)


async def test_an_exclusive_one_never_has_a_name(client: Client) -> None:
    entry, handle = await make(client, "d", flags=os.O_EXCL)
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        await name(client, entry, "d/named")
    await drop(client, entry, handle)


async def test_it_can_take_the_place_of_a_whiteout(client: Client, layers: Layers) -> None:
    await client.unlink("d/gone")
    entry, handle = await make(client, "d")
    await name(client, entry, "d/gone")
    await drop(client, entry, handle)
    assert await client.read("d/gone") == b""
    assert layers.upper is not None
    assert stat.S_ISREG(os.lstat(layers.upper / "d" / "gone").st_mode)


async def test_a_name_that_is_taken(client: Client) -> None:
    entry, handle = await make(client, "d")
    with pytest.raises(FileExistsError):
        await name(client, entry, "d/file")
    assert (await name(client, entry, "d/free")).attr.nlink == 1
    await drop(client, entry, handle)


async def test_a_link_that_fails_can_be_tried_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, handle = await make(client, "d")

    def fails(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.EIO, "the disk fails")

    with monkeypatch.context() as broken:
        broken.setattr(os, "link", fails)
        with pytest.raises(OSError, match="the disk fails"):
            await name(client, entry, "d/named")
    assert "named" not in await client.names("d")
    assert (await name(client, entry, "d/named")).attr.nlink == 1
    await drop(client, entry, handle)


async def test_a_disk_that_has_none(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.open

    def refuses(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return original(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuses)
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        await make(client, "d")


async def test_it_does_not_outlive_the_mount(layers: Layers, ours_only: None) -> None:
    fill(layers)
    with opened(layers) as client:
        entry, handle = await make(client, "d")
        await client.fs.write(handle, 0, bytes(1 << 20))
        os.close(client.fs._nodes.get(entry.node).opened.fd)  # the daemon is killed
        client.fs._nodes.get(entry.node).unpin()
    with opened(layers) as client:
        assert await client.names("d") == ["file", "gone"]
        assert await client.names("mine") == []


async def test_a_read_only_union_has_none(layers: Layers, ours_only: None) -> None:
    fill(layers)
    layers.upper = layers.work = None
    with opened(layers) as client, pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        client.fs.tmpfile(ROOT_ID, 0o600, os.O_RDWR, CALLER)


def make_and_name(directory: Path, mode: int, flags: int) -> list[Any]:
    """What a program sees of a file without a name, and of the name it gets."""
    umask = os.umask(0o027)
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | flags, mode)
    finally:
        os.umask(umask)
    try:
        os.write(fd, b"content")
        seen: list[Any] = [_status(os.fstat(fd)), sorted(os.listdir(directory))]
        here = os.open(directory, os.O_PATH)
        linked = attempt(
            lambda: os.link(f"/proc/self/fd/{fd}", "new", dst_dir_fd=here, follow_symlinks=True)
        )
        os.close(here)
        seen += [linked.error, _status(os.fstat(fd)), sorted(os.listdir(directory))]
        return seen
    finally:
        os.close(fd)


def _status(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_size)


@pytest.mark.device_session
@pytest.mark.kernel_overlay
@overlayfs_has_them
@pytest.mark.parametrize("directory", ["d", "mine", "group", "acl", "."])
@pytest.mark.parametrize(("mode", "flags"), [(0o666, 0), (0o4755, 0), (0o600, os.O_EXCL)])
def test_as_the_kernel_has_it(pair: Make, directory: str, mode: int, flags: int) -> None:
    both = pair(fill)
    both.same(lambda root: make_and_name(root / directory, mode, flags))
    # For one that never gets a name ours copies nothing up; the kernel's copies its directory.
    both.same_everywhere(ignore=["nlink"] if flags & os.O_EXCL else [])


@pytest.mark.device_session
@pytest.mark.kernel_overlay
@overlayfs_has_them
@pytest.mark.parametrize("flag", ["i", "a"])
def test_in_protected_directories(pair: Make, flag: str) -> None:
    both = pair(fill)
    for one in (both.theirs, both.ours):
        subprocess.run(["chattr", f"+{flag}", one.root / "d"], check=True)
    both.same(lambda root: make_and_name(root / "d", 0o600, 0))
    for one in (both.theirs, both.ours):
        subprocess.run(["chattr", f"-{flag}", one.root / "d"], check=True)
    both.same_tree()
