"""The drivers that the conformance suite runs over, and how a test opens and mounts them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import system
from tests.driver.pools import pool
from tests.mounts import REPOSITORY, device_minor
from tests.watchdog import Watchdog
from unionfs.driver.api import Driver
from unionfs.driver.attach import attach, detach
from unionfs.driver.registry import driver_class
from unionfs.errors import UnsupportedError


class Kit(NamedTuple):
    """How to have one driver."""

    driver: str
    options: Mapping[str, str] = {}
    #: What the home's file system is made by, on a loop device; empty: whatever tests run on.
    mkfs: str = ""
    #: What a snapshot takes of the disk beside its files, in bytes, at the most.
    overhead: int = 16384
    #: What it does not keep, as `tree.differences` calls it. Overlayfs counts links of a lower file
    #: that a layer above deletes, and the kernel's fills holes when it copies up.
    loses: tuple[str, ...] = ()
    #: Whether each snapshot takes as much as its whole tree.
    whole: bool = False
    #: Whether it works on a thin pool, which is made for each test.
    pool: bool = False


#: By the name that tests show. Each is made to work here or skipped by name.
KITS: dict[str, Kit] = {
    "overlay": Kit("overlay", loses=("file.nlink",)),
    "overlay-kernel": Kit("overlay", {"mounter": "kernel"}, loses=("file.nlink", "holes")),
    "block-ext4": Kit("block", {"size": "1G"}, overhead=4 << 20),
    "block-xfs": Kit("block", {"size": "1G", "fs": "xfs"}, overhead=8 << 20),
    "block-thin": Kit("block", {"size": "1G", "engine": "thin"}, overhead=8 << 20, pool=True),
    "block-thin-xfs": Kit(
        "block", {"size": "1G", "engine": "thin", "fs": "xfs"}, overhead=8 << 20, pool=True
    ),
    "reflink-xfs": Kit("reflink", mkfs="mkfs.xfs -q -m reflink=1", overhead=1 << 16),
    "reflink-btrfs": Kit("reflink", mkfs="mkfs.btrfs -q", overhead=1 << 16),
    "example": Kit("copy", whole=True),
}

EXAMPLE = REPOSITORY / "docs/examples/copydriver.py"


def offer_example(site: Path) -> None:
    """Have the example's driver found, as a package in the directory *site* offers it."""
    about = site / "copydriver-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: copydriver\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[unionfs.drivers]\ncopy = copydriver:CopyDriver\n")
    shutil.copy(EXAMPLE, site)
    sys.path.append(str(site))


@contextlib.contextmanager
def ready(kit: Kit, scratch: Path) -> Iterator[Kit]:
    """Give *kit* with what its options name."""
    if not kit.pool:
        yield kit
        return
    with pool(scratch) as path:
        yield kit._replace(options={**kit.options, "thinpool": path})


@contextlib.contextmanager
def home_of(kit: Kit, scratch: Path) -> Iterator[Path]:
    """Give an empty directory on a file system that the driver can work on."""
    home = scratch / "home"
    home.mkdir()
    if not kit.mkfs:
        yield home
        return
    image = scratch / "image"
    with image.open("wb") as file:
        file.truncate(2 << 30)
    subprocess.run([*kit.mkfs.split(), str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(home)], check=True)
    try:
        yield home
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


class Ground:
    """One driver's home, and what of it is mounted."""

    def __init__(self, kit: Kit, home: Path, watchdog: Watchdog) -> None:
        self.kit = kit
        self.home = home
        self.overhead = kit.overhead
        self._base = home.parent
        self._watchdog = watchdog
        self._opened: list[Driver] = []
        self.driver = self.open()

    def open(self) -> Driver:
        """Open the driver, as one more process would."""
        try:
            driver = driver_class(self.kit.driver).open(
                str(self.home / self.kit.driver), self.kit.options
            )
        except UnsupportedError as error:
            pytest.skip(str(error))
        self._opened.append(driver)
        return driver

    @contextlib.contextmanager
    def at(self, key: str, driver: Driver | None = None) -> Iterator[Path]:
        """Give a directory that shows the snapshot *key*."""
        driver = driver or self.driver
        target = self._base / f"at-{os.urandom(4).hex()}"
        target.mkdir()
        attach(driver.mounts(key), str(target))
        minor = device_minor(target) or -1  # only a daemon's mount can hang
        self._watchdog.arm(minor, 120)
        try:
            yield target
        finally:
            self._watchdog.disarm(minor)
            detach(str(target))
            driver.release(key)
            target.rmdir()

    def write(self, key: str, parent: str, change: Callable[[Path], None]) -> None:
        """Make the committed snapshot *key* on top of *parent* with what *change* does."""
        self.driver.prepare(f"making {key}", parent)
        with self.at(f"making {key}") as root:
            change(root)
        self.driver.commit(key, f"making {key}")

    @contextlib.contextmanager
    def seen(self, name: str) -> Iterator[Path]:
        """Give a directory that shows the committed snapshot *name*."""
        key = f"view of {name} {os.urandom(4).hex()}"
        self.driver.view(key, name)
        with self.at(key) as root:
            yield root
        self.driver.remove(key)

    def close(self) -> None:
        """Close what was opened, and see that nothing is left over."""
        for driver in self._opened:
            driver.close()
        with contextlib.closing(
            driver_class(self.kit.driver).open(str(self.home / self.kit.driver), self.kit.options)
        ) as driver:
            keys = [info.key for info in driver.walk()]
            for key in reversed(keys):
                driver.remove(key)
            assert driver.cleanup() == []
        left = os.listdir(self.home / self.kit.driver / "snapshots")
        assert left == [], "data without a snapshot"


def unmount_below(path: Path) -> None:
    """Detach whatever is mounted below *path*."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        target = line.split()[4]
        if target.startswith(f"{path}/"):
            system.umount(target, system.MNT_DETACH)
