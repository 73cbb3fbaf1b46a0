"""The server for one test. Outside of a guest nothing here is collected: it is this machine's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import REPOSITORY
from tests.vm.guest.nfs.server import Daemons, Nfsd


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave the NFS server of whoever runs the tests alone."""
    return None if (REPOSITORY / ".vm").exists() else True


@pytest.fixture(scope="session")
def daemons() -> Iterator[Daemons]:
    """What the kernel's server needs in user space."""
    running = Daemons()
    yield running
    running.end()


@pytest.fixture
def nfsd(daemons: Daemons, scratch: Path) -> Iterator[Nfsd]:
    """The kernel's server, without exports."""
    server = Nfsd(scratch)
    server.start()
    yield server
    server.end()
