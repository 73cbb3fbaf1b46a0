"""What is going on when the power is cut: changes to a union, commits and restores in a store.

Run as a program in a guest it makes all of it on one file system, and says before and after each
step which one it is: "begin-7", "done-7", and "durable-7" when step 7 was synced as users do that.
Which steps there are, and in which order, is drawn from a seed: the host knows the same ones.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from tests import archives
from tests.crash.operations import OPERATIONS, Operation, make, write
from tests.mounts import Layers
from unionfs.store.backup import restore
from unionfs.store.store import Store
from unionfs.store.volumes import Volumes

#: The drivers that keep a store on each file system.
DRIVERS: Final = {"ext4": ("overlay",), "xfs": ("overlay", "reflink")}
VOLUME: Final = "volume"
#: Commits and restores in one run, for each driver.
ROUNDS: Final = 4
_LOWERS: Final = 2


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _overwrite(root: Path) -> None:
    with (root / "large").open("r+b") as file:
        file.write(b"y" * 300_000)


def _overwrite_and_fsync(root: Path) -> None:
    with (root / "large").open("r+b") as file:
        file.seek(100_000)
        file.write(b"z" * 65536)
        file.flush()
        os.fsync(file.fileno())


def _replace_as_editors_do(root: Path) -> None:
    new = root / "deep/down/.file.new"
    with new.open("wb") as file:
        file.write(b"new content" * 2000)
        file.flush()
        os.fsync(file.fileno())
    new.rename(root / "deep/down/file")
    _fsync(root / "deep/down")


def _append_and_fsync(root: Path) -> None:
    write(root / "large", os.O_APPEND)
    _fsync(root / "large")


#: Writes of data, beside the operations that are one system call each.
WRITES: Final[dict[str, Operation]] = {
    "overwrite": _overwrite,
    "overwrite and fsync": _overwrite_and_fsync,
    "append and fsync": _append_and_fsync,
    "replace and fsync": _replace_as_editors_do,
}
#: Those that sync by themselves what they did.
SYNCED: Final = frozenset({"overwrite and fsync", "append and fsync", "replace and fsync"})
#: The file that gets data by an operation: of what was not synced any part may be lost.
WRITTEN: Final = {
    "append": "deep/down/file",
    "append to a large file": "large",
    "append and fsync": "large",
    "overwrite": "large",
    "overwrite and fsync": "large",
}
#: What an operation of several calls makes first, and has renamed at its end.
PASSING: Final = {"replace and fsync": "deep/down/.file.new"}


class Change(NamedTuple):
    """A change to the union, in a directory of its own."""

    slot: str
    name: str
    sync: bool
    """Whether all in its directory is synced afterwards."""

    @property
    def operation(self) -> Operation:
        return (OPERATIONS | WRITES)[self.name]


class Commit(NamedTuple):
    """A snapshot is made on top of the last one, filled and committed."""

    driver: str
    round: int

    @property
    def committed(self) -> str:
        return f"commit-{self.round}"

    @property
    def making(self) -> str:
        return f"making-{self.round}"

    def files(self) -> dict[str, bytes]:
        """All that is in the committed snapshot, by name."""
        kept = {f"only-{number}": content(number, 3000) for number in range(self.round + 1)}
        return {**kept, "shared": content(self.round, 200_000), f"last-{self.round}": b"last"}


class Restore(NamedTuple):
    """The volume gets the files of an archive instead of those that it has."""

    driver: str
    round: int

    def files(self) -> dict[str, bytes]:
        """All that is in the volume afterwards, by name."""
        return {f"file-{n}": content(self.round * 10 + n, 50_000) for n in range(4)}


Step = Change | Commit | Restore


def content(seed: int, size: int) -> bytes:
    """Bytes that are no others'."""
    return Random(seed).randbytes(size)


def steps(seed: int, filesystem: str, only: Sequence[str] = ()) -> list[Step]:
    """Return the steps that *seed* draws; with *only* no others of the changes to the union."""
    random = Random(seed)
    names = list(only or OPERATIONS | WRITES)
    random.shuffle(names)
    found: list[Step] = [
        Change(f"{number:03}", name, random.random() < 0.3) for number, name in enumerate(names)
    ]
    rounds = () if only else range(ROUNDS)
    for driver in DRIVERS[filesystem]:
        for kind in (Commit, Restore):
            places = sorted(random.sample(range(len(found) + 1), len(rounds)), reverse=True)
            for number, place in zip(reversed(rounds), places, strict=True):
                found.insert(place, kind(driver, number))
    return found


class Ground:
    """The file system on which all of it is made."""

    def __init__(self, place: Path, *, there: bool = False) -> None:
        self.layers = Layers(place / "union", _LOWERS, there=there)
        self.store = place / "store"

    def fill(self, planned: Sequence[Step]) -> None:
        """Make the layers, with a directory for each change to the union."""
        assert self.layers.upper is not None
        for step in planned:
            if isinstance(step, Change):
                layers = (self.layers.upper, *self.layers.lowers)
                make(*(layer / step.slot for layer in layers))

    @contextlib.contextmanager
    def opened(self, driver: str) -> Iterator[Store]:
        """Give the store, opened with *driver*."""
        with contextlib.closing(Store.open(str(self.store), driver, {})) as store:
            yield store


class Worker:
    """Makes the steps on *ground*, with a directory *place* of its own to mount on."""

    def __init__(self, ground: Ground, place: Path, stores: dict[str, Store]) -> None:
        self._ground = ground
        self._place = place
        self._stores = stores

    def make(self, step: Step) -> bool:
        """Make *step*; say whether it is to be there after a power cut."""
        match step:
            case Change():
                return self.change(step)
            case Commit():
                self._commit(step)
            case Restore():
                self._restore(step)
        return True

    def change(self, step: Change) -> bool:
        root = self._ground.layers.merged / step.slot
        step.operation(root)
        if step.sync:
            for where, _, files in os.walk(root):
                for name in files:
                    if not os.path.islink(os.path.join(where, name)):
                        _fsync(Path(where, name))
                _fsync(Path(where))
        return step.sync or step.name in SYNCED

    def _commit(self, step: Commit) -> None:
        store = self._stores[step.driver]
        store.driver.prepare(step.making, f"commit-{step.round - 1}" if step.round else "")
        store.mount(step.making, str(self._place))
        for name, data in step.files().items():
            if name.startswith(("shared", "last-", f"only-{step.round}")):
                (self._place / name).write_bytes(data)
        if step.round:
            (self._place / f"last-{step.round - 1}").unlink()
        store.umount(str(self._place))
        store.commit(step.committed, step.making)

    def _restore(self, step: Restore) -> None:
        restore(
            Volumes(self._stores[step.driver]),
            volume_of(step.driver),
            packed(step.files()),
            progress=lambda _size: None,
            notice=lambda _text: None,
        )


def volume_of(driver: str) -> str:
    """The name of the volume whose files *driver* keeps."""
    return f"{VOLUME}-{driver}"


def packed(files: dict[str, bytes]) -> io.BytesIO:
    """Return a tar of *files*."""
    members = (archives.member(name, data=data) for name, data in files.items())
    return io.BytesIO(archives.archive(*members))


def _say_to_log(name: str) -> Callable[[str], None]:
    def say(mark: str) -> None:
        subprocess.run(["dmsetup", "message", name, "0", "mark", mark], check=True)

    return say


def _say_aloud(mark: str) -> None:
    for path in ("/dev/stdout", "/dev/console"):
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{mark}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("filesystem", choices=DRIVERS)
    parser.add_argument("seed", type=int)
    parser.add_argument("only", nargs="*")
    parser.add_argument("--log", help="the dm-log-writes device that is told")
    given = parser.parse_args()
    say = _say_to_log(given.log) if given.log else _say_aloud
    planned = steps(given.seed, given.filesystem, given.only)
    ground = Ground(given.place)
    ground.fill(planned)
    place = Path("/run/place")
    place.mkdir()
    drivers = {step.driver for step in planned if not isinstance(step, Change)}
    with contextlib.ExitStack() as stack:
        stores = {name: stack.enter_context(ground.opened(name)) for name in sorted(drivers)}
        command = [sys.executable, "-m", "unionfs", "mount", "-o", ground.layers.options()]
        subprocess.run([*command, str(ground.layers.merged)], check=True)
        worker = Worker(ground, place, stores)
        os.sync()
        say("start")
        for number, step in enumerate(planned):
            say(f"begin-{number}")
            durable = worker.make(step)
            say(f"durable-{number}" if durable else f"done-{number}")
        subprocess.run([*command[:3], "umount", str(ground.layers.merged)], check=True)


if __name__ == "__main__":
    main()
