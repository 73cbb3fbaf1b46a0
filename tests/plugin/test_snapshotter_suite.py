"""containerd's checks of a snapshotter, over every driver, through the socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.drivers import KITS, home_of, ready
from tests.plugin.snapshotter import SnapshotterGround
from tests.plugin.suite import CHECKS
from tests.watchdog import Watchdog

pytestmark = pytest.mark.needs_root


@pytest.fixture(params=KITS, scope="module")
def served(
    request: pytest.FixtureRequest, module_scratch: Path, watchdog: Watchdog
) -> Iterator[SnapshotterGround]:
    """A snapshotter on one driver."""
    base = module_scratch / request.param
    base.mkdir()
    with ready(KITS[request.param], base) as kit, home_of(kit, base) as home:
        ground = SnapshotterGround(kit, home, watchdog)
        yield ground
        ground.close()


@pytest.fixture
def ground(served: SnapshotterGround, scratch: Path) -> Iterator[SnapshotterGround]:
    """The same without snapshots, and a directory to play in."""
    served.work = scratch
    yield served
    served.clear()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if "128" in name else name for name in CHECKS],
)
def test_containerd_would_take_it(ground: SnapshotterGround, name: str) -> None:
    CHECKS[name](ground)
