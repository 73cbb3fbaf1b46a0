"""Renames that tell a story: directories moved, moved back, merged and moved again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import build, tree
from tests.oracle import Pair
from tests.system import RENAME_EXCHANGE, attempt, renameat2

if TYPE_CHECKING:
    from tests.mounts import Layers

pytestmark = [pytest.mark.needs_root, pytest.mark.kernel_overlay]

Make = Callable[..., Pair]
Step = Callable[[Path], Any]


def forest(layers: Layers) -> None:
    """Directories in both lowers and the upper, merged at several depths."""
    assert layers.upper is not None
    holders = {"lowest": layers.lowers[1], "lower": layers.lowers[0], "upper": layers.upper}
    for name, holder in holders.items():
        for place in ("a", "a/b", "a/b/c", f"only-{name}", f"only-{name}/sub"):
            build.write(holder / place / name, name)
    build.write(layers.lowers[0] / "a" / "linked", "linked")
    os.link(layers.lowers[0] / "a" / "linked", layers.lowers[0] / "a" / "b" / "linked")


def mv(old: str, new: str) -> Step:
    return lambda root: os.rename(f"{root}/{old}", f"{root}/{new}")


def swap(old: str, new: str) -> Step:
    return lambda root: renameat2(root / old, root / new, RENAME_EXCHANGE)


def touch(name: str) -> Step:
    return lambda root: (root / name).write_text(name)


def rm(name: str) -> Step:
    return lambda root: (root / name).unlink()


def mkdir(name: str) -> Step:
    return lambda root: (root / name).mkdir()


STORIES: dict[str, list[Step]] = {
    "there and back": [mv("a", "z"), touch("z/b/new"), mv("z", "a"), rm("a/b/lowest")],
    "inner, then outer": [mv("a/b/c", "a/c2"), mv("a/b", "b2"), mv("a", "a2"), touch("b2/x")],
    "outer, then inner": [mv("a", "a2"), mv("a2/b", "b2"), mv("b2/c", "c2"), touch("c2/lower")],
    "into another": [mv("only-lower", "a/b/c/in"), mv("only-lowest/sub", "a/b/c/in/sub2")],
    "a new one in the old place": [
        mv("a", "z"),
        mkdir("a"),
        touch("a/fresh"),
        mv("z/b", "a/b"),
        mv("a", "y"),
        mkdir("a"),
    ],
    "exchange": [swap("a", "only-lower"), touch("a/sub/n"), swap("a/sub", "only-lower/b")],
    "exchange with a parent's child": [swap("a/b", "a/b/c"), swap("a", "a/b")],
    "file for directory": [swap("a/b", "a/lower"), mv("a/lower", "dir"), touch("dir/lowest")],
    "into itself": [mv("a", "a/b/a"), mv("a/b", "a/b/c/b"), mv("a", "a")],
    "onto its parent": [mv("a/b", "a"), mv("a/b/c", "a/b")],
    "links onto each other": [
        mv("a/linked", "a/b/linked"),
        touch("a/linked"),
        mv("a/linked", "a/b/linked"),
        mv("a/b/linked", "moved-link"),
    ],
    "links apart": [mv("a/b", "b2"), touch("b2/linked"), mv("a", "a2"), rm("a2/linked")],
    "emptied and replaced": [
        mv("only-lower/sub", "s"),
        rm("only-lower/lower"),
        mv("s", "only-lower"),
        mv("only-lower", "only-lowest/sub"),
        rm("only-lowest/sub/lowest"),
        mv("only-lower", "only-lowest/sub"),
    ],
    "over a whiteout": [rm("a/lower"), mv("a/lowest", "a/lower"), mv("a/upper", "a/lowest")],
    "a chain of names": [mv("a", "1"), mv("1", "2"), mv("2", "3"), mv("3/b", "3/4"), mv("3", "5")],
    "deep below a moved one": [
        mv("a", "moved"),
        touch("moved/b/c/lowest"),
        mkdir("moved/b/c/new"),
        mv("moved/b/c", "c"),
        rm("c/upper"),
        rm("c/lower"),
        mv("moved", "a"),
    ],
    "rotating three": [
        mv("a", "t"),
        mv("only-lower", "a"),
        mv("only-upper", "only-lower"),
        mv("t", "only-upper"),
    ],
    "trailing names": [mv("a/b/", "b"), mv("b/.", "c"), mv("b/..", "c"), mv("a/lower/", "c")],
}


@pytest.mark.parametrize("often", [False, True], ids=["", "remounting"])
@pytest.mark.parametrize("story", STORIES)
def test_story(pair: Make, story: str, often: bool) -> None:
    both = pair(forest)
    for step in STORIES[story]:
        both.same(step)
        both.same_tree()
        if often:
            both.remount()
            both.same_tree()
    both.same_everywhere()


@pytest.mark.usefixtures("ours_only")
def test_long_redirect_paths(pair: Make) -> None:
    """The kernel writes no redirect of more than 256 bytes (EXDEV), but follows it."""
    names = [f"{index}-" + "n" * 100 for index in range(6)]

    def make(layers: Layers) -> None:
        path = layers.lowers[0]
        for name in names:
            path /= name
            build.write(path / "file", name)

    both = pair(make)
    deep = "/".join(names)
    assert attempt(os.rename, both.theirs.root / deep, both.theirs.root / "flat").error == "EXDEV"
    os.rename(both.ours.root / deep, both.ours.root / "flat")
    both.ours.root.joinpath(*names[:2]).rename(both.ours.root / "two")
    seen = tree.snapshot(both.ours.root)
    both.cross()
    tree.assert_same(seen, tree.snapshot(both.ours.root))


def test_renamed_directory_is_changed_by_who_stands_in_it(pair: Make) -> None:
    both = pair(forest)

    def work(root: Path) -> list[str]:
        fd = os.open(root / "a" / "b", os.O_RDONLY | os.O_DIRECTORY)
        try:
            (root / "a").rename(root / "elsewhere")
            os.close(os.open("made-here", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
            os.unlink("lower", dir_fd=fd)
            os.rename("lowest", "renamed", src_dir_fd=fd, dst_dir_fd=fd)
            os.rename("c", root / "out", src_dir_fd=fd)
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    both.same(work)
    both.same_everywhere()


def test_open_files_follow_a_rename(pair: Make) -> None:
    both = pair(forest)

    def work(root: Path) -> list[Any]:
        with open(root / "a" / "b" / "lower", "r+b", buffering=0) as file:
            (root / "a" / "b" / "lower").rename(root / "one")
            file.write(b"ONE")
            (root / "one").rename(root / "two")
            file.write(b"TWO")
            (root / "a" / "lower").rename(root / "two")
            file.write(b"after")
            return [(root / "two").read_text(), os.fstat(file.fileno()).st_nlink]

    both.same(work)
    both.same_everywhere()


def test_without_redirects(layers: Layers, union: Callable[..., Any]) -> None:
    forest(layers)
    root = union("redirect_dir=off").root

    def error(old: str, new: str) -> int | None:
        try:
            (root / old).rename(root / new)
        except OSError as problem:
            return problem.errno
        return None

    assert error("a", "z") == errno.EXDEV
    assert error("only-lower", "z") == errno.EXDEV
    assert error("only-upper", "y") is None
    assert error("a/lower", "file") is None
    assert (root / "a" / "b" / "lower").read_text() == "lower"
