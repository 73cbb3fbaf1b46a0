"""The reflink driver: extents are shared, on xfs by copies, on btrfs by subvolumes."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.drivers import KITS, Ground, home_of
from tests.watchdog import Watchdog
from unionfs.driver.api import Usage
from unionfs.driver.attach import attach, detach
from unionfs.driver.reflink import ReflinkDriver
from unionfs.errors import FailedPreconditionError, UnsupportedError

pytestmark = pytest.mark.needs_root

MIB = 1 << 20


@pytest.fixture
def on(scratch: Path, watchdog: Watchdog, request: pytest.FixtureRequest) -> Iterator[Ground]:
    kit = KITS[f"reflink-{request.param}"]
    with home_of(kit, scratch) as home:
        made = Ground(kit, home, watchdog)
        yield made
        made.close()


both = pytest.mark.parametrize("on", ["xfs", "btrfs"], indirect=True)
btrfs = pytest.mark.parametrize("on", ["btrfs"], indirect=True)
xfs = pytest.mark.parametrize("on", ["xfs"], indirect=True)


def fill(root: Path) -> None:
    for number in range(4):
        (root / f"file{number}").write_bytes(os.urandom(16 * MIB))


def free(home: Path) -> int:
    os.sync()
    status = os.statvfs(home)
    return status.f_bavail * status.f_frsize


@both
def test_a_copy_takes_no_space(on: Ground) -> None:
    on.write("base", "", fill)
    before = free(on.home)
    for number in range(5):
        on.driver.prepare(f"copy {number}", "base")
    assert before - free(on.home) <= 4 * MIB
    with on.at("copy 0") as root, (root / "file2").open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"x" * MIB)
    assert MIB <= on.driver.usage("copy 0").size <= MIB + on.overhead
    assert on.driver.usage("copy 1").size <= on.overhead
    assert on.driver.usage("base").size >= 64 * MIB, "as it was when it was committed"


@both
def test_a_view_takes_nothing_and_is_read_only(on: Ground) -> None:
    on.write("base", "", fill)
    on.driver.view("look", "base")
    assert on.driver.usage("look") == Usage(0, 0)
    (mount,) = on.driver.mounts("look")
    assert (mount.type, "ro" in mount.options) == ("bind", True)


@btrfs
def test_committed_is_read_only_for_everybody(on: Ground) -> None:
    on.write("base", "", fill)
    assert isinstance(on.driver, ReflinkDriver)
    tree = Path(on.driver.tree(on.driver.metadata.find("base")))
    with pytest.raises(OSError, match="Read-only"):
        (tree / "new").write_text("x")


@btrfs
def test_captured_while_it_is_written(on: Ground, scratch: Path) -> None:
    on.driver.prepare("key")
    target = scratch / "target"
    target.mkdir()
    attach(on.driver.mounts("key"), str(target))
    stop, written = threading.Event(), [0]

    def write() -> None:
        while not stop.is_set():
            (target / f"{written[0]:06}").write_text("x")
            written[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while written[0] < 50:
            pass
        before = written[0]
        on.driver.capture("name", "key")
        after = written[0]
    finally:
        stop.set()
        writer.join()
        detach(str(target))
    with on.seen("name") as root:
        names = sorted(os.listdir(root))
    assert before <= len(names) <= after + 1
    assert names == [f"{number:06}" for number in range(len(names))], "one point in time"
    with on.at("key") as root:
        assert len(os.listdir(root)) == written[0]


@xfs
def test_a_copy_is_not_captured_while_it_is_mounted(on: Ground) -> None:
    assert not on.driver.capabilities.live_snapshot
    on.driver.prepare("key")
    with on.at("key"), pytest.raises(FailedPreconditionError, match="mounted"):
        on.driver.capture("name", "key")


@btrfs
def test_subvolumes_inside_are_removed_too(on: Ground) -> None:
    on.driver.prepare("key")
    with on.at("key") as root:
        (root / "a").mkdir()
        for inner in ("a/one", "a/one/two", "three"):
            made = ["btrfs", "subvolume", "create", str(root / inner)]
            subprocess.run(made, check=True, capture_output=True)
        (root / "a/one/file").write_text("x")
    on.driver.remove("key")
    assert list(on.driver.walk()) == []


@xfs
def test_a_copy_is_not_protected_as_what_it_was_made_of(on: Ground) -> None:
    on.write("base", "", fill)
    assert isinstance(on.driver, ReflinkDriver)
    tree = Path(on.driver.tree(on.driver.metadata.find("base")))
    subprocess.run(["chattr", "+i", tree / "file1"], check=True)
    on.driver.prepare("key", "base")
    subprocess.run(["chattr", "-i", tree / "file1"], check=True)
    with on.at("key") as root:
        (root / "file1").write_text("mine")


def test_a_file_system_that_shares_nothing(scratch: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"shares no extents.*btrfs or xfs.*overlay"):
        ReflinkDriver.open(str(scratch / "home"), {})
