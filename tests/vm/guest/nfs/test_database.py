"""Three clients of the kernel's, without a common cache, on one SQLite database of a union's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests import system
from tests.mounts import Layers
from tests.nfs import shop
from tests.vm.guest.nfs.server import Nfsd

pytestmark = [pytest.mark.needs_root, pytest.mark.any_session]

Mount = Callable[..., Any]
NAMES = ("one", "two", "three")
ROUNDS = 10
#: Seconds for all of them.
PATIENCE = 600


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_three_clients_on_one_database(
    layers: Layers, union: Mount, nfsd: Nfsd, version: str
) -> None:
    """By SQLite's own locks, byte ranges of fcntl(2): nothing is lost, nothing taken twice."""
    shop.make(layers.lowers[0] / "shop.db")
    root = union("nfs_export=on", seconds=PATIENCE).root
    nfsd.export(root)
    mounts = [nfsd.mount(root, version, "nosharecache") for _ in NAMES]
    clients = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.nfs.shop", mount / "shop.db", name, str(ROUNDS)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=system.die_with_parent,  # noqa: PLW1509 - this process has no threads
        )
        for name, mount in zip(NAMES, mounts, strict=True)
    ]
    for client in clients:
        _, said = client.communicate(timeout=PATIENCE)
        assert client.returncode == 0, said
    shop.check(root / "shop.db", NAMES, ROUNDS)
    assert os.listdir(layers.upper or "") == ["shop.db"]
