"""Layers and disks as engines, strangers and accidents leave them."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import build, system, tree
from tests.mounts import Layers

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

Mount = Callable[..., Any]


def _upper(layers: Layers) -> Path:
    assert layers.upper is not None
    return layers.upper


def _work(layers: Layers) -> Path:
    assert layers.work is not None
    return layers.work


def test_exchange_with_a_name_that_an_engine_hid_below(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "d" / "x", "x")
    build.write(layers.lowers[0] / "e", "below")
    build.write(_upper(layers) / "e", "upper")
    build.write(_upper(layers) / ".wh.e")
    mounted = union()
    system.renameat2(mounted.root / "d", mounted.root / "e", system.RENAME_EXCHANGE)
    assert (mounted.root / "e" / "x").read_text() == "x"
    mounted.unmount()
    again = union()
    assert (again.root / "e" / "x").read_text() == "x"
    assert (again.root / "d").read_text() == "upper"


def test_default_acl_of_the_workdir_stays_there(layers: Layers, union: Mount) -> None:
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rwx", _work(layers)], check=True)
    build.write(layers.lowers[0] / "file", "lower")
    root = union().root
    (root / "new").touch()
    (root / "directory").mkdir()
    (root / "file").write_text("changed")
    for name in ("new", "directory", "file"):
        assert os.listxattr(root / name) == [], name


@pytest.mark.kernel_overlay
def test_metacopy_file_is_refused_untouched(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "file", "content")
    options = layers.options("metacopy=on,redirect_dir=on")
    system.mount("overlay", layers.merged, "overlay", 0, options)
    (layers.merged / "file").chmod(0o600)
    system.umount(layers.merged)
    mounted = union()
    mounted.allow_log("metacopy")
    path = mounted.root / "file"
    for change in (lambda: path.write_text(""), lambda: os.truncate(path, 0), path.read_text):
        assert system.attempt(change).error == "EPERM"
    mounted.unmount()
    system.mount("overlay", layers.merged, "overlay", 0, options)
    assert (layers.merged / "file").read_text() == "content"
    system.umount(layers.merged)


def test_index_entry_without_names_is_removed(layers: Layers, union: Mount) -> None:
    """As a daemon leaves it that is killed between the last whiteout and the index."""
    build.write(layers.lowers[0] / "a", "linked")
    os.link(layers.lowers[0] / "a", layers.lowers[0] / "b")
    mounted = union()
    (mounted.root / "a").write_text("changed")
    mounted.unmount()
    index = _work(layers) / "index"
    [entry] = index.iterdir()
    for name in ("a", "b"):
        (_upper(layers) / name).unlink(missing_ok=True)
        build.whiteout(_upper(layers) / name)
    os.setxattr(entry, "trusted.overlay.nlink", b"U-1")
    assert list(union().root.iterdir()) == []
    assert list(index.iterdir()) == []


def test_emptied_workdir_costs_no_data(layers: Layers, union: Mount) -> None:
    """Engines empty it between mounts: what was written is there under the name it came by."""
    build.write(layers.lowers[0] / "a", "linked")
    os.link(layers.lowers[0] / "a", layers.lowers[0] / "b")
    mounted = union()
    (mounted.root / "a").stat()
    (mounted.root / "b").write_text("changed by b")
    (mounted.root / "a").unlink()
    mounted.unmount()
    for inside in _work(layers).iterdir():
        shutil.rmtree(inside)
    again = union()
    assert (again.root / "b").read_text() == "changed by b"
    assert not (again.root / "a").exists()


def _image(path: Path, fill: Callable[[Path], None]) -> None:
    """Make an ext4 image with what *fill* puts in."""
    where = path.with_suffix(".mnt")
    where.mkdir()
    with path.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    subprocess.run(["mount", "-o", "loop", path, where], check=True)
    fill(where)
    system.umount(where)


def test_copies_of_one_image_are_told_apart(layers: Layers, union: Mount, scratch: Path) -> None:
    """They have one UUID and the same handles, so that an origin could mean either."""

    def fill(where: Path) -> None:
        build.write(where / "d" / "one", "first")
        os.link(where / "d" / "one", where / "d" / "two")

    _image(scratch / "first.img", fill)
    shutil.copyfile(scratch / "first.img", scratch / "second.img")
    places = [scratch / "first.mnt", scratch / "second"]
    places[1].mkdir()
    subprocess.run(["mount", "-o", "loop", scratch / "second.img", places[1]], check=True)
    (places[1] / "d" / "one").write_text("second")
    (places[1] / "d").rename(places[1] / "d2")
    subprocess.run(["mount", "-o", "loop", scratch / "first.img", places[0]], check=True)
    layers.lowers = places
    mounted = union()
    (mounted.root / "d" / "one").write_text("changed")
    assert (mounted.root / "d2" / "one").read_text() == "second"
    (mounted.root / "d2" / "two").write_text("changed too")
    assert (mounted.root / "d" / "two").read_text() == "changed"
    assert (mounted.root / "d2" / "one").read_text() == "changed too"
    numbers = {path.stat().st_ino for path in mounted.root.glob("d*/*")}
    assert len(numbers) == 2
    mounted.unmount()
    for place in places:
        system.umount(place)


def test_few_descriptors_do_for_many_directories(layers: Layers, union: Mount) -> None:
    for index in range(600):
        build.write(layers.lowers[0] / f"d{index}" / "sub" / "file", "x")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    mounted = union(before_exec=limit)
    assert len(tree.snapshot(mounted.root)) == 1 + 600 * 3
    with contextlib.ExitStack() as files:
        for index in range(100):
            files.enter_context((mounted.root / f"d{index}" / "sub" / "file").open())
        assert (mounted.root / "d599" / "sub" / "file").read_text() == "x"


def test_union_on_a_union(layers: Layers, union: Mount, scratch: Path) -> None:
    """FUSE has no RENAME_WHITEOUT and no devices 0:0: the other ways are taken."""
    outer = union()
    inner = Layers(scratch / "inner", lowers=1)
    for name in ("upper", "work"):
        (outer.root / name).mkdir()
    inner.upper, inner.work = outer.root / "upper", outer.root / "work"
    build.write(inner.lowers[0] / "a", "a")
    build.write(inner.lowers[0] / "b", "b")
    build.write(inner.lowers[0] / "d" / "c", "c")
    (inner.lowers[0] / "empty").mkdir()
    mounted = union(layers=inner)
    root = mounted.root
    (root / "a").rename(root / "b")
    (root / "d").rename(root / "empty")
    (root / "d").mkdir()
    (root / "b").chmod(0o600)
    seen = tree.snapshot(root)
    assert sorted(seen) == [b".", b"b", b"d", b"empty", b"empty/c"]
    assert (root / "b").read_text() == "a"
    mounted.unmount()
    again = union(layers=inner)
    tree.assert_same(seen, tree.snapshot(again.root), ignore=("nlink",))
    again.unmount()


def test_removed_directory_can_still_be_changed(layers: Layers, union: Mount) -> None:
    root = union().root
    (root / "d").mkdir()
    fd = os.open(root / "d", os.O_RDONLY | os.O_DIRECTORY)
    (root / "d").rmdir()
    (root / "d").mkdir()
    os.fchmod(fd, 0o700)
    os.utime(fd)
    assert os.listdir(fd) == []
    assert os.fstat(fd).st_mode & 0o777 == 0o700
    assert (root / "d").stat().st_mode & 0o777 != 0o700
    os.close(fd)
