"""Every kind of name renamed to every kind of name, as the kernel's overlayfs does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.build import KINDS
from tests.system import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mounts import Layers
    from tests.oracle import Pair

pytestmark = [pytest.mark.needs_root, pytest.mark.kernel_overlay]

#: A chosen few: the others differ from these in nothing that a rename looks at.
NAMES = (
    "absent",
    "lower_file",
    "upper_file",
    "covered_file",
    "deleted_file",
    "deleted_directory",
    "lower_empty",
    "lower_full",
    "upper_empty",
    "upper_full",
    "merged_full",
    "merged_empty",
    "opaque_full",
    "opaque_empty",
    "directory_over_file",
    "redirected",
    "lower_symlink",
    "lower_links",
)
FLAGS = {"plain": 0, "noreplace": RENAME_NOREPLACE, "exchange": RENAME_EXCHANGE}
CASES = [(flag, source, target) for flag in FLAGS for source in NAMES for target in NAMES]


def build(layers: Layers) -> None:
    """One directory for each case, merged from all layers."""
    for case in CASES:
        where = "-".join(case)
        for layer in (*layers.lowers, layers.upper):
            assert layer is not None
            (layer / where).mkdir()
        KINDS[case[1]](layers, f"{where}/source")
        KINDS[case[2]](layers, f"{where}/target")


@pytest.mark.parametrize(("flag", "source", "target"), CASES)
def test_rename(arena: Pair, flag: str, source: str, target: str) -> None:
    where = f"{flag}-{source}-{target}"

    def rename(root: Path) -> None:
        renameat2(root / "source", root / "target", FLAGS[flag])

    arena.same(rename, where)
    arena.same_tree(where)


def test_whiteout_flag_is_refused(arena: Pair) -> None:
    def rename(root: Path) -> None:
        renameat2(root / "upper", root / "other", RENAME_WHITEOUT)

    arena.same(lambda root: (root / "upper").touch())
    assert arena.same(rename).error == "EINVAL"


def test_all_of_it_after_a_remount(arena: Pair) -> None:
    arena.remount()
    arena.same_tree()


def test_all_of_it_mounted_by_the_other(arena: Pair) -> None:
    arena.cross()
    arena.same_tree()
