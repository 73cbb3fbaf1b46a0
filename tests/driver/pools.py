"""A thin pool for one test, of two files, that thin_check(8) finds in order at the end."""

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


@contextlib.contextmanager
def pool(base: Path, size: int = 4 << 30, metadata: int = 16 << 20) -> Iterator[str]:
    """Give the path of an empty pool of *size* bytes, in files in *base*."""
    require_device_mapper()
    name = f"unionfs-test-{os.urandom(4).hex()}"
    with contextlib.ExitStack() as stack:
        meta = stack.enter_context(_disk(base / "pool-metadata", metadata))
        data = stack.enter_context(_disk(base / "pool-data", size))
        create(name, meta, data, size)
        stack.callback(subprocess.run, ["thin_check", "-q", meta], check=True, timeout=60)
        stack.callback(subprocess.run, ["dmsetup", "remove", "--retry", name], check=True)
        yield f"/dev/mapper/{name}"


def create(name: str, meta: str, data: str, size: int) -> None:
    """Make the pool *name*: what is full meets errors at once, rather than after a minute."""
    table = f"0 {size // _SECTOR} thin-pool {meta} {data} {_BLOCK} 0 1 error_if_no_space"
    subprocess.run(["dmsetup", "create", name, "--table", table], check=True, timeout=60)


@contextlib.contextmanager
def _disk(file: Path, size: int) -> Iterator[str]:
    with file.open("wb") as made:
        made.truncate(size)
    command = ["losetup", "--show", "--find", str(file)]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield path
    finally:
        subprocess.run(["losetup", "--detach", path], check=True)
