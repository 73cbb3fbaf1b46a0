"""Inode numbers and links: unique, constant over copy-up, rename and remount."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import build, system

if TYPE_CHECKING:
    from tests.mounts import Layers
    from tests.oracle import Pair

pytestmark = pytest.mark.needs_root

Mount = Callable[..., Any]


def numbers(root: Path) -> dict[str, int]:
    """The inode number of every path below *root*."""
    found = {}
    for where, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(where, name)
            found[str(path.relative_to(root))] = path.lstat().st_ino
    return found


def zoo(layers: Layers) -> None:
    for name, kind in build.KINDS.items():
        kind(layers, f"zoo/{name}")
    build.write(layers.lowers[0] / "deep" / "er" / "file", "deep")
    build.write(layers.lowers[1] / "deep" / "er" / "lowest", "deep")


def test_numbers_are_unique_and_of_one_device(layers: Layers, union: Mount) -> None:
    zoo(layers)
    root = union().root
    seen: dict[int, str] = {root.stat().st_ino: "."}
    for path, number in numbers(root).items():
        status = (root / path).lstat()
        assert status.st_dev == root.stat().st_dev, path
        if status.st_nlink == 1 or (root / path).is_dir():
            assert number not in seen, (path, seen.get(number))
        seen[number] = path


@pytest.mark.usefixtures("ours_only")
def test_numbers_of_layers_on_different_filesystems(layers: Layers, union: Mount) -> None:
    for lower in layers.lowers:  # fresh file systems give the same numbers to different files
        system.mount("tmpfs", lower, "tmpfs")
        for index in range(50):
            build.write(lower / f"{lower.name}-{index}", "x")
    try:
        mounted = union()
        root = mounted.root
        before = numbers(root)
        assert len(set(before.values())) == len(before) == 100
        for name in before:
            (root / name).chmod(0o600)
        (root / "new").touch()
        after = numbers(root)
        assert len(set(after.values())) == 101
        assert {name: after[name] for name in before} == before
        mounted.unmount()
    finally:
        for lower in layers.lowers:
            system.umount(lower, system.MNT_DETACH)


def _copy_up(path: Path) -> None:
    if path.is_symlink():
        os.lchown(path, 1, 1)
    else:
        path.chmod(path.stat().st_mode ^ 0o1)


def test_numbers_stay_over_copy_up(layers: Layers, union: Mount) -> None:
    zoo(layers)
    root = union().root
    before = numbers(root)
    for path in before:
        _copy_up(root / path)
        assert (root / path).lstat().st_ino == before[path], path
    assert numbers(root) == before


def test_numbers_stay_for_who_has_the_file_open(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "file", "old")
    root = union().root
    with open(root / "file", "rb") as file:
        number = os.fstat(file.fileno()).st_ino
        _copy_up(root / "file")
        (root / "file").rename(root / "other")
        assert os.fstat(file.fileno()).st_ino == number == (root / "other").stat().st_ino
        assert os.fstat(file.fileno()).st_mode == (root / "other").stat().st_mode


def test_numbers_stay_over_rename(layers: Layers, union: Mount) -> None:
    zoo(layers)
    root = union().root
    before = numbers(root)
    (root / "zoo").rename(root / "renamed")
    (root / "deep" / "er" / "file").rename(root / "file")
    (root / "deep" / "er").rename(root / "er")
    after = numbers(root)
    for path, number in before.items():
        moved = path.replace("zoo", "renamed", 1)
        moved = {"deep/er/file": "file", "deep/er": "er", "deep/er/lowest": "er/lowest"}.get(
            moved, moved
        )
        assert after[moved] == number, path


def test_numbers_stay_over_remount(layers: Layers, union: Mount) -> None:
    zoo(layers)
    mounted = union()
    root = mounted.root
    for name in ("lower_file", "lower_full", "merged_full", "lower_links", "lowest_file"):
        _copy_up(root / "zoo" / name)
    (root / "deep").rename(root / "moved")
    (root / "zoo" / "lower_symlink").rename(root / "link")
    (root / "new").mkdir()
    before = numbers(root)
    mounted.unmount()
    union()
    assert numbers(root) == before


def test_number_reused_by_the_disk_is_not_the_old_file(layers: Layers, union: Mount) -> None:
    root = union().root
    for round_ in range(50):
        (root / "file").write_text(f"{round_}")
        held = os.open(root / "file", os.O_RDONLY)
        (root / "file").unlink()
        (root / "file").write_text(f"new {round_}")
        assert os.read(held, 100) == f"{round_}".encode()
        assert (root / "file").read_text() == f"new {round_}"
        os.close(held)


def test_open_file_outlives_its_name(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "lower", "lower")
    root = union().root
    (root / "upper").write_text("upper")
    for name in ("lower", "upper"):
        with open(root / name, "r+b") as file:
            (root / name).unlink()
            assert os.fstat(file.fileno()).st_nlink == 0
            assert file.read() == name.encode()
            file.write(b" and more")
            file.flush()
            os.fchmod(file.fileno(), 0o600)
            assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
            file.seek(0)
            assert file.read() == f"{name} and more".encode()
    assert os.listdir(root) == []


def test_open_directory_outlives_its_name(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "directory" / "file")
    root = union().root
    fd = os.open(root / "directory", os.O_RDONLY)
    (root / "directory" / "file").unlink()
    (root / "directory").rmdir()
    assert os.listdir(fd) == []
    assert system.attempt(os.mkdir, f"/proc/self/fd/{fd}/new").error == "ENOENT"
    assert os.fstat(fd).st_mode & 0o777 == 0o755
    os.close(fd)


def linked(layers: Layers) -> None:
    for holder in layers.lowers:
        build.write(holder / f"{holder.name}-a", "linked")
        (holder / "d").mkdir()
        for name in ("-b", "-c"):
            os.link(holder / f"{holder.name}-a", holder / f"{holder.name}{name}")
        os.link(holder / f"{holder.name}-a", holder / "d" / f"{holder.name}-d")


@pytest.mark.kernel_overlay
@pytest.mark.parametrize("holder", ["lower1", "lower2"])
def test_links_of_a_lower_stay_together(pair: Callable[..., Pair], holder: str) -> None:
    both = pair(linked)

    def state(root: Path) -> list[tuple[str, int, int, str]]:
        names = [f"{holder}-{which}" for which in "abc"] + [f"d/{holder}-d", "new", "again"]
        found = [(root / name) for name in names if (root / name).exists()]
        first = {path.stat().st_ino: index for index, path in reversed(list(enumerate(found)))}
        return [
            (path.name, path.stat().st_nlink, first[path.stat().st_ino], path.read_text())
            for path in found
        ]

    for step in (
        lambda root: (root / f"{holder}-b").write_text("written"),
        lambda root: os.link(root / f"{holder}-c", root / "new"),
        lambda root: (root / f"{holder}-a").unlink(),
        lambda root: (root / f"{holder}-c").rename(root / "again"),
        lambda root: (root / "d" / f"{holder}-d").chmod(0o600),
        lambda root: (root / f"{holder}-b").unlink(),
        lambda root: (root / "new").write_text("once more"),
        lambda root: (root / "again").unlink(),
        lambda root: (root / f"{holder}-b").touch(),
    ):
        both.same(state)
        both.same(step)
        both.same(state)
        both.remount()
        both.same(state)
    both.same_everywhere()


@pytest.mark.kernel_overlay
def test_unlinking_links_not_copied_up(pair: Callable[..., Pair]) -> None:
    both = pair(linked)
    both.same(lambda root: (root / "lower1-a").unlink())
    both.same(lambda root: (root / "lower1-b").stat().st_nlink)
    both.same(lambda root: (root / "lower1-b").chmod(0o600))
    both.same(lambda root: (root / "lower1-c").stat().st_nlink)
    both.same(lambda root: (root / "lower1-c").stat().st_mode)
    both.same_everywhere()


@pytest.mark.kernel_overlay
def test_links_survive_an_emptied_workdir_with_their_data(pair: Callable[..., Pair]) -> None:
    both = pair(linked)
    both.same(lambda root: (root / "lower1-a").write_text("written"))
    both.unmount()
    for layers in (both.theirs_layers, both.ours_layers):
        assert layers.work is not None
        for name in os.listdir(layers.work / "index"):
            (layers.work / "index" / name).unlink()
    both.mount()
    assert (both.ours.root / "lower1-a").read_text() == "written"
    assert (both.ours.root / "lower1-b").read_text() in ("written", "linked")
    both.same(lambda root: (root / "lower1-a").read_text())


@pytest.mark.kernel_overlay
def test_directory_link_counts(pair: Callable[..., Pair]) -> None:
    def make(layers: Layers) -> None:
        zoo(layers)
        for name in ("one", "two"):
            (layers.lowers[0] / "parent" / name).mkdir(parents=True)

    both = pair(make)
    both.same(lambda root: (root / "fresh" / "inner").mkdir(parents=True))
    both.same(lambda root: (root / "fresh").stat().st_nlink)
    both.same(lambda root: (root / "parent").stat().st_nlink)
    both.same(lambda root: (root / "parent" / "three").mkdir())
    both.same(lambda root: (root / "parent").stat().st_nlink)
    both.same(lambda root: (root / "parent" / "one").rmdir())
    both.same_tree()


def test_directories_copied_up_on_the_way_show_it(pair: Callable[..., Pair]) -> None:
    """At once, though the kernel has their attributes in its cache."""

    def make(layers: Layers) -> None:
        build.write(layers.lowers[0] / "a" / "b" / "c" / "old", "old")
        build.write(layers.lowers[0] / "a" / "d" / "file", "file")

    def seen(root: Path) -> list[tuple[int, bool]]:
        found = [path.stat() for path in (root, root / "a", root / "a" / "b", root / "a" / "d")]
        return [(one.st_nlink, one.st_ctime_ns > both.since) for one in found]

    both = pair(make)
    both.same(seen)
    time.sleep(0.02)
    both.since = time.time_ns() - 10_000_000
    both.same(lambda root: build.write(root / "a" / "b" / "c" / "new", "new"))
    both.same(seen)
    both.same(lambda root: (root / "a" / "d" / "file").chmod(0o600))
    both.same(seen)
