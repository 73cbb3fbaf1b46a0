"""What must be so after a power cut, of all that `tests.vm.cut_steps` does.

The disk of the guest is mounted here: the file system replays its log, and is then in order. Each
change to the union is there or not, never in part, and later ones not without earlier ones; ours
and the kernel's overlayfs see the same. The store opens, with each commit and restore there or
not, and of what was in the making nothing is left after its cleanup. What was durable is there.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from tests import tree
from tests.crash.operations import IGNORED
from tests.mounts import KERNEL_OPTIONS, KernelMount, UnionMount, device_minor
from tests.vm.cut_steps import (
    PASSING,
    WRITTEN,
    Change,
    Commit,
    Ground,
    Restore,
    Step,
    Worker,
    volume_of,
)
from tests.watchdog import Watchdog
from unionfs.driver.api import Kind
from unionfs.driver.attach import attach, detach
from unionfs.store import volume_garbage
from unionfs.store.images import Images
from unionfs.store.store import Store
from unionfs.store.volumes import Volumes

#: What finds all that is wrong with a file system, and changes nothing.
_CHECKERS: Final = {"ext4": ("e2fsck", "-fn"), "xfs": ("xfs_repair", "-n")}
#: What a disk writes whole.
_SECTOR: Final = 512
#: Seconds for one union.
_PATIENCE: Final = 120


class Progress(NamedTuple):
    """How far the steps had come when the power was cut, as far as was heard of it."""

    begun: int
    """The steps before this one may be there."""
    durable: frozenset[int]
    """These must be."""

    @classmethod
    def of(cls, marks: Sequence[str], *, all_heard: int | None = None) -> Progress:
        """Read *marks*; where not all may have been heard, up to *all_heard* steps had begun."""
        said = [mark.partition("-") for mark in marks]
        begun = [int(number) + 1 for what, _, number in said if what == "begin"]
        durable = (int(number) for what, _, number in said if what == "durable")
        return cls(max(begun, default=0) if all_heard is None else all_heard, frozenset(durable))


class Sides(NamedTuple):
    """A directory of the union before a change and after it."""

    old: tree.Tree
    new: tree.Tree
    written: tuple[bytes, bytes] | None
    """What was in the file that the change wrote data to."""


def sides(planned: Sequence[Step], place: Path, watchdog: Watchdog) -> dict[str, Sides]:
    """Make the changes to the union of *planned* here in *place*, and tell what they do."""
    ground = Ground(place)
    ground.fill(planned)
    union = UnionMount(ground.layers, watchdog, seconds=_PATIENCE)
    worker = Worker(ground, place, {})
    found = {}
    for step in planned:
        if isinstance(step, Change):
            root, written = union.root / step.slot, WRITTEN.get(step.name)
            data, old = _read(root, written), tree.snapshot(root)
            worker.change(step._replace(sync=False))
            both = None if written is None else (data, _read(root, written))
            found[step.slot] = Sides(old, tree.snapshot(root), both)
    union.unmount()
    return found


def _read(root: Path, name: str | None) -> bytes:
    return b"" if name is None else (root / name).read_bytes()


@contextlib.contextmanager
def mounted(image: Path, filesystem: str, place: Path) -> Iterator[Path]:
    """Mount *image* on *place*: it replays its log, and is then in order."""
    command = ["losetup", "--show", "--find", str(image)]
    device = subprocess.check_output(command, text=True).strip()
    try:
        mount = ["mount", "-t", filesystem, device, str(place)]
        subprocess.run(mount, check=True)
        subprocess.run(["umount", str(place)], check=True)
        check = [*_CHECKERS[filesystem], device]
        done = subprocess.run(check, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        subprocess.run(mount, check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


class Cut:
    """What a power cut has left in *place*, of the steps that were *planned*."""

    def __init__(
        self,
        place: Path,
        planned: Sequence[Step],
        progress: Progress,
        expected: dict[str, Sides],
        watchdog: Watchdog,
    ) -> None:
        self._ground = Ground(place, there=True)
        self._planned = planned
        self._progress = progress
        self._expected = expected
        self._watchdog = watchdog

    def check(self, seat: Path) -> None:
        """Look at all of it; *seat* is an empty directory to mount on."""
        self._check_union()
        drivers = {step.driver for step in self._planned if not isinstance(step, Change)}
        for name in sorted(drivers):
            with self._ground.opened(name) as store:
                _StoreCheck(store, seat, self._watchdog).check(self._steps_of(name))

    def _steps_of(self, driver: str) -> list[tuple[Commit | Restore, bool, bool]]:
        """Return the steps with *driver*, each with whether it may and must have been made."""
        return [
            (step, number < self._progress.begun, number in self._progress.durable)
            for number, step in enumerate(self._planned)
            if not isinstance(step, Change) and step.driver == driver
        ]

    def _check_union(self) -> None:
        layers = self._ground.layers
        union = UnionMount(layers, self._watchdog, seconds=_PATIENCE)
        try:
            ours = tree.snapshot(union.root)
        except BaseException:
            union.abandon()
            raise
        union.unmount()  # and nothing is left in the work directory
        theirs = KernelMount(layers, KERNEL_OPTIONS)
        seen = tree.snapshot(theirs.root)
        theirs.unmount()
        tree.assert_same(seen, ours, ignore=("directory.nlink",))
        self._check_order(
            {
                number: self._is_made(step, ours)
                for number, step in enumerate(self._planned)
                if isinstance(step, Change)
            }
        )

    def _check_order(self, made: dict[int, bool | None]) -> None:
        for number, is_made in made.items():
            what = f"step {number} of {self._progress}, {self._planned[number]}"
            if number in self._progress.durable:
                assert is_made is not False, f"lost: {what}"
            if number >= self._progress.begun:
                assert not is_made, f"was not even begun: {what}"
        known = [number for number, is_made in made.items() if is_made is not None]
        missing = [number for number in known if not made[number]]
        after = [n for n in known if made[n] and missing and n > missing[0]]
        assert not after, f"{missing[0]} is not there, and later ones are: {after}"

    def _is_made(self, step: Change, ours: tree.Tree) -> bool | None:
        """Say whether *step* is in *ours*; ``None`` if that is not to be seen."""
        number = self._planned.index(step)
        expected = self._expected[step.slot]
        found = _part(ours, step.slot)
        from_new = tree.differences(expected.new, found, ignore=IGNORED)
        if not from_new:
            return True if tree.differences(expected.old, expected.new, ignore=IGNORED) else None
        if (passing := PASSING.get(step.name)) is not None and number < self._progress.begun:
            found.pop(passing.encode(), None)
        from_old = tree.differences(expected.old, found, ignore=IGNORED)
        if expected.written is None:
            assert not from_old, _neither(step, from_old, from_new)
            return False
        if number in self._progress.durable:
            return False
        self._check_written(step, found, expected)
        return None if number < self._progress.begun else bool(from_old)

    def _check_written(self, step: Change, found: tree.Tree, expected: Sides) -> None:
        """Allow a file that was not synced any mixture of what it was, of what it is, and zeros."""
        assert expected.written is not None
        name = WRITTEN[step.name].encode()
        content, size = found[name].content, found[name].size

        def differing(side: tree.Tree) -> list[str]:
            allowed = {**side, name: replace(side[name], content=content, size=size)}
            return tree.differences(allowed, found, ignore=IGNORED)

        from_old, from_new = differing(expected.old), differing(expected.new)
        assert not (from_old and from_new), _neither(step, from_old, from_new)
        _check_mixture(self._data_of(step), *expected.written)

    def _data_of(self, step: Change) -> bytes:
        """What is in the file that *step* wrote to, wherever it is now."""
        layers = self._ground.layers
        for layer in (layers.upper, *layers.lowers):
            assert layer is not None
            path = layer / step.slot / WRITTEN[step.name]
            if path.exists():
                return path.read_bytes()
        raise AssertionError(f"{step}: its file is gone")


def _part(whole: tree.Tree, slot: str) -> tree.Tree:
    """Return what is below *slot*, with the names that it has there."""
    top = slot.encode()

    def inside(name: bytes) -> bytes:
        return b"." if name == top else name.removeprefix(top + b"/")

    return {
        inside(name): replace(entry, group=inside(entry.group))
        for name, entry in whole.items()
        if name == top or name.startswith(top + b"/")
    }


def _neither(step: Change, from_old: list[str], from_new: list[str]) -> str:
    lines = [*from_old, "and not the new one:", *from_new]
    return f"{step}: not the old tree:\n" + "\n".join(lines)


def _check_mixture(found: bytes, old: bytes, new: bytes) -> None:
    sizes = sorted((len(old), len(new)))
    assert sizes[0] <= len(found) <= sizes[1], f"{len(found)} bytes"
    for start in range(0, len(found), _SECTOR):
        sector = found[start : start + _SECTOR]
        sources = (old, new, b"")
        known = [one[start : start + _SECTOR].ljust(len(sector), b"\0") for one in sources]
        assert any(one[: len(sector)] == sector for one in known), f"strange bytes at {start}"


class _StoreCheck:
    """Looks at a store after a power cut, with one of its drivers."""

    def __init__(self, store: Store, seat: Path, watchdog: Watchdog) -> None:
        self._store = store
        self._seat = seat
        self._watchdog = watchdog

    def check(self, made: Sequence[tuple[Commit | Restore, bool, bool]]) -> None:
        """Look at it; of each step *made* tells whether it may and must have been made."""
        Images(self._store).all()
        self._check_commits([one for one in made if isinstance(one[0], Commit)])
        files = self._check_volume([one for one in made if isinstance(one[0], Restore)])
        volume_garbage.cleanup(self._store)
        Images(self._store).cleanup()
        self._store.remove_left_views()
        self._store.driver.cleanup()
        self._check_nothing_is_left(files)

    def _check_commits(self, made: Sequence[tuple[Commit | Restore, bool, bool]]) -> None:
        kinds = {info.key: info.kind for info in self._store.driver.walk()}
        for step, may, must in made:
            assert isinstance(step, Commit)
            committed = kinds.get(step.committed) is Kind.COMMITTED
            assert committed or not must, f"lost: {step}"
            assert may or not committed, f"was not even begun: {step}"
            assert not (committed and step.making in kinds), f"{step}: twice"
            if committed:
                with self._store.viewed(step.committed) as key, self._shown(key) as root:
                    assert _files(root) == step.files(), step

    def _check_volume(self, made: Sequence[tuple[Commit | Restore, bool, bool]]) -> bool:
        """Look at the volume; say whether it is there."""
        volumes = Volumes(self._store)
        found = [one for one in volumes.all() if one.driver == self._store.driver.name]
        required = max((step.round for step, _, must in made if must), default=-1)
        if not found:
            assert required < 0, "the volume is gone"
            return False
        allowed = [step.files() for step, may, _ in made if may and step.round >= required]
        held = volumes.hold(volume_of(self._store.driver.name), "a check", os.getpid())
        try:
            assert _files(Path(held.path)) in allowed, "the volume is none that was restored"
        finally:
            volumes.release(held.id)
        return True

    def _check_nothing_is_left(self, volume: bool) -> None:
        driver = self._store.driver
        assert driver.cleanup() == []
        keys = [info.key for info in driver.walk()]
        assert sum(key.startswith("volume/") for key in keys) == volume, keys
        home = os.path.join(self._store.root, driver.name, "snapshots")
        assert len(os.listdir(home)) == len(keys), "data without a snapshot"
        if volume:
            Volumes(self._store).remove(volume_of(driver.name))
        for key in reversed([key for key in keys if not key.startswith("volume/")]):
            self._store.remove(key)
        assert os.listdir(home) == []

    @contextlib.contextmanager
    def _shown(self, key: str) -> Iterator[Path]:
        attach(self._store.driver.mounts(key), str(self._seat))
        minor = device_minor(self._seat) or -1  # only a daemon's mount can hang
        self._watchdog.arm(minor, _PATIENCE)
        try:
            yield self._seat
        finally:
            self._watchdog.disarm(minor)
            detach(str(self._seat))


def _files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}
