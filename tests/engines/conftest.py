"""The engines, each started once in a ground of its own, `unionfs` in fuse-overlayfs's place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.engines.docker import Docker
from tests.engines.ground import Ground
from tests.engines.images import busybox_tar
from tests.engines.ours import UNIONFS, linked
from tests.engines.podman import Podman

__all__ = ["UNIONFS", "linked", "need"]


def need(*programs: str) -> None:
    """Skip the test if one of *programs* is not there."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def ground() -> Iterator[Ground]:
    """A ground without an engine."""
    need("tini", "nsenter")
    with closing(Ground()) as made:
        yield made


def _podman(*, user: bool) -> Iterator[Podman]:
    need("podman", "runc", "tini", "busybox")
    with closing(Ground()) as ground:
        podman = Podman(ground, linked(ground), user=user)
        podman("import", str(busybox_tar(ground.base)), "base")
        yield podman


@pytest.fixture(scope="session")
def podman_of_root() -> Iterator[Podman]:
    """Root's Podman with an image ``base``."""
    yield from _podman(user=False)


@pytest.fixture(scope="session")
def podman_of_user() -> Iterator[Podman]:
    """An ordinary user's Podman with an image ``base``."""
    need("newuidmap", "catatonit", "slirp4netns")
    yield from _podman(user=True)


@pytest.fixture
def podman(podman_of_root: Podman) -> Iterator[Podman]:
    """Root's Podman; the containers of the test are removed after it, and leave nothing."""
    yield podman_of_root
    podman_of_root.clear()


@pytest.fixture
def rootless(podman_of_user: Podman) -> Iterator[Podman]:
    """An ordinary user's Podman, likewise."""
    yield podman_of_user
    podman_of_user.clear()


@pytest.fixture(scope="session")
def dockerd() -> Iterator[Docker]:
    """A dockerd with an image ``base``."""
    need("dockerd", "tini", "busybox", Docker.CLIENT)
    with closing(Ground()) as ground, closing(Docker(ground, linked(ground).parent)) as docker:
        docker("import", str(busybox_tar(ground.base)), "base")
        yield docker


@pytest.fixture
def docker(dockerd: Docker) -> Iterator[Docker]:
    """Docker; the containers of the test are removed after it, and leave nothing."""
    yield dockerd
    dockerd.clear()
