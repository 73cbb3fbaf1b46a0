"""Volumes in memory, of the host, of servers; views of directories, volumes and snapshots."""

from __future__ import annotations

import os

import pytest

from tests import tree
from tests.driver import changes
from tests.store.volume_ground import VolumeGround, assert_same, only_file
from unionfs.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    MountError,
    NotFoundError,
    UnsupportedError,
)
from unionfs.store import views

pytestmark = pytest.mark.needs_root


def test_in_memory(ground: VolumeGround) -> None:
    """The limit holds; contents are shared, and gone when nobody uses them any more."""
    volumes = ground.volumes
    volumes.create("mem", options={"type": "tmpfs", "device": "tmpfs", "o": "size=64m,mode=750"})
    with ground.at("mem") as one:
        assert one.stat().st_mode & 0o7777 == 0o750
        with (one / "file").open("wb", buffering=0) as file:
            for _ in range(64):
                file.write(bytes(1 << 20))
            with pytest.raises(OSError, match="No space left"):
                file.write(b"one more")
        with ground.at("mem") as two:
            assert (two / "file").stat().st_size == 64 << 20
        assert (one / "file").stat().st_size == 64 << 20
    with ground.at("mem") as again:
        assert os.listdir(again) == []
    with pytest.raises(FailedPreconditionError, match="not in the store but in tmpfs"):
        views.snapshot(volumes, "mem")
    with pytest.raises(FailedPreconditionError, match="not in the store but in tmpfs"):
        views.clone(volumes, "mem", "copy")


def test_the_size_of_one_in_memory(ground: VolumeGround) -> None:
    ground.volumes.create("mem", options={"type": "tmpfs", "size": "1m"})
    with ground.at("mem") as root, pytest.raises(OSError, match="No space left"):
        (root / "file").write_bytes(bytes((1 << 20) + 1))


def test_a_directory_of_the_host(ground: VolumeGround) -> None:
    host = ground.place()
    (host / "file").write_text("of the host")
    ground.volumes.create("dir", options={"type": "none", "o": "bind", "device": str(host)})
    with ground.at("dir") as one, ground.at("dir"):
        (one / "file").write_text("changed")
    assert (host / "file").read_text() == "changed"
    ground.volumes.remove("dir")
    assert (host / "file").read_text() == "changed"


def test_a_directory_read_only(ground: VolumeGround) -> None:
    host = ground.place()
    options = {"type": "none", "o": "bind,ro", "device": str(host)}
    ground.volumes.create("dir", options=options)
    with ground.at("dir") as root, pytest.raises(OSError, match="Read-only"):
        (root / "file").touch()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"type": "nfs", "o": "addr=192.168.1.1,rw,nfsvers=4", "device": ":/export"},
            "-t nfs -o rw,nfsvers=4 -- 192.168.1.1:/export",
        ),
        (
            {"type": "nfs4", "o": "addr=fd00::1,soft", "device": ":/export/dir"},
            "-t nfs4 -o soft -- [fd00::1]:/export/dir",
        ),
        (
            {"type": "nfs", "o": "addr=10.0.0.1,ro", "device": "server:/export"},
            "-t nfs -o ro -- server:/export",
        ),
        (
            {"type": "cifs", "o": "username=me", "device": "//server/share"},
            "-t cifs -o username=me -- //server/share",
        ),
    ],
)
def test_network_file_systems_are_left_to_mount(
    ground: VolumeGround,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    expected: str,
) -> None:
    """What mount(8) is told, and what it says when it fails."""
    ground.volumes.create("net", options=options)
    programs = ground.place()
    told = programs / "told"
    script = programs / "mount"
    script.write_text(f'#!/bin/sh\necho "$@" >{told}\necho "mount: server is down" >&2\nexit 32\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(MountError, match="net: server is down"):
        ground.volumes.mount("net", str(ground.place()))
    assert told.read_text().strip().startswith(expected)
    assert ground.volumes.in_use() == set()


def test_the_missing_program_of_nfs_is_named(ground: VolumeGround) -> None:
    if any(os.path.exists(f"{place}/mount.nfs") for place in ("/sbin", "/usr/sbin")):
        pytest.skip("mount.nfs is installed")
    ground.volumes.create("net", options={"type": "nfs", "o": "addr=::1", "device": ":/x"})
    with pytest.raises(MountError, match="install the package nfs-common"):
        ground.volumes.mount("net", str(ground.place()))


def test_a_size_that_cannot_be_kept_is_refused(ground: VolumeGround) -> None:
    with pytest.raises(UnsupportedError, match="size=1g: the driver overlay cannot"):
        ground.volumes.create("vol", options={"size": "1g"})
    assert ground.volumes.all() == []


def test_a_size_that_is_kept(any_ground: VolumeGround) -> None:
    if not any_ground.volumes.store.driver.capabilities.quota:
        pytest.skip("no quota")
    any_ground.volumes.create("vol", options={"size": "400m"})
    with (
        any_ground.at("vol") as root,
        (root / "file").open("wb") as file,
        pytest.raises(OSError, match="No space left"),
    ):
        os.posix_fallocate(file.fileno(), 0, 401 << 20)


# Views


def test_a_view_of_a_directory(any_ground: VolumeGround) -> None:
    volumes = any_ground.volumes
    host = any_ground.place()
    changes.base(host)
    before = tree.snapshot(host, ctime=True)
    volumes.create("view", options={"from": str(host)})
    with any_ground.at("view") as root:
        assert_same(tree.snapshot(host, private=False), tree.snapshot(root, private=False))
        (root / "etc/file1").write_text("changed")
        (root / "var/pipe").unlink()
        (root / "usr").rename(root / "moved")
        changed = tree.snapshot(root, private=False)
    with any_ground.at("view") as one, any_ground.at("view") as two:
        assert_same(changed, tree.snapshot(one, private=False))
        (one / "etc/file2").unlink()
        assert not (two / "etc/file2").exists()
        changed = tree.snapshot(one, private=False)
    volumes.create("second", options={"from": str(host)})
    with any_ground.at("second") as root:
        assert (root / "etc/file1").read_text() == "base 1\n"
    views.clone(volumes, "view", "copy")
    with any_ground.at("copy") as root:
        assert_same(changed, tree.snapshot(root, private=False))
        (root / "etc/file3").unlink()
    with any_ground.at("view") as root:
        assert_same(changed, tree.snapshot(root, private=False))
    with pytest.raises(FailedPreconditionError, match="a view of the directory"):
        views.snapshot(volumes, "view")
    assert_same(before, tree.snapshot(host, ctime=True))


def test_a_view_of_a_volume(any_ground: VolumeGround) -> None:
    """It costs nothing to make, and neither sees what the other changes from then on."""
    volumes = any_ground.volumes
    volumes.create("base")
    any_ground.write("base", changes.base)
    with any_ground.at("base") as root:
        expected = tree.snapshot(root, private=False)
    for name in ("one", "two"):
        volumes.create(name, options={"from": "base"})
        with any_ground.at(name) as root:
            assert_same(expected, tree.snapshot(root, private=False))
    any_ground.write("one", only_file("of one"))
    any_ground.write("base", only_file("of base"))
    with any_ground.at("two") as root:
        assert not (root / "file").exists()
    with any_ground.at("one") as root:
        assert (root / "file").read_text() == "of one"
    volumes.remove("base")
    with any_ground.at("two") as root:
        assert_same(expected, tree.snapshot(root, private=False))
    assert volumes.create("two", options={"from": "base"}) == volumes.find("two")


def test_views_of_what_does_not_change_stay_flat(ground: VolumeGround) -> None:
    """A golden volume does not get deeper with every view of it."""
    ground.volumes.create("gold")
    ground.write("gold", changes.base)
    for number in range(5):
        ground.volumes.create(f"view{number}", options={"from": "gold"})
    driver = ground.volumes.store.driver
    parents = {driver.stat(volume.data).parent for volume in ground.volumes.all()}
    assert len(parents) == 1
    with ground.at("gold") as root:
        root.chmod(0o700)
    ground.volumes.create("after", options={"from": "gold"})
    with ground.at("after") as root:
        assert root.stat().st_mode & 0o777 == 0o700


def test_a_view_of_a_snapshot(ground: VolumeGround) -> None:
    volumes = ground.volumes
    volumes.create("vol")
    ground.write("vol", only_file("then"))
    key = views.snapshot(volumes, "vol", "state").key
    ground.write("vol", only_file("now"))
    volumes.create("old", options={"from": key})
    with ground.at("old") as root:
        assert (root / "file").read_text() == "then"
    with pytest.raises(InvalidArgumentError, match="not committed"):
        volumes.create("other", options={"from": volumes.find("vol").data})


@pytest.mark.parametrize("source", ["nothing", "/nowhere", "./nowhere", "a/b:c"])
def test_a_view_of_nothing(ground: VolumeGround, source: str) -> None:
    with pytest.raises(NotFoundError, match=f"from={source}: no"):
        ground.volumes.create("view", options={"from": source})
    assert ground.volumes.all() == []


def test_a_view_of_what_has_the_store(ground: VolumeGround) -> None:
    with pytest.raises(InvalidArgumentError, match="has the store itself in it"):
        ground.volumes.create("view", options={"from": str(ground.base)})
