"""containerd's own checks of a snapshotter, by the names that they have there.

What they do and what they expect is that of its package core/snapshots/testsuite. Each is given a
snapshotter that has no snapshots.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from tests import tree
from tests.containerd import KEEP
from tests.plugin.snapshotter import KINDS, SnapshotterGround
from unionfs.plugin.snapshotter.messages import Info, Timestamp

Change = Callable[[Path], None]
LABELS = {KEEP: "suite"}
#: What the suite compares of two trees, and what it does not.
IGNORED = ("mtime", "nlink", "group")


def write(root: Path, name: str, text: str, mode: int = 0o644) -> None:
    (root / name).write_text(text)
    (root / name).chmod(mode)


def directory(root: Path, name: str, mode: int = 0o700) -> None:
    (root / name).mkdir()
    (root / name).chmod(mode)


def failed(code: str, call: Callable[[], object]) -> str:
    """The text of the error with *code* that *call* must end with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code().name == code, caught.value.details()
    text = caught.value.details()
    assert isinstance(text, str)
    return text


def assert_tree(expected: Path, root: Path) -> None:
    """Fail unless *root* has the names, modes, owners and contents of *expected*."""
    tree.assert_same(
        tree.snapshot(expected, private=False), tree.snapshot(root, private=False), ignore=IGNORED
    )


def check_layers(ground: SnapshotterGround, changes: Iterable[Change]) -> None:
    """Make a layer of each change, and compare each with a directory that is changed alike."""
    number = len(ground.client.walk())
    flat = ground.work / f"flat{number}"
    flat.mkdir()
    flat.chmod(0o755)
    parent = ""
    for change in changes:
        number += 1
        ground.layer(f"layer {number}", parent, change, LABELS)
        change(flat)
        parent = f"layer {number}"
        with ground.at(ground.client.view(f"{parent}-view", parent, LABELS)) as root:
            assert_tree(flat, root)
        ground.client.remove(f"{parent}-view")


def times(info: Info) -> tuple[int, int]:
    """When it was made and when it was changed, in nanoseconds."""
    made, changed = (one.seconds * 10**9 + one.nanos for one in (info.created_at, info.updated_at))
    return made, changed


def basic(ground: SnapshotterGround) -> None:
    client, flat = ground.client, ground.work / "flat"

    def first(root: Path) -> None:
        write(root, "foo", "foo\n", 0o777)
        (root / "a/b/c").mkdir(parents=True)

    def second(root: Path) -> None:
        write(root, "bar", "bar\n", 0o777)
        write(root, "foo", "bar\n", 0o777)
        shutil.rmtree(root / "a/b")

    flat.mkdir()
    flat.chmod(0o755)
    first(flat)
    ground.layer("committed", "", first, LABELS)
    one = client.stat("committed")
    assert (one.parent, one.kind) == ("", KINDS.COMMITTED)
    failed("NOT_FOUND", lambda: client.stat("making committed"))
    with ground.at(client.prepare("next", "committed", LABELS)) as root:
        assert_tree(flat, root)
        second(root)
    active = client.stat("next")
    assert (active.parent, active.kind) == ("committed", KINDS.ACTIVE)
    client.commit("next committed", "next", LABELS)
    two = client.stat("next committed")
    assert (two.parent, two.kind) == ("committed", KINDS.COMMITTED)
    failed("NOT_FOUND", lambda: client.stat("next"))
    assert client.walk() == [one, two]
    second(flat)
    with ground.at(client.view("view", "next committed", LABELS)) as root:
        assert_tree(flat, root)
    client.remove("view")
    assert "remove" in failed("FAILED_PRECONDITION", lambda: client.remove("committed"))
    client.remove("next committed")
    client.remove("committed")


def stat_active(ground: SnapshotterGround) -> None:
    with ground.at(ground.client.prepare("preparing", "", LABELS)) as root:
        write(root, "foo", "foo\n")
        info = ground.client.stat("preparing")
    assert (info.name, info.kind, info.parent) == ("preparing", KINDS.ACTIVE, "")


def stat_committed(ground: SnapshotterGround) -> None:
    """The suite commits what is still mounted; where that is no bind, we refuse it."""
    client = ground.client
    with ground.at(client.prepare("preparing", "", LABELS)) as root:
        write(root, "foo", "foo\n")
        if ground.kit.driver == "block":
            told = failed(
                "FAILED_PRECONDITION", lambda: client.commit("committed", "preparing", LABELS)
            )
            assert "mounted" in told
        else:
            client.commit("committed", "preparing", LABELS)
            with pytest.raises(OSError, match="Read-only"):
                write(root, "foo", "changed")
    if ground.kit.driver == "block":
        client.commit("committed", "preparing", LABELS)
    info = client.stat("committed")
    assert (info.name, info.kind, info.parent) == ("committed", KINDS.COMMITTED, "")


def transitivity(ground: SnapshotterGround) -> None:
    ground.layer("A", "", lambda root: write(root, "foo", "foo\n"), LABELS)
    ground.layer("B", "A", lambda root: write(root, "foo", "foo bar\n"), LABELS)
    assert ground.client.stat("A").parent == ""
    assert ground.client.stat("B").parent == "A"
    assert ground.client.stat(ground.client.stat("B").parent).parent == ""


def prepare_view_failing(ground: SnapshotterGround) -> None:
    client = ground.client
    ground.layer("A", "", lambda root: write(root, "foo", "foo\n"), LABELS)
    client.prepare("new", "A", LABELS)
    failed("ALREADY_EXISTS", lambda: client.view("new", "A", LABELS))
    client.prepare("prepared", "A", LABELS)
    failed("ALREADY_EXISTS", lambda: client.prepare("prepared", "A", LABELS))
    client.view("view", "A", LABELS)
    failed("ALREADY_EXISTS", lambda: client.view("view", "A", LABELS))


def update(ground: SnapshotterGround) -> None:
    client = ground.client
    before = time.time_ns()
    client.prepare("c1-a", "", LABELS)
    client.commit("c1", "c1-a", LABELS)
    client.prepare("c2-a", "c1", LABELS)
    client.commit("c2", "c2-a", LABELS)
    client.prepare("a1", "c2", LABELS)
    client.prepare("a2", "", LABELS)
    client.view("v1", "c2", LABELS)
    client.view("v2", "", LABELS)
    after = time.time_ns()
    for name, kind, parent in (
        ("c1", KINDS.COMMITTED, ""),
        ("c2", KINDS.COMMITTED, "c1"),
        ("a1", KINDS.ACTIVE, "c2"),
        ("a2", KINDS.ACTIVE, ""),
        ("v1", KINDS.VIEW, "c2"),
        ("v2", KINDS.VIEW, ""),
    ):
        info = client.stat(name)
        made, changed = times(info)
        assert before <= made == changed <= after, name
        assert (info.name, info.kind, info.parent) == (name, kind, parent)
        labels = {"l1": "v1", "l2": "v2", "l3": "v3", KEEP: "updated"}
        now = time.time_ns()
        found = client.update(replace(info, parent="doesnotexist", labels=labels))
        assert times(found)[0] == made
        assert now <= times(found)[1] <= time.time_ns()
        assert (found.name, found.kind, found.parent) == (name, kind, parent)
        assert found.labels == labels
        wanted = replace(found, labels={"l1": "updated", "l4": "v4"})
        found = client.update(wanted, "labels.l1", "labels.l2")
        assert found.labels == {"l1": "updated", "l3": "v3", KEEP: "updated"}
        found = client.update(replace(found, labels={"l4": "v4", KEEP: "updated"}), "labels")
        assert found.labels == {"l4": "v4", KEEP: "updated"}
        wanted = replace(found, parent="doesnotexist")
        failed("INVALID_ARGUMENT", lambda wanted=wanted: client.update(wanted, "parent"))  # type: ignore[misc]


def remove(ground: SnapshotterGround) -> None:
    client = ground.client
    client.prepare("committed-a", "", LABELS)
    client.commit("committed-1", "committed-a", LABELS)
    client.prepare("reuse-1", "committed-1", LABELS)
    client.remove("reuse-1")
    client.view("reuse-1", "committed-1", LABELS)
    client.remove("reuse-1")
    client.prepare("reuse-1", "", LABELS)
    client.remove("committed-1")
    client.commit("committed-1", "reuse-1", LABELS)


def walk(ground: SnapshotterGround) -> None:
    client, kept = ground.client, f'labels."{KEEP}"==suite'
    client.prepare("a-np", "", LABELS)
    client.prepare("p-tmp", "", LABELS)
    client.commit("p", "p-tmp", LABELS)
    client.prepare("a", "p", LABELS)
    client.view("v", "p", LABELS)
    client.prepare("p-wl-tmp", "", LABELS)
    client.commit("p-wl", "p-wl-tmp", {"l": "1", **LABELS})
    client.prepare("a-wl", "p-wl", {"l": "2", **LABELS})
    client.view("v-wl", "p-wl", {"l": "3", **LABELS})
    client.prepare("a-np-wl", "", {"l": "2", **LABELS})
    for filters, names in (
        ([kept], "a-np p a v p-wl a-wl v-wl a-np-wl"),
        ([f"kind==active,{kept}"], "a-np a a-wl a-np-wl"),
        ([f"kind==view,{kept}"], "v v-wl"),
        ([f"kind==committed,{kept}"], "p p-wl"),
        (["name==p", "name==a-np-wl"], "p a-np-wl"),
        (["name==a-wl,labels.l"], "a-wl"),
        (["parent==p"], "a v"),
        ([f'parent!="",{kept}'], "a v a-wl v-wl"),
        (["labels.l"], "p-wl a-wl v-wl a-np-wl"),
        (["labels.l==2"], "a-wl a-np-wl"),
    ):
        assert sorted(info.name for info in client.walk(*filters)) == sorted(names.split()), filters


def layer_file_update(ground: SnapshotterGround) -> None:
    def first(root: Path) -> None:
        directory(root, "etc")
        write(root, "etc/hosts", "mydomain 10.0.0.1")
        write(root, "etc/profile", "PATH=/usr/bin")

    def second(root: Path) -> None:
        write(root, "etc/hosts", "mydomain 10.0.0.2")
        write(root, "etc/profile", "PATH=/usr/bin", 0o666)
        directory(root, "root")
        write(root, "root/.bashrc", "PATH=/usr/sbin:/usr/bin")

    for _ in range(2):  # once is not enough where times have whole seconds
        check_layers(ground, [first, second])


def remove_directory_in_lower_layer(ground: SnapshotterGround) -> None:
    def first(root: Path) -> None:
        directory(root, "lib")
        write(root, "lib/hidden", "")

    def second(root: Path) -> None:
        shutil.rmtree(root / "lib")
        directory(root, "lib")
        write(root, "lib/not-hidden", "")

    check_layers(ground, [first, second, lambda root: write(root, "lib/newfile", "")])


def chown(ground: SnapshotterGround) -> None:
    names = ("opt", "opt/a", "opt/a/b", "opt/a/b/file.txt")

    def first(root: Path) -> None:
        for name in names[:3]:
            directory(root, name)
        write(root, names[3], "hello")

    def second(root: Path) -> None:
        for name in names:
            os.chown(root / name, 1, 1)

    check_layers(ground, [first, second])


def directory_permission_on_commit(ground: SnapshotterGround) -> None:
    def first(root: Path) -> None:
        for number in range(1, 6):
            directory(root, f"dir{number}")
        for name in ("dir4/f1", "dir5/f1"):
            write(root, name, "...")
        for name in ("dir1", "dir2", "dir3", "dir5", "dir5/f1"):
            os.chown(root / name, 1, 1)

    def second(root: Path) -> None:
        os.chown(root / "dir2", 0, 0)
        shutil.rmtree(root / "dir3")
        os.chown(root / "dir4", 1, 1)
        os.chown(root / "dir4/f1", 1, 1)

    def third(root: Path) -> None:
        directory(root, "dir3")
        os.chown(root / "dir3", 1, 1)
        shutil.rmtree(root / "dir5")
        directory(root, "dir5")
        os.chown(root / "dir5", 1, 1)

    check_layers(ground, [first, second, third])


def remove_intermediate_snapshot(ground: SnapshotterGround) -> None:
    client = ground.client
    ground.layer("base", "", lambda _: None, LABELS)
    client.prepare("intermediate", "base", LABELS)
    client.commit("between", "intermediate", LABELS)
    client.prepare("top", "between", LABELS)
    failed("FAILED_PRECONDITION", lambda: client.remove("between"))
    for name in ("top", "between", "base"):
        client.remove(name)


def deleted_files_in_child_snapshot(ground: SnapshotterGround) -> None:
    def first(root: Path) -> None:
        write(root, "foo", "foo\n", 0o777)
        write(root, "foobar", "foobar\n", 0o777)

    check_layers(ground, [first, lambda root: (root / "foobar").unlink(), lambda _: None])


def move_file_from_lower_layer(ground: SnapshotterGround) -> None:
    def first(root: Path) -> None:
        directory(root, "dir1")
        write(root, "dir1/f1", "Hello")
        directory(root, "dir2")
        write(root, "dir2/f2", "...")

    def second(root: Path) -> None:
        directory(root, "dir3")
        write(root, "dir3/f1", "Hello")
        shutil.rmtree(root / "dir1")
        os.link(root / "dir2/f2", root / "dir3/f2")
        (root / "dir2/f2").unlink()

    check_layers(ground, [first, second])


def view_readonly(ground: SnapshotterGround) -> None:
    client = ground.client
    client.prepare("preparing", "", LABELS)
    client.commit("committed", "preparing", LABELS)
    with (
        ground.at(client.view("view", "committed", LABELS)) as root,
        pytest.raises(OSError, match="Read-only"),
    ):
        write(root, "testfile", "testcontent")
    client.remove("view")
    client.remove("committed")


def stat_in_walk(ground: SnapshotterGround) -> None:
    client = ground.client
    client.prepare("c1-a", "", LABELS)
    client.commit("c1", "c1-a", LABELS)
    client.prepare("c2-a", "c1", LABELS)
    client.commit("c2", "c2-a", LABELS)
    client.prepare("a1", "c2", LABELS)
    client.view("v1", "c2", LABELS)
    for _ in client.blocks():
        for name in ("c1", "c2", "a1", "v1"):
            assert client.stat(name).created_at != Timestamp()
    assert [client.stat(info.name) for info in client.walk()] == client.walk()


def close_twice(ground: SnapshotterGround) -> None:
    client = ground.connect()
    client.prepare("prepare", "", LABELS)
    client.commit("name", "prepare", LABELS)
    client.remove("name")
    client.close()
    client.close()


def root_permission(ground: SnapshotterGround) -> None:
    with ground.at(ground.client.prepare("preparing", "", LABELS)) as root:
        assert root.stat().st_mode & 0o777 == 0o755


def rename(ground: SnapshotterGround) -> None:
    def first(root: Path) -> None:
        directory(root, "dir1")
        directory(root, "somefiles")
        write(root, "somefiles/f1", "was here first!")
        write(root, "somefiles/f2", "nothing interesting")

    def second(root: Path) -> None:
        (root / "dir1").rename(root / "dir2")
        write(root, "somefiles/f1-overwrite", "new content 1")
        (root / "somefiles/f1-overwrite").rename(root / "somefiles/f1")
        (root / "somefiles/f2").rename(root / "somefiles/f3")

    check_layers(ground, [first, second])


def layers_mount_128(ground: SnapshotterGround) -> None:
    client, flat, parent = ground.client, ground.work / "flat", ""
    flat.mkdir()
    flat.chmod(0o755)
    # Elsewhere nothing depends on the depth, and it takes minutes.
    for number in range(128 if ground.kit.driver == "overlay" else 30):

        def change(root: Path, number: int = number) -> None:
            if number == 0:
                write(root, "bottom", "way at the bottom\n", 0o777)
                write(root, "overwriteme", "FIRST!\n", 0o777)
                directory(root, "addhere", 0o755)
                directory(root, "onlyme", 0o755)
                write(root, "onlyme/bottom", "bye!\n", 0o777)
                return
            write(root, "overwriteme", f"{number} WAS HERE!\n", 0o777)
            write(root, f"addhere/file-{number}", "same\n", 0o755)
            shutil.rmtree(root / "onlyme")
            directory(root, "onlyme", 0o755)
            write(root, f"onlyme/file-{number}", "only me!\n", 0o777)

        with ground.at(client.prepare("preparing", parent, LABELS)) as root:
            assert_tree(flat, root)
            change(flat)
            change(root)
            assert_tree(flat, root)
        client.commit(f"committed-{number}", "preparing", LABELS)
        parent = f"committed-{number}"
    with ground.at(client.view("fullview", parent, LABELS)) as root:
        assert_tree(flat, root)


#: Each by containerd's name.
CHECKS: dict[str, Callable[[SnapshotterGround], None]] = {
    "Basic": basic,
    "StatActive": stat_active,
    "StatComitted": stat_committed,
    "TransitivityTest": transitivity,
    "PreareViewFailingtest": prepare_view_failing,
    "Update": update,
    "Remove": remove,
    "Walk": walk,
    "LayerFileupdate": layer_file_update,
    "RemoveDirectoryInLowerLayer": remove_directory_in_lower_layer,
    "Chown": chown,
    "DirectoryPermissionOnCommit": directory_permission_on_commit,
    "RemoveIntermediateSnapshot": remove_intermediate_snapshot,
    "DeletedFilesInChildSnapshot": deleted_files_in_child_snapshot,
    "MoveFileFromLowerLayer": move_file_from_lower_layer,
    "ViewReadonly": view_readonly,
    "StatInWalk": stat_in_walk,
    "CloseTwice": close_twice,
    "RootPermission": root_permission,
    "Rename": rename,
    "128LayersMount": layers_mount_128,
}
