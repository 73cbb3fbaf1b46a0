"""A store with one image, and a look at what every test leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.runner import Runner, make_image


@pytest.fixture
def runner(scratch: Path) -> Iterator[Runner]:
    """Runs commands as root; nothing of them is left."""
    made = Runner(scratch)
    make_image(made.root)
    try:
        yield made
        made.wait_until_gone()
    finally:
        made.end()
