"""One file that takes its time never holds up who asks for others."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import build
from tests.fuse.slow import SECONDS
from tests.mounts import Layers
from tests.system import in_child

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.device_session,
    pytest.mark.skipif(
        "UNIONFS_TEST_INTERPRETED" in os.environ,
        reason="counts tenths of a second, and this machine's CPU is interpreted",
    ),
]

Mount = Callable[..., Any]

#: Seconds in which everything else is answered.
SOON = 0.1
#: Options for both ways in which files are read.
WAYS = ["passthrough=auto", "passthrough=off"]


@pytest.fixture
def slow(scratch: Path, union: Mount) -> Layers:
    """Layers whose lower is a file system that waits before each read of `slow` files."""
    below = Layers(scratch / "below")
    for number in range(3):
        build.write(below.lowers[0] / f"slow{number}", b"slow" * 1000)
    build.write(below.lowers[0] / "big slow", bytes(4 << 20))
    for number in range(1000):
        build.write(below.lowers[0] / "directory" / f"fast{number}", b"fast")
    union("passthrough=off", layers=below, program=("-m", "tests.fuse.slow"))
    layers = Layers(scratch / "above", lowers=1)
    layers.lowers = [below.merged]
    layers.lower_may_change = True  # it is looked at below,
    layers._lowers_before = {below.merged: {}}  # and not now: that would read it all
    return layers


def elsewhere(root: Path, number: int) -> None:
    """Ask for this and that."""
    os.stat(root / "directory" / f"fast{number}")
    assert (root / "directory" / f"fast{number}").read_bytes() == b"fast"
    with open(root / f"new{number}", "wb") as file:
        file.write(b"new")
    os.mkdir(root / f"made{number}")
    os.rename(root / f"new{number}", root / f"made{number}" / "new")
    assert os.listdir(root / f"made{number}") == ["new"]
    assert not os.path.exists(root / f"absent{number}")


def worst(action: Callable[[int], Any], rounds: int) -> float:
    """The longest time that *action* took."""
    longest = 0.0
    for number in range(rounds):
        begun = time.monotonic()
        action(number)
        longest = max(longest, time.monotonic() - begun)
    return longest


@contextmanager
def meanwhile(*actions: Callable[[], Any]) -> Iterator[Callable[[], bool]]:
    """Other processes that do something; yields whether all are still at it."""
    threads = [threading.Thread(target=in_child, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    yield lambda: all(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("way", WAYS)
def test_slow_reads(slow: Layers, union: Mount, way: str) -> None:
    """More of them than there are readers."""
    root = union(way, layers=slow).root
    os.listdir(root / "directory")
    reads = [lambda n=n: (root / f"slow{n}").read_bytes() for n in range(3)]
    with meanwhile(*reads) as busy:
        longest = worst(lambda number: elsewhere(root, number), 20)
        assert busy()
    assert longest < SOON * 3


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_up_that_takes_long(slow: Layers, union: Mount, way: str) -> None:
    root = union(way, layers=slow).root

    def write() -> None:
        with open(root / "big slow", "r+b") as file:
            file.write(b"x")

    with meanwhile(write) as busy:
        longest = worst(lambda number: elsewhere(root, number), 20)
        begun = time.monotonic()
        os.stat(root / "big slow")
        assert time.monotonic() < begun + SOON
        assert busy()
    assert longest < SOON * 3
    with open(root / "big slow", "rb") as file:
        assert file.read(2) == b"x\0"


@pytest.mark.parametrize("way", WAYS)
def test_who_waits_for_one_copy_up(slow: Layers, union: Mount, way: str) -> None:
    """Many wait for the same file, and nobody else does."""
    root = union(way, layers=slow).root
    changes = [lambda n=n: os.chmod(root / "big slow", 0o600 + n) for n in range(6)]
    with meanwhile(*changes) as busy:
        longest = worst(lambda number: elsewhere(root, number), 20)
        assert busy()
    assert longest < SOON * 3


@pytest.mark.parametrize("way", WAYS)
def test_the_listing_of_a_large_directory(layers: Layers, union: Mount, way: str) -> None:
    for holder in layers.lowers:
        (holder / "huge").mkdir()
        for number in range(60_000):
            os.mknod(holder / "huge" / f"{holder.name}-{number}")
    for number in range(200):
        build.write(layers.lowers[0] / "directory" / f"fast{number}", b"fast")
    root = union(way).root
    os.stat(root / "directory")

    def listing() -> None:
        begun = time.monotonic()
        for _ in range(2):
            assert len(os.listdir(root / "huge")) == 120_000
        (layers.base / "took").write_text(str(time.monotonic() - begun))

    with meanwhile(listing):
        longest = worst(lambda number: elsewhere(root, number), 40)
    # The names are sorted at once, which takes a slow machine longer than anything is to take.
    assert longest < max(SOON * 5, float((layers.base / "took").read_text()) / 2)


def test_a_slow_disk_at_fsync(layers: Layers, union: Mount) -> None:
    for number in range(200):
        build.write(layers.lowers[0] / "directory" / f"fast{number}", b"fast")
    root = union("passthrough=off").root

    def sync() -> None:
        with open(root / "file", "wb") as file:
            for _ in range(30):
                file.write(bytes(1 << 20))
                file.flush()
                os.fsync(file.fileno())

    with meanwhile(sync):
        longest = worst(lambda number: elsewhere(root, number), 40)
    assert longest < SOON * 5


def test_the_slow_file_system_is_slow(slow: Layers) -> None:
    begun = time.monotonic()
    assert (slow.lowers[0] / "slow0").read_bytes() == b"slow" * 1000
    assert time.monotonic() - begun > SECONDS * 0.9
