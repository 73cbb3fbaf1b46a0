"""A store with volumes, on every driver or on the one that all have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.drivers import KITS, home_of
from tests.store.volume_ground import VolumeGround
from tests.watchdog import Watchdog

#: Those that differ in how a volume is shown, captured and given back.
_KITS = ("overlay", "block-ext4", "reflink-xfs")


def _ground(kit: str, scratch: Path, watchdog: Watchdog) -> Iterator[VolumeGround]:
    with home_of(KITS[kit], scratch) as home:
        made = VolumeGround(KITS[kit], home, watchdog)
        yield made
        made.close()


@pytest.fixture
def ground(scratch: Path, watchdog: Watchdog) -> Iterator[VolumeGround]:
    """A store of the overlay driver."""
    yield from _ground("overlay", scratch, watchdog)


@pytest.fixture(params=[kit for kit in _KITS if kit in KITS])
def any_ground(
    request: pytest.FixtureRequest, scratch: Path, watchdog: Watchdog
) -> Iterator[VolumeGround]:
    """A store of each driver in turn."""
    yield from _ground(request.param, scratch, watchdog)
