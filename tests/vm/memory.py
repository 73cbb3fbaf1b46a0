"""How much memory there is."""

from __future__ import annotations

from pathlib import Path

from tests.vm.errors import CannotError


def require_memory(size: int) -> None:
    """Raise `CannotError` where *size* MiB cannot be had."""
    free = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) >> 10
    if free < size:
        raise CannotError(f"{free} MB of memory are free, {size} are needed")
