"""SIGKILL in the midst of a change: handles of what lives lead to it still, others are stale."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.kills import calls_of_child
from tests.mounts import Layers
from tests.nfs.exported import Exported, fill
from tests.system import RENAME_EXCHANGE

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

#: How many places each change is killed at, and with --thorough.
POINTS, MORE_POINTS = 30, 300

#: The last of these requests is the one in whose midst the daemon is killed.
CHANGES: dict[str, list[tuple[Any, ...]]] = {
    "copy up": [("write", "b/c/d")],
    "rename a lower file": [("rename", "b/c/d", "moved", 0)],
    "rename twice": [
        ("hold", "a/upper"),
        ("rename", "a/upper", "b/x", 0),
        ("rename", "b/x", "y", 0),
    ],
    "rename over another": [("rename", "a/lower1", "a/upper", 0)],
    "rename a merged directory": [("rename", "a", "b/a2", 0)],
    "exchange": [("rename", "a", "b", RENAME_EXCHANGE)],
    "unlink": [("unlink", "a/upper")],
    "unlink one of several names": [("unlink", "d")],
    "unlink one of several upper names": [("unlink", "c/a")],
    "link": [("link", "b/c/d", "another")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_killed(scratch: Path, pytestconfig: pytest.Config, change: str) -> None:
    points = MORE_POINTS if pytestconfig.getoption("--thorough") else POINTS
    calls = _killed(scratch / "all", CHANGES[change], 0)
    dice = random.Random(change)
    for kill_at in sorted(dice.sample(range(1, calls), min(points, calls - 1))):
        _killed(scratch / f"{kill_at}", CHANGES[change], kill_at)


def _killed(place: Path, requests: list[tuple[Any, ...]], kill_at: int) -> int:
    """Take all handles, kill who makes the last of *requests*, and try them."""
    layers = Layers(place)
    fill(layers)
    exported = Exported(layers)
    trio.run(exported.take_all)
    exported.close()

    def prepare() -> Callable[[], Any]:
        other = Exported(layers)
        for request in requests[:-1]:
            trio.run(other.step, *request)
        return lambda: trio.run(other.step, *requests[-1])

    calls = calls_of_child(prepare, kill_at)
    exported.reopen()
    trio.run(exported.restart)
    exported.close()
    return calls
