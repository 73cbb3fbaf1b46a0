"""The timed end of the benchmark: one process for one measurement.

`python3 -S -E -m tests.bench.worker WORK ARGUMENTS` prepares what it needs without touching the
mount, writes `ready`, waits for a line, does its phases, and writes `LABEL NANOSECONDS COUNT`
for each. A phase is timed as a whole, so that a call costs the same microsecond of Python on
every system. Workers import only what they measure with.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable

#: What is timed; it may return times of its own, by label, in place of the whole.
Run = Callable[[], dict[str, int] | None]
#: Label, what to do, and how many of what is counted that is.
Phase = tuple[str, Run, int]
Works = dict[str, Callable[..., list[Phase]]]


def serve(works: Works) -> None:
    """Be the worker that the arguments ask for."""
    phases = works[sys.argv[1]](*sys.argv[2:])
    gc.disable()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    lines = []
    for label, run, count in phases:
        before = time.perf_counter_ns()
        own = run()
        total = time.perf_counter_ns() - before
        times = {label: total} if own is None else own
        lines += [f"{name} {nanoseconds} {count}\n" for name, nanoseconds in times.items()]
    sys.stdout.write("".join(lines))


def spawn(argv: list[str]) -> None:
    """Run a command to its end, which must be a good one."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=quiet)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(f"{argv[0]} ended with {code}")


def together(jobs: list[Callable[[], object]]) -> Run:
    """All *jobs* at once, each in a process that is there already, until the last has ended."""
    start, release = os.pipe()
    pids = []
    for job in jobs:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(release)
                if os.read(start, 1):
                    job()
                    code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(start)

    def run() -> None:
        os.write(release, b"!" * len(pids))
        if any(os.waitpid(pid, 0)[1] for pid in pids):
            raise OSError("a process of several failed")

    return run
