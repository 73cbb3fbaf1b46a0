"""What is written through a driver is what a plain directory would have."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import tree
from tests.driver import changes
from tests.driver.drivers import Ground

pytestmark = pytest.mark.needs_root

Change = Callable[[Path], None]


def stack(ground: Ground, plain: Path, levels: Sequence[Change]) -> list[tree.Tree]:
    """Make a committed snapshot for each level, and the same in *plain*; its trees."""
    plain.mkdir()
    plain.chmod(0o755)
    parent = ""
    expected = []
    for number, change in enumerate(levels):
        timed = changes.timed(change, number)
        timed(plain)
        ground.write(f"level {number}", parent, timed)
        parent = f"level {number}"
        expected.append(tree.snapshot(plain, holes=True))
    return expected


def assert_shows(ground: Ground, name: str, expected: tree.Tree) -> None:
    with ground.seen(name) as root:
        found = tree.snapshot(root, holes=True, private=False)
    # A directory's says how many subdirectories there are, or nothing.
    tree.assert_same(expected, found, ignore=("directory.nlink", *ground.kit.loses))


def test_every_kind_of_change(ground: Ground, scratch: Path) -> None:
    for number, expected in enumerate(stack(ground, scratch / "plain", changes.ALL)):
        assert_shows(ground, f"level {number}", expected)


@pytest.mark.parametrize("depth", [2, 20, pytest.param(128, marks=pytest.mark.slow)])
def test_deep_stacks(
    ground: Ground, scratch: Path, pytestconfig: pytest.Config, depth: int
) -> None:
    if not (ground.kit.driver == "overlay" or pytestconfig.getoption("--thorough")):
        depth = min(depth, 40)  # what is left are minutes, for nothing that depends on the depth
    levels = [changes.base, *map(changes.at_random, range(1, depth))]
    expected = stack(ground, scratch / "plain", levels)
    for number in {0, depth // 2, depth - 1}:
        assert_shows(ground, f"level {number}", expected[number])


def test_siblings_do_not_see_each_other(ground: Ground, scratch: Path) -> None:
    (expected,) = stack(ground, scratch / "plain", [changes.base])
    for key in ("C1", "C2", "C3"):
        ground.driver.prepare(key, "level 0")
    with ground.at("C1") as one, ground.at("C2") as two, ground.at("C3") as three:
        changes.delete(one)
        changes.alter(two)
        tree.assert_same(
            expected,
            tree.snapshot(three, holes=True, private=False),
            ignore=("directory.nlink",),
        )
        assert not (one / "deep").exists()
        assert (two / "deep").exists()
    assert_shows(ground, "level 0", expected)


def test_a_view_is_read_only_and_shows_all(ground: Ground, scratch: Path) -> None:
    (expected,) = stack(ground, scratch / "plain", [changes.base])
    ground.driver.view("look", "level 0")
    with ground.at("look") as root:
        for attempt in (
            lambda: (root / "new").write_text(""),
            (root / "etc/file1").unlink,
            lambda: (root / "etc").chmod(0o700),
        ):
            with pytest.raises(OSError, match="Read-only"):
                attempt()
        found = tree.snapshot(root, private=False, holes=True)
    tree.assert_same(expected, found, ignore=("directory.nlink",))


def test_a_snapshot_without_a_parent_is_empty_and_0755(ground: Ground) -> None:
    ground.driver.prepare("new")
    with ground.at("new") as root:
        assert list(root.iterdir()) == []
        assert root.stat().st_mode & 0o7777 == 0o755
        (root / "x").write_text("stays")
    with ground.at("new") as root:
        assert (root / "x").read_text() == "stays"


def test_captured_and_gone_on_with(ground: Ground) -> None:
    ground.driver.prepare("key")
    with ground.at("key") as root:
        (root / "before").write_text("1")
    ground.driver.capture("state", "key")
    with ground.at("key") as root:
        assert (root / "before").read_text() == "1"
        (root / "after").write_text("2")
        (root / "before").unlink()
    with ground.seen("state") as root:
        assert [path.name for path in root.iterdir()] == ["before"]


def test_usage_is_what_du_says(ground: Ground, scratch: Path) -> None:
    def big(root: Path) -> None:
        for number in range(20):
            (root / f"f{number}").write_bytes(bytes([number]) * 1_000_000)

    ground.write("big", "", big)
    plain = scratch / "plain"
    plain.mkdir()
    big(plain)
    said = sum(path.lstat().st_blocks * 512 for path in [*plain.rglob("*"), plain])
    shutil.rmtree(plain)
    used = ground.driver.usage("big")
    # What a block driver has beside the files is a constant of a few MiB.
    assert said * 0.95 <= used.size <= said * 1.05 + ground.overhead
    ground.driver.prepare("small", "big")
    whole = used.size if ground.kit.whole else 0
    assert ground.driver.usage("small").size - whole <= 64 * 1024 + ground.overhead
