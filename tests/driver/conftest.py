"""Every driver in turn, on a file system that it can work on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.drivers import KITS, Ground, home_of, offer_example, ready
from tests.watchdog import Watchdog


@pytest.fixture(scope="session", autouse=True)
def example(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The driver of another package, as the documentation has it."""
    offer_example(tmp_path_factory.mktemp("site"))


@pytest.fixture(params=KITS)
def ground(request: pytest.FixtureRequest, scratch: Path, watchdog: Watchdog) -> Iterator[Ground]:
    """One driver with an empty home."""
    with ready(KITS[request.param], scratch) as kit, home_of(kit, scratch) as home:
        made = Ground(kit, home, watchdog)
        yield made
        made.close()
