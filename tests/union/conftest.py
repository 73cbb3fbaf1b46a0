"""Fixtures for unions that an ordinary user mounts, and for `UnionFS` called directly."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import system
from tests.mounts import REPOSITORY, Layers, UnionMount
from tests.ordinary import USER, as_user, become_user, own
from tests.union.client import Client, opened
from tests.watchdog import Watchdog


@pytest.fixture
def device() -> Iterator[None]:
    """/dev/fuse open to everyone, as distributions have it."""
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    mode = os.stat("/dev/fuse").st_mode & 0o777
    os.chmod("/dev/fuse", 0o666)
    yield
    os.chmod("/dev/fuse", mode)


@pytest.fixture
def python(scratch: Path) -> dict[str, str]:
    """This Python and the project where every user can reach them.

    They may stand in somebody's home; bind mounts in our own mount namespace bring them here.
    """
    places = {
        "python": Path(sys.base_prefix),
        "packages": Path(sysconfig.get_path("purelib")),
        "project": REPOSITORY,
    }
    for name, place in places.items():
        (scratch / name).mkdir()
        system.mount(place, scratch / name, None, system.MS_BIND)
    inside = Path(sys.executable).resolve().relative_to(Path(sys.base_prefix).resolve())
    return {
        "PATH": f"{scratch / 'python' / inside.parent}:/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHON": str(scratch / "python" / inside),
        "PYTHONPATH": f"{scratch / 'project'}:{scratch / 'packages'}",
        "LD_LIBRARY_PATH": str(scratch / "python" / "lib"),
        "XDG_RUNTIME_DIR": str(scratch),
    }


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
