"""The block driver on dm-thin: in a guest, since this machine may have no device-mapper."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.conftest import Run

pytestmark = [pytest.mark.needs_root, pytest.mark.vm]

_SCENARIO = "/unionfs/tests/vm/guest/thin"
_DISKS = ("--disk", "2G", "--disk", "32M")


def test_what_was_kept_survives_a_power_cut(vm: Run, machine: str) -> None:
    first = ("--crash-after", "now cut", *_DISKS, "--", _SCENARIO, "before")
    done = vm("--machine", machine, *first)
    assert done.returncode == 0, done.stdout + done.stderr
    done = vm("--machine", machine, "--", _SCENARIO, "after")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["base", "base captured synced", "in order"]


@pytest.mark.slow
def test_the_conformance_suite_of_drivers(vm: Run) -> None:
    """Whatever is so for all drivers is so for this one; none of it is skipped there."""
    suite = sorted(str(path) for path in Path("tests/driver").glob("test_[ktv]*.py"))
    done = vm("--", "pytest", "-q", "-rs", *suite, "-k", "block-thin", seconds=3600)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "skipped" not in done.stdout
