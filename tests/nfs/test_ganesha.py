"""Unions and volumes served by nfs-ganesha to three clients (libnfs), NFS versions 3 and 4."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests import build, system
from tests.driver.drivers import KITS
from tests.mounts import device_minor
from tests.nfs import shop
from tests.nfs.filehandles import handle_of, read
from tests.nfs.libnfs import MOST_WRITTEN
from tests.store.volume_ground import VolumeGround, only_file

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mounts import Layers, UnionMount
    from tests.nfs.ganesha import Ganesha
    from tests.watchdog import Watchdog

pytestmark = [pytest.mark.needs_root, pytest.mark.any_session]

Mount = Callable[..., Any]
EXPORT = "nfs_export=on"
VERSIONS = pytest.mark.parametrize("version", [3, 4])
LARGE = os.urandom(3 << 20)


def fill(layers: Layers) -> None:
    build.write(layers.lowers[0] / "file", "from below")
    build.write(layers.lowers[0] / "large", LARGE)
    build.write(layers.lowers[1] / "a" / "b" / "deep", "deep")


@VERSIONS
def test_three_clients_of_one_union(
    layers: Layers, union: Mount, server: Ganesha, scratch: Path, version: int
) -> None:
    fill(layers)
    root = union(EXPORT).root
    server.export("/union", root)
    server.start()
    one, two, three = (server.client("/union", version) for _ in range(3))
    assert one.list("/") == ["a", "file", "large"]
    assert two.get("/a/b/deep") == b"deep"
    one.put("/new", b"made by one")
    assert two.get("/new") == b"made by one"
    two.put("/file", b"copied up")
    assert three.get("/file") == b"copied up"
    assert (root / "file").read_bytes() == b"copied up"
    assert (layers.lowers[0] / "file").read_bytes() == b"from below"
    three.rename("/a/b", "/moved")
    assert one.get("/moved/deep") == b"deep"
    one.unlink("/new")
    with pytest.raises(FileNotFoundError):
        two.get("/new")
    # The commands of libnfs-utils.
    assert server.run("nfs-cat", server.url("/union", "large", version)) == LARGE
    copied = scratch / "copied"
    server.run("nfs-cp", server.url("/union", "large", version), copied)
    part = LARGE[: MOST_WRITTEN[version]]
    copied.write_bytes(part)
    server.run("nfs-cp", copied, server.url("/union", "back", version))
    assert (root / "back").read_bytes() == part
    assert b"moved" in server.run("nfs-ls", server.url("/union", "", version))


@VERSIONS
def test_a_file_that_is_open_loses_its_name(
    layers: Layers, union: Mount, server: Ganesha, version: int
) -> None:
    """As clients do it: renamed out of the way while somebody has it open, removed at the end."""
    fill(layers)
    root = union(EXPORT).root
    server.export("/union", root)
    server.start()
    reader, other, third = (server.client("/union", version) for _ in range(3))
    file = reader.open("/file", os.O_RDWR)
    assert reader.read(file, 0, 4) == b"from"
    other.rename("/file", "/.nfs0000000000001234")
    third.put("/file", b"another")
    reader.write(file, 0, b"FROM")
    assert reader.read(file, 0, 100) == b"FROM below"
    assert third.get("/file") == b"another"
    other.unlink("/.nfs0000000000001234")
    if version == 4:
        assert reader.read(file, 0, 100) == b"FROM below"  # the server has it open
        reader.close(file)
    else:
        with pytest.raises(OSError, match="STALE"):  # of an open file it knows nothing
            reader.close(file)
    assert sorted(os.listdir(root)) == ["a", "file", "large"]


@VERSIONS
def test_root_is_squashed(layers: Layers, union: Mount, server: Ganesha, version: int) -> None:
    build.write(layers.lowers[0] / "secret", "secret", 0o600)
    build.write(layers.lowers[0] / "public", "public", 0o644)
    (layers.lowers[0] / "home").mkdir()
    os.chown(layers.lowers[0] / "home", 1000, 1000)
    root = union(EXPORT).root
    server.export("/union", root, squash="Root_Squash")
    server.start()
    as_root, user = server.client("/union", version), server.client("/union", version, uid=1000)
    assert as_root.get("/public") == b"public"
    for path in ("/secret", "/public"):
        with pytest.raises(PermissionError):
            as_root.put(path, b"x")
    with pytest.raises(PermissionError):
        as_root.put("/home/new", b"x")
    user.put("/home/new", b"mine")
    user.chmod("/home/new", 0o644)
    assert ((root / "home/new").stat().st_uid, as_root.get("/home/new")) == (1000, b"mine")
    assert (root / "secret").read_bytes() == b"secret"


def test_server_killed_in_the_midst(layers: Layers, union: Mount, server: Ganesha) -> None:
    """Version 3: the clients find the server again, and go on with what they have open."""
    fill(layers)
    root = union(EXPORT).root
    server.export("/union", root)
    server.start()
    reader, writer, third = (server.client("/union", 3) for _ in range(3))
    source, target = reader.open("/large", os.O_RDONLY), writer.open("/file", os.O_RDWR)
    half = len(LARGE) // 2
    read = reader.read(source, 0, half)
    writer.write(target, 0, LARGE[:half])
    server.stop(kill=True)
    reader.ask("read", source, half, half)
    writer.ask("write", target, half, LARGE[half:])
    server.start()
    read += reader.answer().encode("latin-1")
    assert writer.answer() == half
    assert read == LARGE
    writer.fsync(target)
    assert (root / "file").read_bytes() == LARGE == _whole(third, "/file")


def _whole(client: Any, path: str) -> bytes:
    """All of a large file, in pieces."""
    file = client.open(path, os.O_RDONLY)
    content = b""
    while piece := client.read(file, len(content), 1 << 20):
        content += piece
    client.close(file)
    return content


def _as_the_same_device(
    union: Mount, device: int, scratch: Path, options: str = EXPORT
) -> UnionMount:
    """Mount the union with the number of *device*, which is free, or will be soon.

    ganesha puts it into its handles, having nothing else to tell a FUSE mount by. Others on this
    machine mount as well, and may be faster: then it is tried again.
    """
    end = time.monotonic() + 40
    while True:
        with _taken_below(device, scratch):
            mounted: UnionMount = union(options)
        if mounted.root.stat().st_dev == device:
            return mounted
        assert time.monotonic() < end, "other programs keep the number of the device"
        mounted.unmount()


@contextlib.contextmanager
def _taken_below(device: int, scratch: Path) -> Iterator[None]:
    """Take all numbers of devices below *device*: the kernel gives out the lowest that is free."""
    used: list[Path] = []
    try:
        for number in range(40):
            place = scratch / f"device{number}"
            place.mkdir(exist_ok=True)
            system.mount("none", place, "tmpfs")
            if place.stat().st_dev == device:
                system.umount(place)
                break
            used.append(place)
            if place.stat().st_dev > device:
                break  # somebody has it at the moment
        yield
    finally:
        for place in used:
            system.umount(place)


@pytest.mark.parametrize("how", ["unmount", "kill"])
def test_our_daemon_and_the_server_begin_anew(
    layers: Layers, union: Mount, server: Ganesha, scratch: Path, how: str
) -> None:
    """The handles that clients of version 3 hold are those of the union: they stay good."""
    fill(layers)
    mounted = union(EXPORT)
    server.export("/union", mounted.root)
    server.start()
    reader, writer, remover = (server.client("/union", 3) for _ in range(3))
    source, target = reader.open("/a/b/deep", os.O_RDONLY), writer.open("/file", os.O_RDWR)
    gone = remover.open("/large", os.O_RDONLY)
    writer.write(target, 0, b"FROM")
    reader.rename("/a", "/moved")
    remover.unlink("/large")
    server.stop(kill=True)
    device = mounted.root.stat().st_dev
    if how == "kill":
        mounted.kill()
    else:
        mounted.unmount()
    reader.ask("read", source, 0, 100)
    writer.ask("write", target, 5, b"BELOW")
    remover.ask("size", gone)
    root = _as_the_same_device(union, device, scratch).root
    server.start()
    assert reader.answer() == "deep"
    assert writer.answer() == len("BELOW")
    assert (root / "file").read_bytes() == b"FROM BELOW"
    with pytest.raises(OSError, match="STALE"):
        remover.answer()
    # Version 4 asks by names again, which works as well.
    assert server.client("/union", 4).get("/moved/b/deep") == b"deep"


def test_without_the_option_handles_end_with_the_daemon(
    layers: Layers, union: Mount, server: Ganesha, scratch: Path
) -> None:
    fill(layers)
    mounted = union()
    server.export("/union", mounted.root)
    server.start()
    client = server.client("/union", 3)
    file = client.open("/a/b/deep", os.O_RDONLY)
    server.stop(kill=True)
    device = mounted.root.stat().st_dev
    mounted.kill()
    client.ask("size", file)
    _as_the_same_device(union, device, scratch, "")
    server.start()
    with pytest.raises(OSError, match="STALE"):
        client.answer()


@VERSIONS
def test_volumes(server: Ganesha, scratch: Path, watchdog: Watchdog, version: int) -> None:
    """One that is a directory, and one that began as its copy and is a union."""
    home = KITS["overlay"]._replace(options={"nfs_export": "on"})
    (scratch / "home").mkdir()
    ground = VolumeGround(home, scratch / "home", watchdog)
    ground.volumes.create("first")
    ground.write("first", only_file("in the volume"))
    ground.volumes.create("copy", options={"from": "first"})
    ground.volumes.create("data")
    ground.write("data", only_file("in another"))
    try:
        with ground.at("data") as data, ground.at("copy") as copy:
            assert device_minor(copy) is not None
            assert device_minor(data) is None
            server.export("/data", data)
            server.export("/copy", copy)
            server.start()
            one, two = server.client("/data", version), server.client("/copy", version)
            three = server.client("/data", version)
            one.put("/file", b"changed in one")
            two.put("/new", b"made in the other")
            assert three.get("/file") == b"changed in one"
            assert two.get("/file") == b"in the volume"
            assert (copy / "new").read_bytes() == b"made in the other"
            assert three.list("/") == ["file"]
            handle = handle_of(copy / "new")
            server.stop(kill=True)
        with ground.at("copy") as copy:
            assert read(copy, handle) == b"made in the other"
    finally:
        ground.close()


@VERSIONS
def test_a_database_of_three_clients(
    layers: Layers, union: Mount, server: Ganesha, version: int
) -> None:
    """Each takes from one stock, by transactions: nothing is lost, nothing taken twice."""
    rounds = 15
    shop.make(layers.lowers[0] / "shop.db")
    root = union(EXPORT).root
    server.export("/union", root)
    server.start()
    names = ("one", "two", "three")
    clients = [
        server.program("tests.nfs.sqlite_nfs", "/union", version, "/shop.db", name, str(rounds))
        for name in names
    ]
    for client in clients:
        said, _ = client.communicate(timeout=40)
        assert client.returncode == 0, said.decode()
    shop.check(root / "shop.db", names, rounds)
    assert os.listdir(layers.upper or "") == ["shop.db"]
