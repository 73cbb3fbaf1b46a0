"""What the kernel says of a daemon: its memory, and whether it sleeps."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def family(pid: int) -> Iterator[int]:
    """*pid* and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from family(int(child))


def _kilobytes(path: Path, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def pss(pid: int) -> int:
    """Bytes, shared ones divided by their users."""
    return sum(_kilobytes(Path(f"/proc/{one}/smaps_rollup"), "Pss") for one in family(pid))


def rss(pid: int) -> int:
    """Bytes in memory."""
    return sum(_kilobytes(Path(f"/proc/{one}/status"), "VmRSS") for one in family(pid))


def page_cache() -> int:
    """Bytes of cached files on this machine."""
    return _kilobytes(Path("/proc/meminfo"), "Cached")


@dataclass(frozen=True)
class Activity:
    """What a process has done since its start."""

    nanoseconds: int
    switches: int


def activity(pid: int) -> Activity:
    """CPU time and voluntary switches of all threads."""
    spent = switches = 0
    for task in (task for one in family(pid) for task in Path(f"/proc/{one}/task").iterdir()):
        with contextlib.suppress(OSError):  # the thread has ended
            spent += int((task / "schedstat").read_text().split()[0])
            found = re.search(
                r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.MULTILINE
            )
            switches += int(found[1]) if found else 0
    return Activity(spent, switches)
