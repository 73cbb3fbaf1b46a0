"""Fixtures for unions that an ordinary user mounts, and for `UnionFS` called directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.mounts import Layers, UnionMount
from tests.ordinary import USER, as_user, become_user, own
from tests.union.client import Client, opened
from tests.watchdog import Watchdog


@pytest.fixture
def rootless(
    device: None, layers: Layers, watchdog: Watchdog, mounts: Any, python: dict[str, str]
) -> Callable[..., UnionMount]:
    """Mounts `layers` as an ordinary user."""

    def mount(options: str = "") -> UnionMount:
        if (layers.upper or layers.base).stat().st_uid != USER:
            own(layers)
        mounted: UnionMount = mounts.add(
            UnionMount(
                layers,
                watchdog,
                options,
                python=python["PYTHON"],
                environment=python,
                before_exec=become_user,
            )
        )
        as_user(mounted.root.stat)  # answered once the daemon serves
        return mounted

    return mount


@pytest.fixture
def client(request: pytest.FixtureRequest, layers: Layers, ours_only: None) -> Iterator[Client]:
    """A client of `UnionFS` itself over what the test file's `fill` makes of `layers`."""
    request.module.fill(layers)
    layers.remember_lowers()
    with opened(layers) as one:
        yield one
    layers.check_lowers()
