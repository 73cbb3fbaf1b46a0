"""The timed end of the benchmark: one process for one measurement.

`python3 -S -E worker.py WORK ARGUMENTS` prepares what it needs without touching the mount,
writes `ready`, waits for a line, does its phases, and writes `LABEL NANOSECONDS COUNT` for
each. A phase is timed as a whole, so that a call costs the same microsecond of Python on every
system. Nothing is imported that a measurement does not need.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable

Run = Callable[[], object]
Phase = tuple[str, Run, int]

BLOCK = b"\x5a" * 4096


def names(root: str, dirs: str, files: str, prefix: str = "f") -> list[str]:
    """The files of a grid: *files* in each of *dirs* directories."""
    return [
        f"{root}/d{directory:03d}/{prefix}{file:04d}"
        for directory in range(int(dirs))
        for file in range(int(files))
    ]


def over(paths: list[str], call: Callable[[str], object]) -> Run:
    """Do *call* on each path."""

    def run() -> None:
        for path in paths:
            call(path)

    return run


def read_file(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    os.read(file, 4096)
    os.close(file)


def write_file(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(file, BLOCK)
    os.close(file)


def is_absent(path: str) -> None:
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    raise AssertionError(f"{path} is there")


def cold_and_warm(paths: list[str], call: Callable[[str], object]) -> list[Phase]:
    run = over(paths, call)
    return [("cold", run, len(paths)), ("warm", run, len(paths))]


def do_stat(root: str, dirs: str, files: str) -> list[Phase]:
    return cold_and_warm(names(root, dirs, files), os.stat)


def do_open(root: str, dirs: str, files: str) -> list[Phase]:
    return cold_and_warm(names(root, dirs, files), read_file)


def do_absent(root: str, dirs: str, files: str) -> list[Phase]:
    return cold_and_warm(names(root, dirs, files, "absent"), is_absent)


def do_change(directory: str, count: str) -> list[Phase]:
    """Make, rename and remove *count* names in a directory that is there."""
    files, moved, dirs, links = (
        [f"{directory}/{kind}{number:05d}" for number in range(int(count))]
        for kind in ("file", "moved", "dir", "link")
    )

    def rename() -> None:
        for old, new in zip(files, moved, strict=True):
            os.rename(old, new)

    return [
        ("create", over(files, write_file), len(files)),
        ("mkdir", over(dirs, os.mkdir), len(dirs)),
        ("symlink", over(links, lambda path: os.symlink("target", path)), len(links)),
        ("rename", rename, len(files)),
        ("unlink", over(moved, os.unlink), len(moved)),
    ]


WORKS: dict[str, Callable[..., list[Phase]]] = {
    "stat": do_stat,
    "open": do_open,
    "absent": do_absent,
    "change": do_change,
}


def main() -> None:
    phases = WORKS[sys.argv[1]](*sys.argv[2:])
    gc.disable()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    lines = []
    for label, run, count in phases:
        before = time.perf_counter_ns()
        run()
        lines.append(f"{label} {time.perf_counter_ns() - before} {count}\n")
    sys.stdout.write("".join(lines))


if __name__ == "__main__":
    main()
