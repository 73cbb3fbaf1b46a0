"""Power cuts in the midst of changes: what was synced is there, the rest is old or new.

A guest makes the steps of `tests.vm.cut_steps` on a disk whose every write is logged
(`tests.vm.writelog`). The power is then cut here, as often as we like: each time the disk gets what
it had at a point of the log, without some of what was in its cache, and is looked at
(`tests.vm.cut_checks`). Some cuts are real ones, of a guest's power.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from random import Random

import pytest

from tests.vm import cache
from tests.vm.conftest import Run
from tests.vm.cut_checks import Cut, Progress, mounted, sides
from tests.vm.cut_steps import DRIVERS, steps
from tests.vm.writelog import Playback
from tests.watchdog import Watchdog

pytestmark = [pytest.mark.needs_root, pytest.mark.vm]

#: Bytes of the disk, and of its log.
SIZES = {"ext4": 160 << 20, "xfs": 320 << 20}
LOG = 2 << 30
#: Where it is mounted, in the guest and here: a store knows its own path.
PLACE = Path("/mnt")
_SCRIPT = "/unionfs/tests/vm/guest/cuts"


def disk_of(machine: str, number: int, image: Path) -> Path:
    """Bring the disk of a kept machine, that is off, into the file *image*."""
    kept = cache.place() / "machines" / machine / f"disk-{number}.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(kept), str(image)], check=True)
    return image


class Playing:
    """Cuts of one guest's work, at points that are drawn from seeds."""

    def __init__(self, playback: Playback, filesystem: str, scratch: Path, watchdog: Watchdog):
        self._playback = playback
        self._filesystem = filesystem
        self._scratch = scratch
        self._watchdog = watchdog

    def cut(self, seed: int, only: tuple[str, ...], cuts: int) -> None:
        """Cut the power *cuts* times in the midst of the steps of *seed*, and look."""
        planned = steps(seed, self._filesystem, only)
        expected = sides(planned, self._scratch / "expected", self._watchdog)
        seat = self._scratch / "seat"
        seat.mkdir()
        random = Random(f"cuts {seed}")
        begin, end = self._playback.find("start"), len(self._playback.entries)
        for number, at in enumerate(sorted(random.choices(range(begin, end + 1), k=cuts))):
            lost = self._playback.cut(at, Random(f"{seed} {number}"), self._scratch / "image")
            progress = Progress.of(self._playback.marks(at))
            try:
                with mounted(self._scratch / "image", self._filesystem, PLACE):
                    Cut(PLACE, planned, progress, expected, self._watchdog).check(seat)
            except Exception as error:
                error.add_note(f"seed {seed}, cut {number} before entry {at}: {lost}")
                raise


def play(
    vm: Run,
    machine: str,
    scratch: Path,
    watchdog: Watchdog,
    *,
    filesystem: str,
    seed: int,
    cuts: int,
    only: tuple[str, ...] = (),
) -> None:
    """Let a guest make the steps of *seed*, and cut its power *cuts* times."""
    disks = ("--disk", str(SIZES[filesystem]), "--disk", str(LOG))
    words = ("--machine", machine, *disks, "--", _SCRIPT, "--log", filesystem, str(seed), *only)
    done = vm(*words, seconds=900)
    assert done.returncode == 0, done.stdout + done.stderr
    log = disk_of(machine, 1, scratch / "log")
    playback = Playback(log, scratch / "disk", SIZES[filesystem])
    Playing(playback, filesystem, scratch, watchdog).cut(seed, only, cuts)


def test_a_few_cuts(vm: Run, machine: str, scratch: Path, watchdog: Watchdog) -> None:
    only = ("append to a large file", "rename lower", "unlink lower", "replace and fsync")
    play(vm, machine, scratch, watchdog, filesystem="ext4", seed=11, cuts=20, only=only)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("filesystem", DRIVERS)
def test_fifty_cuts(
    vm: Run, machine: str, scratch: Path, watchdog: Watchdog, filesystem: str, seed: int
) -> None:
    """Two seeds on two file systems: two hundred cuts."""
    play(vm, machine, scratch, watchdog, filesystem=filesystem, seed=seed, cuts=50)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("filesystem", DRIVERS)
def test_a_real_cut(
    vm: Run, machine: str, scratch: Path, watchdog: Watchdog, filesystem: str, seed: int
) -> None:
    """The guest is gone as soon as its console shows a step that the seed draws."""
    planned = steps(seed, filesystem)
    cut_at = f"begin-{Random(seed).randrange(5, len(planned))}"
    disk = ("--disk", str(SIZES[filesystem]), "--crash-after", cut_at)
    done = vm("--machine", machine, *disk, "--", _SCRIPT, filesystem, str(seed), seconds=900)
    assert done.returncode == 0, done.stdout + done.stderr
    # What it said last may have been cut off, and what it did then was not heard of.
    heard = done.stdout.rpartition("\n")[0].splitlines()
    progress = Progress.of(heard, all_heard=len(planned))
    assert progress.durable
    image, seat = disk_of(machine, 0, scratch / "image"), scratch / "seat"
    seat.mkdir()
    expected = sides(planned, scratch / "expected", watchdog)
    with mounted(image, filesystem, PLACE):
        Cut(PLACE, planned, progress, expected, watchdog).check(seat)
