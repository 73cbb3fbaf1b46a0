"""An NFS server for one test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.nfs import ganesha

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(scratch: Path) -> Iterator[ganesha.Ganesha]:
    """nfs-ganesha, not started yet."""
    if lacking := ganesha.missing():
        pytest.skip(f"not installed: {', '.join(lacking)}")
    one = ganesha.Ganesha(scratch / "ganesha")
    yield one
    one.close()
