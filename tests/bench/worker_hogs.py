"""Workers for placement: single trips, and hogs that start and stop on every CPU."""

from __future__ import annotations

import os
import time
from functools import partial

from tests.bench.client import Phase, Works, serve

ON, OFF = 0.2, 0.3


def do_trips(path: str, seconds: str) -> list[Phase]:
    """fstat, again and again, each timed by itself: median, 99th percentile and worst."""

    def run() -> dict[str, int]:
        file = os.open(path, os.O_RDONLY)
        end = time.perf_counter_ns() + int(float(seconds) * 1e9)
        taken, before = [], time.perf_counter_ns()
        while before < end:
            os.fstat(file)
            after = time.perf_counter_ns()
            taken.append(after - before)
            before = after
        taken.sort()
        last = len(taken) - 1
        return {"median": taken[last // 2], "p99": taken[last * 99 // 100], "worst": taken[last]}

    return [("trips", run, 1)]


def _hog(cpu: int, delay: float, until: float, report: int) -> None:
    """Burn one CPU in bursts; report how many loops it got for each second of them."""
    os.sched_setaffinity(0, {cpu})
    time.sleep(delay)
    loops, bursts = 0, 0
    while time.monotonic() < until:
        end = time.monotonic() + ON
        while time.monotonic() < end:
            loops += 1
        bursts += 1
        time.sleep(OFF)
    os.write(report, f"{int(loops / (bursts * ON))}\n".encode())


def do_hogs(seconds: str) -> list[Phase]:
    """One hog on each CPU; loops for each second."""
    cpus = sorted(os.sched_getaffinity(0))

    def run() -> dict[str, int]:
        reader, writer = os.pipe()
        until = time.monotonic() + float(seconds)
        pids = []
        for index, cpu in enumerate(cpus):
            job = partial(_hog, cpu, index * ON / len(cpus), until, writer)
            pids.append(_fork(job))
        os.close(writer)
        with os.fdopen(reader) as pipe:
            loops = [int(line) for line in pipe]
        for pid in pids:
            os.waitpid(pid, 0)
        return {"loops": sum(loops)}

    return [("hogs", run, 1)]


def _fork(job: partial[None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            job()
        finally:
            os._exit(0)
    return pid


WORKS: Works = {"trips": do_trips, "hogs": do_hogs}

if __name__ == "__main__":
    serve(WORKS)
