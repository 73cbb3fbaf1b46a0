"""Modes that shut their owner out: what an ordinary user may do, their union must let them do.

The daemon has no more rights than the user; overlayfs has privilege and never meets this.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import build
from tests.mounts import Layers, UnionMount
from tests.ordinary import USER, as_user, own

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

Rootless = Callable[..., UnionMount]


def _shut(root: Path) -> None:
    """Make one object of each mode that denies something."""
    for mode in (0o000, 0o200, 0o300, 0o444, 0o555):
        (root / f"file{mode:o}").write_text("content")
        (root / f"file{mode:o}").chmod(mode)
        (root / f"directory{mode:o}").mkdir()
        (root / f"directory{mode:o}").chmod(mode)


def _undo(root: Path) -> None:
    """Do to each what its owner may."""
    for path in sorted(root.iterdir()):
        path.chmod(path.lstat().st_mode & 0o7777)
        moved = path.with_name(f"{path.name}-moved")
        path.rename(moved)
        os.utime(moved)
        if path.name.startswith("directory"):
            moved.rmdir()
        else:
            moved.chmod(0o600)
            assert moved.read_text() == "content"
            moved.unlink()


@pytest.mark.parametrize("remounted", [False, True])
def test_objects_of_ones_own(layers: Layers, rootless: Rootless, remounted: bool) -> None:
    mounted = rootless()
    as_user(lambda: _shut(mounted.root))
    if remounted:
        mounted.unmount()
        mounted = rootless()
    as_user(lambda: _undo(mounted.root))
    assert list(as_user(lambda: os.listdir(mounted.root))) == []


def test_made_read_only_and_written(layers: Layers, rootless: Rootless) -> None:
    root = rootless().root

    def work() -> None:
        fd = os.open(root / "new", os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o444)
        os.write(fd, b"content")
        os.ftruncate(fd, 3)
        assert os.pread(fd, 10, 0) == b"con"
        os.close(fd)
        (root / "directory").mkdir(mode=0o555)
        (root / "secret").write_text("x")
        (root / "secret").chmod(0o200)
        fd = os.open(root / "secret", os.O_WRONLY)
        os.write(fd, b"yes")
        os.close(fd)
        (root / "secret").chmod(0o400)
        assert (root / "secret").read_text() == "yes"

    as_user(work)


def test_read_only_directories_of_a_lower(layers: Layers, rootless: Rootless) -> None:
    """As Go's module cache and unpacked read-only trees have them."""
    build.write(layers.lowers[0] / "one" / "two" / "file", "lower")
    (layers.lowers[0] / "one" / "two").chmod(0o555)
    (layers.lowers[0] / "one").chmod(0o500)
    mounted = rootless()
    path = mounted.root / "one" / "two" / "file"
    as_user(lambda: path.write_text("upper"))
    assert layers.upper is not None
    assert (layers.upper / "one").stat().st_mode & 0o777 == 0o500
    assert (layers.upper / "one" / "two").stat().st_mode & 0o777 == 0o555
    mounted.unmount()
    again = rootless()
    assert as_user((again.root / "one" / "two" / "file").read_text) == "upper"


def test_names_in_a_strangers_directory_do_not_matter(layers: Layers, rootless: Rootless) -> None:
    lower = layers.lowers[0]
    build.write(lower / "mine" / "name", "linked")
    (lower / "theirs").mkdir()
    os.link(lower / "mine" / "name", lower / "theirs" / "name")
    own(layers)
    os.chown(lower / "theirs", 0, 0)
    mounted = rootless()
    mounted.allow_log("squash_to_uid")
    root = mounted.root

    def work() -> None:
        assert os.listdir(root / "theirs") == ["name"]
        (root / "theirs" / "name").stat()
        (root / "mine" / "name").write_text("written")
        assert (root / "theirs" / "name").read_text() == "written"

    as_user(work)
    mounted.unmount()
    assert as_user((rootless().root / "mine" / "name").read_text) == "written"


def test_strangers_closed_directory_shows_its_attributes(
    layers: Layers, rootless: Rootless
) -> None:
    own(layers)
    (layers.lowers[0] / "closed").mkdir(mode=0o700)
    (layers.lowers[1] / "closed").mkdir(mode=0o755)
    root = rootless().root
    assert as_user((root / "closed").stat).st_mode & 0o777 == 0o700
    assert as_user(lambda: os.listdir(root)) == ["closed"]


def test_mark_of_a_volatile_mount_behind_a_shut_door(layers: Layers, rootless: Rootless) -> None:
    assert layers.work is not None
    marker = layers.work / "work" / "incompat" / "volatile"
    marker.mkdir(parents=True)
    own(layers)
    (layers.work / "work").chmod(0)
    with pytest.raises(AssertionError, match=r"incompat/volatile"):
        rootless()
    assert marker.is_dir()
    assert (layers.work / "work").stat().st_mode & 0o777 == 0
    assert USER != 0
