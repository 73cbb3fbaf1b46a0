"""Volumes: named, made once, used by several."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests import system
from tests.archives import archive, member
from tests.store.volume_ground import VolumeGround
from unionfs import registry
from unionfs.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    MountError,
    NotFoundError,
)
from unionfs.fuse import mounting
from unionfs.store import views
from unionfs.store.backup import restore
from unionfs.store.store import Store
from unionfs.store.uses import Uses
from unionfs.store.volume import ANONYMOUS
from unionfs.store.volume_table import VolumeTable
from unionfs.store.volumes import Volumes

pytestmark = pytest.mark.needs_root


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
        ({"type": "none", "o": "bind", "device": "/a\0b"}, "a NUL in it"),
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


def test_what_a_killed_holder_has_left(ground: VolumeGround) -> None:
    ground.volumes.create("mem", options={"type": "tmpfs"})
    ground.in_child(lambda volumes: volumes.hold("mem", "web", os.getpid()))
    assert len(ground.mounted()) == 1
    with ground.at("mem", "another"):
        ground.volumes.settle("mem")
        assert len(ground.mounted()) == 1
    ground.in_child(lambda volumes: volumes.hold("mem", "web", os.getpid()))
    ground.volumes.settle("mem")
    assert ground.mounted() == []
    ground.volumes.settle("nothing")


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


def test_mounted_and_not_to_be_written_down(
    ground: VolumeGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, say: what nobody would know of does not stay mounted."""
    store, target = ground.volumes.store, str(ground.place())
    ground.volumes.create("vol")
    store.driver.prepare("key")

    def refuse(_self: Uses, _number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Uses, "outlive", refuse)
    with pytest.raises(OSError, match="No space"):
        ground.volumes.mount("vol", target)
    with pytest.raises(OSError, match="No space"):
        store.mount("key", target)
    assert not os.path.ismount(target)
    assert store.uses.all() == []
    store.driver.remove("key")


def test_the_daemon_of_a_view_is_killed(ground: VolumeGround) -> None:
    """Its users see it is dead; who comes next has all that was written."""
    host = ground.place()
    ground.volumes.create("view", options={"from": str(host)})
    with ground.at("view") as root:
        (root / "file").write_text("kept")
        entry = mounting.mount_at(os.fsencode(ground.root / "volumes/view/_data"))
        assert entry is not None
        record = registry.find(entry)
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        assert registry.wait_for_end(record, 5)
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            os.listdir(root)
        with ground.at("view") as next_root:
            assert (next_root / "file").read_text() == "kept"
            (next_root / "file").write_text("changed")
            with pytest.raises(OSError, match="not connected"):
                os.listdir(root)
    assert ground.mounted() == []
    with ground.at("view") as root:
        assert (root / "file").read_text() == "changed"


def test_an_ordinary_user(ground: VolumeGround) -> None:
    """All but mounting works, and where the files are is told."""
    home = ground.base / "user"
    home.mkdir()
    os.chown(home, 1234, 1234)
    target = home / "target"

    def do() -> None:
        os.setgroups([])
        os.setresgid(1234, 1234, 1234)
        os.setresuid(1234, 1234, 1234)
        target.mkdir()
        store = Store.open(str(home / "store"), "overlay", {})
        volumes = Volumes(store)
        volumes.create("vol")
        place = Path(volumes.hold("vol", "me", os.getpid()).path)
        (place / "file").write_text("mine")
        with pytest.raises(MountError, match=f"the files are in {place}"):
            volumes.mount("vol", str(target))
        with pytest.raises(FailedPreconditionError, match="in use by me"):
            views.snapshot(volumes, "vol")
        store.driver.prepare("alone")
        with pytest.raises(MountError, match=f"the files are in {home}/store/overlay/"):
            store.mount("alone", str(target))
        assert (Path(volumes.tree(volumes.find("vol")).mountpoint) / "file").exists()

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            do()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_run_asks_for(ground: VolumeGround) -> None:
    """One that is there, whatever it is, or a new one."""
    made = ground.volumes.create("mem", options={"type": "tmpfs"})
    assert ground.volumes.obtain("mem") == made
    assert ground.volumes.obtain("new") == ground.volumes.find("new")


@pytest.mark.parametrize(("call", "change"), [("remove", "delete"), ("restore", "set_data")])
def test_no_link_outlasts_what_it_leads_to(
    ground: VolumeGround, monkeypatch: pytest.MonkeyPatch, call: str, change: str
) -> None:
    """The disk has no link by the time that its database says so: see tests/vm/cut_steps.py."""
    ground.volumes.create("vol")
    link = ground.root / "volumes/vol/_data"
    assert link.is_symlink()
    order = []
    sync, write = os.fsync, getattr(VolumeTable, change)

    def synced(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink() == link.parent and not link.is_symlink():
            order.append("synced")
        sync(fd)

    def written(*arguments: object) -> None:
        order.append("written")
        write(*arguments)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(VolumeTable, change, written)
    if call == "remove":
        ground.volumes.remove("vol")
    else:
        files = io.BytesIO(archive(member("file", data=b"new")))
        restore(ground.volumes, "vol", files, progress=lambda _size: None, notice=pytest.fail)
        assert (link / "file").read_text() == "new"
    assert order == ["synced", "written"]


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


@pytest.mark.parametrize("source", ["memory", "view"])
def test_many_come_and_go(ground: VolumeGround, source: str) -> None:
    """Processes mount and unmount one volume at once; the last one ends it."""
    host = ground.place()
    options = {"type": "tmpfs"} if source == "memory" else {"from": str(host)}
    ground.volumes.create("vol", options=options)

    def come_and_go(volumes: Volumes, number: int) -> None:
        target = ground.base / f"at-{number}"
        target.mkdir()
        for turn in range(4):
            volumes.mount("vol", str(target), f"user{number}")
            file = target / f"{number}-{turn}"
            file.write_text("here")
            assert (ground.root / "volumes/vol/_data" / file.name).read_text() == "here"
            file.unlink()
            volumes.unmount(str(target))

    pids = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                come_and_go(ground.open(), number)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    assert ground.volumes.in_use() == set()
    assert ground.mounted() == []
