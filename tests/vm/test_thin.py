"""The block driver on dm-thin: in a guest, since this machine may have no device-mapper."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.driver.drivers import KITS
from tests.vm.conftest import Run

pytestmark = [pytest.mark.needs_root, pytest.mark.vm]

_SCENARIO = "/unionfs/tests/vm/guest/thin"
_PLAIN = ("-p", "no:cacheprovider", "--durations=5")
_DISKS = ("--disk", "2G", "--disk", "32M")


def test_what_was_kept_survives_a_power_cut(vm: Run, machine: str) -> None:
    first = ("--crash-after", "now cut", *_DISKS, "--", _SCENARIO, "before")
    done = vm("--machine", machine, *first)
    assert done.returncode == 0, done.stdout + done.stderr
    done = vm("--machine", machine, "--", _SCENARIO, "after")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["base", "base captured synced", "in order"]


@pytest.mark.slow
def test_a_boot_before_each_step(vm: Run, machine: str) -> None:
    said = ""
    for step in ("prepared", "written", "committed", "shown"):
        done = vm("--machine", machine, *_DISKS, "--", _SCENARIO, "step", step)
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout
    assert said.splitlines() == ["base mounted", "in order"]


@pytest.mark.slow
def test_what_is_the_engines_own(vm: Run) -> None:
    """Pools that are full, disks that fail, devices that are no pool yet."""
    done = vm("--", "pytest", "-q", "-rs", *_PLAIN, "tests/driver/test_thin.py", seconds=1800)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "skipped" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kit", [name for name, kit in KITS.items() if kit.pool])
def test_the_conformance_suite_of_drivers(vm: Run, kit: str) -> None:
    """Whatever is so for all drivers is so for this one; none of it is skipped there."""
    suite = sorted(str(path) for path in Path("tests/driver").glob("test_[ktv]*.py"))
    # One name is the beginning of the other.
    others = [f"not {name}" for name in KITS if name.startswith(kit) and name != kit]
    only = " and ".join([kit, *others])
    done = vm("--", "pytest", "-q", "-rs", *_PLAIN, *suite, "-k", only, seconds=7200)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "skipped" not in done.stdout
