"""What only the overlay driver has to see to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.drivers import KITS, Ground
from tests.watchdog import Watchdog
from unionfs.driver import overlay
from unionfs.layer.walk import remove_tree

pytestmark = pytest.mark.needs_root


@pytest.fixture
def ground(scratch: Path, watchdog: Watchdog) -> Iterator[Ground]:
    home = scratch / "home"
    home.mkdir()
    made = Ground(KITS["overlay"], home, watchdog)
    yield made
    made.close()


def _one_file(root: Path) -> None:
    (root / "file").write_text("old")


def test_what_a_commit_that_was_cut_short_leaves_can_be_mounted(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.write("base", "", _one_file)
    ground.driver.prepare("active", "base")
    with ground.at("active") as root:
        (root / "file").write_text("new")

    def cut_short(dirfd: int, name: bytes) -> None:
        remove_tree(dirfd, name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(overlay, "remove_tree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            ground.driver.commit("name", "active")
    with ground.at("active") as root:
        assert (root / "file").read_text() == "new"
    ground.driver.commit("name", "active")
