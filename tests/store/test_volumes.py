"""Volumes: made, used by several, viewed, cloned, captured, removed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import system, tree
from tests.driver import changes
from tests.store.volume_ground import VolumeGround
from unionfs.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    MountError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from unionfs.store import views
from unionfs.store.volume import ANONYMOUS
from unionfs.store.volume_garbage import cleanup
from unionfs.store.volumes import Volumes

pytestmark = pytest.mark.needs_root


def assert_same(expected: tree.Tree, found: tree.Tree) -> None:
    """As `tree.assert_same`, but that a union counts no directories in a directory."""
    tree.assert_same(expected, found, ignore=["directory.nlink"])


def only_file(text: str) -> Callable[[Path], None]:
    """A change: one file that says *text*."""

    def change(root: Path) -> None:
        (root / "file").write_text(text)

    return change


# Names and options


@pytest.mark.parametrize("name", ["ab", "a.b-c_d", "0123", "A" * 255])
def test_names(ground: VolumeGround, name: str) -> None:
    assert ground.volumes.create(name).name == name
    assert ground.volumes.find(name).created_text.startswith(time.strftime("%Y-", time.gmtime()))


@pytest.mark.parametrize(
    "name", ["", "a", "_a", ".a", "-a", "a/b", "a b", "ab\n", "a\0", "ä1", "A" * 256, "a:b"]
)
def test_no_names(ground: VolumeGround, name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        ground.volumes.create(name)
    assert ground.volumes.all() == []


def test_one_without_a_name(ground: VolumeGround) -> None:
    one, other = ground.volumes.create(), ground.volumes.create()
    assert re.fullmatch(r"[0-9a-f]{64}", one.name)
    assert one.name != other.name
    assert one.is_anonymous
    assert one.labels == {ANONYMOUS: ""}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"colour": "red"}, 'invalid option: "colour"'),
        ({"type": "ext4"}, 'missing required option: "device"'),
        ({"device": "/dev/sda"}, 'missing required option: "type"'),
        ({"o": "ro"}, 'missing required option: "type"'),
        ({"type": "none", "device": "/tmp"}, "needs o=bind"),
        ({"type": "none", "device": "tmp", "o": "bind"}, "absolute"),
        ({"type": "nfs", "device": ":/x"}, "o=addr="),
        ({"type": "nfs", "device": "x", "o": "addr=1.2.3.4"}, ":/PATH"),
        ({"type": "ext4", "device": "/dev/sda", "size": "1g"}, "size= limits no volume"),
        ({"type": "tmpfs", "from": "/"}, "exclude each other"),
        ({"size": "big"}, "not a size"),
        ({"size": "0"}, "not a size"),
        ({"type": "tmpfs", "size": "-1"}, "not a size"),
    ],
)
def test_bad_options(ground: VolumeGround, options: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(told)):
        ground.volumes.create("vol", options=options)
    assert ground.volumes.all() == []


def test_two_creates_are_one_volume(ground: VolumeGround) -> None:
    first = ground.volumes.create("vol", labels={"a": "1"})
    assert ground.volumes.create("vol", labels={"a": "2"}) == first
    assert ground.volumes.create("vol", driver="overlay") == first
    with pytest.raises(AlreadyExistsError, match="other options: none"):
        ground.volumes.create("vol", options={"type": "tmpfs"})
    with pytest.raises(AlreadyExistsError, match="the driver overlay"):
        ground.volumes.create("vol", driver="block")


def test_many_create_one(ground: VolumeGround) -> None:
    """Twenty at once, of several processes: all get the same."""
    pids = []
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                volumes = ground.open()
                threads = [threading.Thread(target=volumes.create, args=("vol",)) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                status = 0 if volumes.find("vol").data else 2
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 5
    keys = [info.key for info in ground.volumes.store.driver.walk()]
    assert keys == [ground.volumes.find("vol").data]


# Use


def test_two_users_see_one_tree(any_ground: VolumeGround) -> None:
    volumes = any_ground.volumes
    volumes.create("vol")
    with any_ground.at("vol", "one") as one, any_ground.at("vol", "two") as two:
        (one / "file").write_text("of one")
        assert (two / "file").read_text() == "of one"
        with (two / "file").open("a") as file:
            file.write(" and two")
        assert (one / "file").read_text() == "of one and two"
        assert [use.holder for use in volumes.uses(volumes.find("vol"))] == ["one", "two"]
        with pytest.raises(FailedPreconditionError) as caught:
            volumes.remove("vol")
        assert str(caught.value) == "remove vol: volume is in use - [one, two]"
    assert volumes.in_use() == set()
    assert any_ground.mounted() == []
    with any_ground.at("vol") as again:
        assert (again / "file").read_text() == "of one and two"


def test_one_id_counts_as_often_as_it_mounts(ground: VolumeGround) -> None:
    volumes = ground.volumes
    volumes.create("vol")
    held = [volumes.hold("vol", "web") for _ in range(3)]
    for number, one in enumerate(held):
        assert len(volumes.uses(volumes.find("vol"))) == 3 - number
        with pytest.raises(FailedPreconditionError, match="web"):
            volumes.remove("vol")
        volumes.release(one.id)
        volumes.release(one.id)  # it is over
    volumes.remove("vol")


def test_use_outlives_who_counts(ground: VolumeGround) -> None:
    """Another process has begun it, and is gone."""
    ground.volumes.create("vol")
    target = ground.place()
    ground.in_child(lambda volumes: volumes.mount("vol", str(target), "web"))
    ground.in_child(lambda volumes: volumes.hold("vol", "engine"))
    with pytest.raises(FailedPreconditionError, match=r"\[web, engine\]"):
        ground.volumes.remove("vol")
    ground.volumes.unmount(str(target))
    (use,) = ground.volumes.uses(ground.volumes.find("vol"))
    # A reboot ends it.
    with ground.volumes.store.database.write():
        ground.volumes.store.database.run("UPDATE uses SET boot = 'another'")
    assert ground.volumes.uses(ground.volumes.find("vol")) == []
    ground.volumes.release(use.id)
    ground.volumes.remove("vol")


def test_a_killed_holder_is_none(any_ground: VolumeGround) -> None:
    volumes = any_ground.volumes
    volumes.create("vol")
    holder = subprocess.Popen(["sleep", "1000"])
    try:
        held = volumes.hold("vol", "web", holder.pid)
        (Path(held.path) / "file").write_text("kept")
        with pytest.raises(FailedPreconditionError, match="web"):
            volumes.remove("vol")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert volumes.in_use() == set()
    with any_ground.at("vol") as root:
        assert (root / "file").read_text() == "kept"
    volumes.remove("vol")


def test_unmounted_by_hand(any_ground: VolumeGround) -> None:
    volumes = any_ground.volumes
    volumes.create("vol")
    target = any_ground.place()
    volumes.mount("vol", str(target))
    system.umount(target)
    with pytest.raises(NotFoundError, match="no volume of"):
        volumes.unmount(str(target))
    volumes.remove("vol")
    assert any_ground.mounted() == []


def test_mounting_that_fails_is_no_use(ground: VolumeGround) -> None:
    volumes = ground.volumes
    volumes.create("vol")
    volumes.create("gone", options={"type": "none", "o": "bind", "device": "/nowhere/at/all"})
    with pytest.raises(MountError, match="not a directory"):
        volumes.mount("vol", "/nowhere")
    with pytest.raises(NotFoundError, match="get nope: no such volume"):
        volumes.mount("nope", str(ground.place()))
    with pytest.raises(NotFoundError, match="/nowhere/at/all: no such directory"):
        volumes.mount("gone", str(ground.place()))
    assert volumes.in_use() == set()


def test_read_only(ground: VolumeGround) -> None:
    ground.volumes.create("vol")
    with ground.at("vol", None, "ro") as root, ground.at("vol") as other:
        with pytest.raises(OSError, match="Read-only"):
            (root / "file").touch()
        (other / "file").touch()
        assert (root / "file").exists()


def test_where_mounts_are_not_seen(ground: VolumeGround) -> None:
    """In another mount namespace what is mounted once cannot be shared: it is said so."""
    ground.volumes.create("vol", options={"type": "tmpfs"})
    target = ground.place()
    with ground.at("vol", "web"):

        def elsewhere(volumes: Volumes) -> None:
            # The store's own mount goes, as in a namespace from before it was made.
            system.private_mount_namespace()
            for place in reversed(ground.mounted()):
                system.umount(place, system.MNT_DETACH)
            with pytest.raises(FailedPreconditionError, match="in use by web, but"):
                volumes.mount("vol", str(target))

        ground.in_child(elsewhere)
        assert len(ground.volumes.uses(ground.volumes.find("vol"))) == 1


# The kinds


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


# Copies


def test_clone(any_ground: VolumeGround) -> None:
    volumes = any_ground.volumes
    volumes.create("vol", labels={"a": "1"})
    any_ground.write("vol", changes.base)
    with any_ground.at("vol") as root:
        expected = tree.snapshot(root, private=False)
    made = views.clone(volumes, "vol", "copy")
    assert (made.labels, made.driver) == ({"a": "1"}, any_ground.kit.driver)
    any_ground.write("vol", changes.delete)
    with any_ground.at("copy") as root:
        assert_same(expected, tree.snapshot(root, private=False))
    with pytest.raises(AlreadyExistsError):
        views.clone(volumes, "vol", "copy")
    volumes.remove("vol")
    with any_ground.at("copy") as root:
        assert_same(expected, tree.snapshot(root, private=False))
    volumes.remove("copy")
    assert list(volumes.store.driver.walk()) == []


def test_a_snapshot_outlives_the_volume(any_ground: VolumeGround) -> None:
    volumes = any_ground.volumes
    volumes.create("vol")
    any_ground.write("vol", only_file("then"))
    key = views.snapshot(volumes, "vol").key
    assert re.fullmatch(r"vol@\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", key)
    any_ground.write("vol", only_file("now"))
    volumes.remove("vol")
    driver = volumes.store.driver
    assert [info.key for info in driver.walk()] == [key]
    assert driver.stat(key).labels == {"unionfs.snapshot-of": "vol"}


def test_capturing_one_in_use(any_ground: VolumeGround) -> None:
    """Where the driver can, of what was written until then; else it says by whom."""
    volumes = any_ground.volumes
    volumes.create("vol")
    with any_ground.at("vol", "web") as root:
        (root / "file").write_text("then")
        os.sync()
        if not volumes.store.driver.capabilities.live_snapshot:
            with pytest.raises(FailedPreconditionError, match="in use by web"):
                views.clone(volumes, "vol", "copy")
            return
        views.clone(volumes, "vol", "copy")
        (root / "file").write_text("now")
        with any_ground.at("copy") as copy:
            assert (copy / "file").read_text() == "then"
        assert (root / "file").read_text() == "now"


def test_its_snapshot_is_the_volumes(ground: VolumeGround) -> None:
    """What belongs to a volume is refused to who knows the key."""
    store = ground.volumes.store
    key = ground.volumes.create("vol").data
    for do in (
        lambda: store.remove(key),
        lambda: store.commit("name", key),
        lambda: store.capture("name", key),
        lambda: store.mount(key, str(ground.place())),
    ):
        with pytest.raises(FailedPreconditionError, match="the files of the volume vol"):
            do()


# Crashes


_VERBS: dict[str, Callable[[VolumeGround, Volumes], Any]] = {
    "create": lambda _ground, volumes: volumes.create("new"),
    "view": lambda _ground, volumes: volumes.create("new", options={"from": "vol"}),
    "clone": lambda _ground, volumes: views.clone(volumes, "vol", "new"),
    "snapshot": lambda _ground, volumes: views.snapshot(volumes, "vol", "state"),
    "remove": lambda _ground, volumes: volumes.remove("other"),
    "hold": lambda _ground, volumes: volumes.hold("vol", "web", os.getpid()),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", _VERBS)
def test_killed(any_ground: VolumeGround, verb: str) -> None:
    """At seeded calls of each verb: what is told afterwards is whole, all else can be removed."""
    do = _VERBS[verb]
    volumes = any_ground.volumes
    volumes.create("vol")
    any_ground.write("vol", changes.base)
    with any_ground.at("vol") as root:
        expected = tree.snapshot(root, private=False)

    def again() -> None:
        present = {volume.name for volume in volumes.all()}
        if "new" in present:
            volumes.remove("new")
        volumes.create("other")
        for info in list(volumes.store.driver.walk()):
            if info.key == "state":
                # The volume goes on on top of it: only its name is needed again.
                volumes.remove("vol")
                volumes.create("vol", options={"from": "state"})

    again()
    calls = any_ground.in_child(lambda opened: do(any_ground, opened))
    dice = random.Random(verb)
    for kill_at in sorted(dice.sample(range(1, calls), 8)):
        if verb == "snapshot":
            key = f"state{kill_at}"
            any_ground.in_child(partial(views.snapshot, name="vol", key=key), kill_at)
        else:
            again()
            any_ground.in_child(lambda opened: do(any_ground, opened), kill_at)
        cleanup(volumes.store)
        volumes.store.driver.cleanup()
        assert cleanup(volumes.store) == [], kill_at
        for volume in volumes.all():
            with any_ground.at(volume.name) as root:
                if volume.name in ("vol", "new") and verb != "create":
                    assert_same(expected, tree.snapshot(root, private=False))


def test_of_two_that_race_for_a_name(ground: VolumeGround) -> None:
    ground.volumes.create("vol")
    results: list[object] = []

    def clone() -> None:
        try:
            results.append(views.clone(ground.open(), "vol", "new"))
        except StoreError as error:
            results.append(error)

    threads = [threading.Thread(target=clone) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, AlreadyExistsError) for one in results) == 5, results
