"""The snapshotter's own behaviour: errors, labels, lists, its store, its socket, its end."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.driver.drivers import KITS
from tests.plugin.process import refused
from tests.plugin.snapshotter import SnapshotterGround
from tests.plugin.suite import failed
from tests.watchdog import Watchdog
from unionfs.driver.api import Info
from unionfs.driver.registry import driver_class
from unionfs.plugin.snapshotter import messages
from unionfs.plugin.snapshotter.mounts import Mounts
from unionfs.plugin.snapshotter.protobuf import decode, encode
from unionfs.store.store import Store

pytestmark = pytest.mark.needs_root

UIDS, GIDS = (f"containerd.io/snapshot/{one}idmapping" for one in "ug")


def started(name: str, scratch: Path, watchdog: Watchdog) -> SnapshotterGround:
    home = scratch / "home"
    home.mkdir()
    return SnapshotterGround(KITS[name], home, watchdog)


@pytest.fixture
def ground(scratch: Path, watchdog: Watchdog) -> Iterator[SnapshotterGround]:
    """A snapshotter on the driver overlay."""
    made = started("overlay", scratch, watchdog)
    yield made
    made.close()


def test_errors_have_codes(ground: SnapshotterGround) -> None:
    client = ground.client
    ground.layer("base", "", lambda _: None)
    client.prepare("active", "base")
    client.view("view", "base")
    failed("NOT_FOUND", lambda: client.mounts("nowhere"))
    failed("NOT_FOUND", lambda: client.prepare("new", "nowhere"))
    failed("NOT_FOUND", lambda: client.usage("nowhere"))
    failed("NOT_FOUND", lambda: client.update(messages.Info("nowhere")))
    failed("INVALID_ARGUMENT", lambda: client.prepare("new", "active"))
    failed("INVALID_ARGUMENT", lambda: client.prepare(""))
    failed("INVALID_ARGUMENT", lambda: client.prepare("new", labels={"k": "v" * 4096}))
    failed("INVALID_ARGUMENT", lambda: client.walk("name="))
    failed("INVALID_ARGUMENT", lambda: client.call("Stat", b"\xff\xff"))
    failed("INVALID_ARGUMENT", lambda: client.commit("new", "active", parent="other"))
    failed("FAILED_PRECONDITION", lambda: client.mounts("base"))
    failed("FAILED_PRECONDITION", lambda: client.commit("new", "view"))
    failed("UNIMPLEMENTED", lambda: client.call("Nonsense", b""))
    failed("NOT_FOUND", lambda: client.mounts("long" * 100_000))
    failed("INVALID_ARGUMENT", lambda: client.walk("name==" + "ä" * 100_000 + ","))
    client.prepare("alone")
    assert "rebase" in failed("UNIMPLEMENTED", lambda: client.commit("new", "alone", parent="base"))
    assert [one.name for one in client.walk()] == ["base", "active", "view", "alone"]


def test_labels(ground: SnapshotterGround) -> None:
    client = ground.client
    client.prepare("key", labels={"kept": "1", "empty": "", "k": "v" * 4095})
    assert client.stat("key").labels == {"kept": "1", "k": "v" * 4095}
    client.commit("name", "key", labels={"new": "2"})
    assert client.stat("name").labels == {"new": "2"}, "replaced, not inherited"


def test_ids_are_mapped_by_a_union_only(ground: SnapshotterGround) -> None:
    client = ground.client
    ground.layer("base", "", lambda _: None)
    labels = {UIDS: "0:1000:10,10:5000:20", GIDS: "0:1:2"}
    (mount,) = client.prepare("key", "base", labels)
    assert mount.options[-2:] == ("uidmapping=0:1000:10:10:5000:20", "gidmapping=0:1:2")
    assert client.mounts("key") == [mount]
    failed("INVALID_ARGUMENT", lambda: client.prepare("wrong", "base", {UIDS: "0:1"}))
    failed("UNIMPLEMENTED", lambda: client.prepare("bound", "", labels))
    assert len(client.walk()) == 2, "nothing half made"


def test_a_size_is_kept_where_the_driver_can(scratch: Path, watchdog: Watchdog) -> None:
    ground = started("block-ext4", scratch, watchdog)
    label = "containerd.io/snapshot/max-size"
    with ground.at(ground.client.prepare("key", labels={label: str(64 << 20)})) as root:
        command = f"head -c 80M /dev/zero >{root}/f"
        done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
        assert b"No space left" in done.stderr
    for size in ("much", "9" * 19, "9" * 4000, "-1"):
        labels = {label: size}
        failed("INVALID_ARGUMENT", partial(ground.client.prepare, "x", labels=labels))
    ground.restart(killed=True)
    with ground.at(ground.client.mounts("key")) as root:
        assert (root / "f").exists()
    ground.close()


def test_a_cleanup_leaves_what_is_mounted_meanwhile(tmp_path: Path) -> None:
    """What is made after it has looked for snapshots is of one that it does not know."""

    def walk() -> Iterator[Info]:
        (tmp_path / "mounted" / "new").mkdir()
        return iter(())

    store = SimpleNamespace(root=str(tmp_path), driver=SimpleNamespace(walk=walk))
    mounts = Mounts(cast("Store", store))
    (tmp_path / "mounted" / "left").mkdir()
    mounts.sweep()
    assert os.listdir(tmp_path / "mounted") == ["new"]


def test_lists_come_in_blocks(ground: SnapshotterGround) -> None:
    for number in range(205):
        ground.client.prepare(f"key {number}")
    blocks = [decode(messages.ListSnapshotsResponse, one) for one in ground.client.blocks()]
    assert [len(block.info) for block in blocks] == [100, 100, 5]
    assert list(ground.client.blocks("name==nobody")) == []


def test_a_view_without_a_parent_is_empty(ground: SnapshotterGround) -> None:
    client = ground.client
    with ground.at(client.view("view", "")) as root:
        assert list(root.iterdir()) == []
    assert client.stat("view").parent == ""
    hidden = "unionfs: an empty directory"
    assert [one.name for one in client.walk()] == ["view"]
    failed("NOT_FOUND", lambda: client.stat(hidden))
    failed("NOT_FOUND", lambda: client.remove(hidden))
    failed("NOT_FOUND", lambda: client.prepare("key", hidden))


def test_all_is_there_after_the_plugin_was_killed(ground: SnapshotterGround) -> None:
    ground.layer("base", "", lambda root: (root / "file").touch())
    with ground.at(ground.client.prepare("key", "base")) as root:
        ground.restart(killed=True)
        (root / "new").touch()
        assert sorted(one.name for one in root.iterdir()) == ["file", "new"]
        ground.restart()
    assert [one.name for one in ground.client.walk()] == ["base", "key"]


def test_its_sockets_are_for_its_user_alone(ground: SnapshotterGround) -> None:
    """Whatever may be done by default: also the one that connections are passed on to."""
    assert ground.plugin.end() == 0
    ground.root.chmod(0o755)
    ground.start(umask=0)
    for path in (ground.socket, ground.root / "grpc"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_calls_are_answered_or_refused_at_the_end(ground: SnapshotterGround) -> None:
    ground.client.walk()
    assert ground.plugin.end() == 0
    failed("UNAVAILABLE", ground.client.walk)
    ground.client.close()
    ground.start()
    ground.client = ground.connect()  # one that has failed waits before it tries again


def test_a_store_is_served_once_and_is_containerds(ground: SnapshotterGround) -> None:
    more = ["snapshotter", *ground.arguments]
    assert "in use" in refused(*more)
    elsewhere = [f"--socket={ground.socket}2" if "--socket" in one else one for one in more]
    assert "another snapshotter serves it" in refused(*elsewhere)
    foreign = ground.work / "foreign"
    with_one = driver_class("overlay").open(str(foreign / "overlay"), {})
    with_one.prepare("somebody's")
    with_one.close()
    told = refused("snapshotter", f"--socket={ground.socket}3", f"--root={foreign}")
    assert "somebody's" in told


def test_without_grpcio_it_is_told_how_to_install_it(scratch: Path) -> None:
    patch = "import sys; sys.modules['grpc'] = None"
    told = refused("snapshotter", f"--root={scratch}/root", patch=patch)
    assert re.fullmatch(r"grpcio is missing: /\S*python\S* -m pip install grpcio", told)


def test_who_does_not_speak_grpc_is_told(ground: SnapshotterGround) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.connect(str(ground.socket))
        asking.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"400 Bad Request" in asking.recv(4096)


def test_a_message_of_all_fields_arrives(ground: SnapshotterGround) -> None:
    """A key with what file names cannot have."""
    key = "default/12/extract-1 sha256:ab/../\n" + "ü" * 400
    ground.client.prepare(key, labels={"a": "b"})
    assert ground.client.stat(key).name == key
    assert encode(ground.client.usage(key))


def test_commits_that_make_hard_links_whole(ground: SnapshotterGround) -> None:
    """Each mounts a union of its own for that: a daemon, started in the midst of calls."""
    client = ground.client

    def base(root: Path) -> None:
        (root / "one").write_text("lower")
        for name in ("two", "three"):
            (root / name).hardlink_to(root / "one")

    ground.layer("base", "", base)
    keys = [f"key {number}" for number in range(4)]
    for key in keys:
        with ground.at(client.prepare(key, "base")) as root:
            (root / "two").write_text(key)
    with ThreadPoolExecutor(len(keys) + 1) as threads:
        commits = [threads.submit(client.commit, f"{key} done", key) for key in keys]
        while not all(one.done() for one in commits):
            assert client.stat("base").name == "base"
    for one in commits:
        one.result()
    for key in keys:
        with ground.at(client.view(f"look at {key}", f"{key} done")) as root:
            assert [(root / name).read_text() for name in ("one", "two", "three")] == [key] * 3
