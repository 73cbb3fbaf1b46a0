"""containerd on snapshotters of ours: images, containers, `ctr snapshots`, restarts, garbage."""

from __future__ import annotations

import contextlib
import json
import signal
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.archives import archive, directory, member
from tests.engines.conftest import need
from tests.engines.containerd import Containerd, Snapshotter, image_file, wait_for
from tests.engines.ground import Ground
from tests.engines.images import busybox_tar
from tests.engines.ours import ASK_ROOT, UNIONFS, assert_ours

pytestmark = pytest.mark.needs_root

IMAGE = "example.org/base:1"
#: The second layer changes a file, hides one, and adds one.
CHANGE = archive(
    directory("etc"),
    member("etc/words", data=b"second\n"),
    directory("data"),
    member("data/.wh.old"),
    member("data/new", data=b"new\n"),
)
OPTIONS = {
    "unionfs": (),
    "unionfs-kernel": ("--storage-opt=mounter=kernel",),
    "unionfs-block": ("--driver=block", "--storage-opt=size=1G"),
}


class Engine:
    """A containerd with its snapshotters, and an image."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.snapshotters = {
            name: Snapshotter(ground, name, UNIONFS, *options) for name, options in OPTIONS.items()
        }
        self.ctr = Containerd(ground, UNIONFS.parent, list(self.snapshotters.values()))
        self.base = busybox_tar(ground.base).read_bytes()
        self.image = image_file(ground.base / "image.tar", IMAGE, self.base, CHANGE)

    def load(self, snapshotter: str = "unionfs") -> None:
        """Import the image and unpack it."""
        self.ctr("images", "import", f"--snapshotter={snapshotter}", str(self.image))

    def run(self, name: str, script: str, *options: str, snapshotter: str = "unionfs") -> str:
        """Run *script* in a new container *name* with that snapshotter."""
        options = (f"--snapshotter={snapshotter}", *options)
        # On a busy machine ctr loses what is written right before the end.
        script = f"{script}\nstatus=$?; sleep 0.2; exit $status"
        return self.ctr("run", *options, IMAGE, name, "sh", "-c", script)

    def exec(self, name: str, *command: str) -> str:
        """Run *command* in the container *name*, which runs."""
        return self.ctr("tasks", "exec", "--exec-id=more", name, *command)

    def delete(self, name: str) -> None:
        """End the container *name*, and remove it with its snapshot."""
        self.ctr("tasks", "rm", "--force", name, status=None)
        self.ctr("containers", "rm", name)

    def clear(self) -> None:
        """Remove all containers and images; so nothing is left of a snapshotter's."""
        for name in self.ctr("containers", "ls", "--quiet").split():
            self.delete(name)
        for name in self.ctr("images", "ls", "--quiet").split():
            self.ctr("images", "rm", "--sync", name)
        self.ctr.collect()
        for one in self.snapshotters.values():
            wait_for(lambda one=one: one.walk() == [], lambda one=one: str(one.walk()))  # type: ignore[misc]
            assert one.log() == ""
        left = {fields[4] for fields in self.ground.mountinfo()}
        assert not [target for target in left if str(self.ground.base) + "/unionfs" in target]

    def close(self) -> None:
        """End all."""
        self.ctr.close()
        for one in self.snapshotters.values():
            one.close()


@pytest.fixture(scope="module")
def started() -> Iterator[Engine]:
    """A containerd, started once."""
    need("containerd", "ctr", "runc", "tini", "busybox", "mount.fuse3")
    with closing(Ground()) as ground, closing(Engine(ground)) as engine:
        yield engine


@pytest.fixture
def engine(started: Engine) -> Iterator[Engine]:
    """The same without containers and images, before and after."""
    yield started
    started.clear()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_container_over_an_image(engine: Engine, name: str) -> None:
    engine.load(name)
    script = """
        cat /etc/words; ls /data; mv /data /moved; cat /moved/new; rm /etc/words
        ls /data /etc/words
        test -e /moved/old || echo hidden
    """
    said = engine.run(
        "one", f"exec 2>&1; {script}{ASK_ROOT}", "--rm", snapshotter=name
    ).splitlines()
    assert said[:3] == ["second", "new", "new"]
    assert said[3:6] == [
        "ls: /data: No such file or directory",
        "ls: /etc/words: No such file or directory",
        "hidden",
    ]
    if name == "unionfs":
        assert_ours("\n".join(said[6:]))
    assert engine.run("two", "cat /etc/words /data/new", "--rm", snapshotter=name) == "second\nnew"


def test_ctr_snapshots(engine: Engine) -> None:
    engine.load()

    def snapshots(*words: str, **options: Any) -> str:
        return engine.ctr("snapshots", "--snapshotter=unionfs", *words, **options)

    layers = [line.split() for line in snapshots("ls").splitlines()[1:]]
    (base,) = [key for key, *rest in layers if rest == ["Committed"]]
    (top,) = [key for key, *rest in layers if rest == [base, "Committed"]]
    place = engine.ground.base / "place"
    place.mkdir()

    snapshots("prepare", "key", top)
    command = snapshots("mounts", str(place), "key")
    assert command.startswith("mount -t fuse3.unionfs overlay ")
    # mount(8) has a PATH of its own, without the program that is tested.
    helper = command.replace("mount -t fuse3.unionfs", "mount.fuse3") + " -t unionfs"
    engine.ground.run("sh", "-c", helper, environment={"PATH": engine.ctr.path})
    engine.ground.run("sh", "-c", f"cd {place}; cat data/new; echo changed >etc/words; rm data/new")
    assert "mounted" in snapshots("commit", "name", "key", status=1) + engine.ctr.said
    engine.ground.run("umount", str(place))
    snapshots("commit", "name", "key")
    assert f"name {top} Committed" in " ".join(snapshots("ls").split())
    assert [line.strip("\\_ ") for line in snapshots("tree").splitlines()] == [base, top, "name"]

    assert '"Kind": "Committed"' in snapshots("info", "name")
    snapshots("label", "name", "mine=yes")
    assert '"mine": "yes"' in snapshots("info", "name")
    assert snapshots("usage", "-b", "name").splitlines()[1].split()[2] == "5"
    difference = engine.ground.base / "difference.tar"
    ctr = f"ctr --address={engine.ctr.socket} snapshots --snapshotter=unionfs"
    engine.ground.run(
        *("sh", "-c", f"{ctr} diff name >{difference}"), environment={"PATH": engine.ctr.path}
    )
    with tarfile.open(difference) as tar:
        assert {"etc/words", "data/.wh.new"} <= set(tar.getnames())

    # What `diff` has let go of is garbage, and of a view containerd knows no user either.
    engine.ctr.collect()
    snapshots("view", "look", "name")
    assert "Kind" in snapshots("info", "look")
    told = snapshots("rm", "name", status=1) + engine.ctr.said
    assert "cannot remove snapshot with child" in told
    told = snapshots("info", "nowhere", status=1) + engine.ctr.said
    assert "not found" in told
    snapshots("rm", "look")
    snapshots("rm", "name")


@pytest.mark.parametrize("name", OPTIONS)
def test_containers_live_on_when_the_plugin_and_containerd_end(engine: Engine, name: str) -> None:
    engine.load(name)
    loop = "while :; do echo x >>/growing; sleep 0.02; done"
    engine.run("long", f"echo kept >/before; {loop}", "--detach", snapshotter=name)
    plugin = engine.snapshotters[name]

    def lives() -> None:
        before = int(engine.exec("long", "wc", "-c", "/growing").split()[0])
        engine.exec("long", "sh", "-c", "cat /etc/words /before; mkdir -p /made; ls / >/dev/null")
        wait_for(
            lambda: int(engine.exec("long", "wc", "-c", "/growing").split()[0]) > before,
            engine.ctr.log,
        )

    for number in (signal.SIGTERM, signal.SIGKILL):
        plugin.stop(number)
        lives()
        plugin.start()
        lives()
        engine.ctr.stop(number)
        engine.ctr.start()
        lives()
    plugin.stop()
    engine.ctr.stop()
    plugin.start()
    engine.ctr.start()
    lives()
    assert engine.run("after", "cat /etc/words", "--rm", snapshotter=name) == "second"
    engine.ctr.collect()  # what --rm leaves
    assert [info["kind"] for info in plugin.walk()].count("active") == 1


def test_a_container_starts_again(engine: Engine) -> None:
    engine.load()
    engine.run("again", "cat /made 2>/dev/null; echo made >/made")
    engine.ctr("tasks", "rm", "--force", "again", status=None)
    assert engine.ctr("tasks", "start", "again") == "made"


def test_fifty_at_once(engine: Engine) -> None:
    engine.load()
    plugin = engine.snapshotters["unionfs"]
    (top,) = [info["key"].split("/", 2)[2] for info in plugin.walk() if info["parent"]]
    prepare = f"ctr --address={engine.ctr.socket} snapshots --snapshotter=unionfs prepare"
    script = f"""
        for number in $(seq 50); do
            ({prepare} "own $number" {top}; {prepare} same {top} 2>&1 | grep -o "already exists") &
        done
        wait
    """
    said = engine.ground.run("sh", "-c", script, environment={"PATH": engine.ctr.path})
    assert said.split("\n") == [*["already exists"] * 49, ""]
    assert [info["kind"] for info in plugin.walk()].count("active") == 51
    for line in engine.ctr("snapshots", "--snapshotter=unionfs", "ls").splitlines()[1:]:
        if line.split()[-1] == "Active":
            engine.ctr(
                "snapshots", "--snapshotter=unionfs", "rm", line.partition(" sha256")[0].strip()
            )


def test_garbage_is_collected(engine: Engine) -> None:
    """What containerd does not know goes, and the layers of images that are removed."""
    plugin = engine.snapshotters["unionfs"]
    engine.load()
    plugin.snapshots("prepare", "never told to containerd")
    assert len(plugin.walk()) == 3
    engine.ctr("images", "rm", "--sync", IMAGE)
    wait_for(lambda: plugin.walk() == [], lambda: str(plugin.walk()))
    plugin.snapshots("cleanup")
    assert len(list((plugin.root / "overlay/snapshots").iterdir())) == len(
        json.loads(plugin.snapshots("ls", "--json"))
    )


def test_the_same_image_in_two_namespaces(engine: Engine) -> None:
    engine.load()
    engine.ctr("images", "import", "--snapshotter=unionfs", str(engine.image), namespace="other")
    run = ("run", "--rm", "--snapshotter=unionfs", IMAGE, "c", "cat", "/etc/words")
    assert engine.ctr(*run, namespace="other") == "second"
    engine.ctr("images", "rm", "--sync", IMAGE, namespace="other")
    assert engine.ctr(*run) == "second"


def test_a_broken_layer_leaves_nothing(engine: Engine) -> None:
    broken = archive(member("file", data=b"whole"))[:600] + b"\xff" * 1000
    path = image_file(engine.ground.base / "broken.tar", "broken", engine.base, broken)
    engine.ctr("images", "import", "--snapshotter=unionfs", str(path), status=1)
    assert "failed to extract layer" in engine.ctr.said
    engine.clear()


def test_ids_are_mapped(engine: Engine) -> None:
    engine.load()
    mapped = ("--remap-labels", "--uidmap=0:100000:65536", "--gidmap=0:100000:65536")
    said = engine.run(
        "mapped", "cat /proc/self/uid_map; stat -c %u:%g /etc /bin/busybox; >/made", *mapped
    )
    assert said.split() == ["0", "100000", "65536", "0:0", "0:0"]
    plugin = engine.snapshotters["unionfs"]
    (key,) = [info["key"] for info in plugin.walk() if info["kind"] == "active"]
    assert json.loads(plugin.snapshots("info", "--json", key))[0]["labels"] == {
        "containerd.io/snapshot/uidmapping": "0:100000:65536",
        "containerd.io/snapshot/gidmapping": "0:100000:65536",
    }
    (mount,) = json.loads(plugin.snapshots("mounts", "--json", key))
    upper = next(one for one in mount["options"] if one.startswith("upperdir="))
    made = (Path(upper.removeprefix("upperdir=")) / "made").stat()
    assert (made.st_uid, made.st_gid) == (0, 0), "as in an image"


def test_who_cannot_map_ids_says_so(engine: Engine) -> None:
    engine.load("unionfs-kernel")
    mapped = ("--remap-labels", "--uidmap=0:100000:65536", "--gidmap=0:100000:65536")
    options = ("--snapshotter=unionfs-kernel", *mapped)
    engine.ctr("run", *options, IMAGE, "mapped", "true", status=1)
    assert "only a union maps ids" in engine.ctr.said


def test_a_plugin_that_is_away(engine: Engine) -> None:
    engine.load()
    plugin = engine.snapshotters["unionfs"]
    plugin.stop()
    try:
        engine.ctr("run", "--snapshotter=unionfs", IMAGE, "x", "true", status=1)
        assert "unavailable" in engine.ctr.said.lower() or "connect" in engine.ctr.said
    finally:
        plugin.start()
    # containerd tries again after some seconds.
    listed = ("snapshots", "--snapshotter=unionfs", "ls")
    wait_for(lambda: "KEY" in engine.ctr(*listed, status=None), lambda: engine.ctr.said)
    with contextlib.suppress(AssertionError):
        engine.ctr("containers", "rm", "x")
    assert engine.run("one", "cat /etc/words", "--rm") == "second"


def test_what_a_running_container_has_changed(engine: Engine) -> None:
    engine.load()
    engine.run("long", "echo x >/made; sleep 60", "--detach")
    wait_for(lambda: "made" in engine.exec("long", "ls", "/"), engine.ctr.log)
    difference = engine.ground.base / "running.tar"
    ctr = f"ctr --address={engine.ctr.socket} snapshots --snapshotter=unionfs"
    engine.ground.run(
        *("sh", "-c", f"{ctr} diff long >{difference}"), environment={"PATH": engine.ctr.path}
    )
    with tarfile.open(difference) as tar:
        assert "made" in tar.getnames()
    assert engine.exec("long", "cat", "/made") == "x"
