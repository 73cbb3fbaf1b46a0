"""A thin pool for one test, of two files, that thin_check(8) finds in order at the end.

Its disks can be told to fail: dm-linear, dm-error and dm-flakey lie between them and the pool.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_SECTOR = 512
_BLOCK = 128  # sectors, the least there may be


def require_device_mapper() -> None:
    """Skip where no pool can be."""
    for program in ("dmsetup", "thin_check"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    targets = subprocess.run(["dmsetup", "targets"], capture_output=True, text=True, check=False)
    if "thin-pool" not in targets.stdout:
        pytest.skip("this kernel has no thin pools (scripts/test --vm runs it in one that has)")


class Disk:
    """A file of *size* bytes as a disk that fails when it is told to."""

    def __init__(self, file: Path, size: int) -> None:
        with file.open("wb") as made:
            made.truncate(size)
        command = ["losetup", "--show", "--find", str(file)]
        self._below = subprocess.check_output(command, text=True).strip()
        self._sectors = size // _SECTOR
        self._name = f"unionfs-test-{os.urandom(4).hex()}"
        self.path = f"/dev/mapper/{self._name}"
        _dmsetup("create", self._name, "--table", self._part("linear", 0, self._sectors))

    def _part(self, target: str, start: int, end: int) -> str:
        below = "" if target == "error" else f" {self._below} {start}"
        return f"{start} {end - start} {target}{below}"

    def _become(self, *parts: str) -> None:
        _dmsetup("suspend", "--nolockfs", "--noflush", self._name)
        _dmsetup("load", self._name, "--table", "\n".join(parts))
        _dmsetup("resume", self._name)

    def fail(self, start: int = 0, end: int | None = None) -> None:
        """Meet whatever is asked of the bytes from *start* to *end* with an error."""
        first, last = start // _SECTOR, self._sectors if end is None else end // _SECTOR
        parts = (("linear", 0, first), ("error", first, last), ("linear", last, self._sectors))
        self._become(*(self._part(*part) for part in parts if part[1] < part[2]))

    def refuse_writes(self) -> None:
        """Meet all writes with an error, as dm-flakey does while it is down."""
        whole = self._part("flakey", 0, self._sectors)
        self._become(f"{whole} 0 3600 1 error_writes")

    def mend(self) -> None:
        """Be a disk again, with what it had."""
        self._become(self._part("linear", 0, self._sectors))

    def end(self) -> None:
        """Be gone."""
        _dmsetup("remove", "--retry", self._name)
        subprocess.run(["losetup", "--detach", self._below], check=True)


class PoolOfDisks:
    """A pool of two disks in *base*."""

    def __init__(self, base: Path, size: int, metadata: int) -> None:
        self.data = Disk(base / "pool-data", size)
        self.metadata = Disk(base / "pool-metadata", metadata)
        self._size = size
        self._name = f"unionfs-test-{os.urandom(4).hex()}"
        self.path = f"/dev/mapper/{self._name}"

    def start(self) -> None:
        """Make it: what is full meets errors at once, rather than after a minute."""
        disks = f"{self.metadata.path} {self.data.path}"
        table = f"0 {self._size // _SECTOR} thin-pool {disks} {_BLOCK} 0 1 error_if_no_space"
        _dmsetup("create", self._name, "--table", table)

    def stop(self) -> None:
        """Take it away; what it had is on its disks."""
        _dmsetup("remove", "--retry", self._name)

    def check(self, *options: str) -> None:
        """Look whether its metadata are in order."""
        check = ["thin_check", "-q", *options, self.metadata.path]
        subprocess.run(check, check=True, timeout=60)


@contextlib.contextmanager
def pool_of_disks(
    base: Path, size: int = 4 << 30, metadata: int = 16 << 20
) -> Iterator[PoolOfDisks]:
    """Give an empty pool of *size* bytes, in files in *base*."""
    require_device_mapper()
    made = PoolOfDisks(base, size, metadata)
    made.start()
    yield made
    made.stop()
    made.check()
    made.data.end()
    made.metadata.end()


@contextlib.contextmanager
def pool(base: Path, size: int = 4 << 30, metadata: int = 16 << 20) -> Iterator[str]:
    """Give the path of an empty pool of *size* bytes, in files in *base*."""
    with pool_of_disks(base, size, metadata) as made:
        yield made.path


def _dmsetup(*words: str) -> None:
    subprocess.run(["dmsetup", *words], check=True, timeout=60)
