"""Rows about the daemon itself: start, memory, idleness, many lowers, placement."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.bench import fixtures, processes
from tests.bench.case import Case
from tests.bench.model import FREE, UNPRIVILEGED, Goal, Row, Scale, Scenario
from tests.bench.rows_names import USERS, plain, trips

MIB = 1 << 20
LOWERS_DIRECTORIES = 10
PLACEMENT = (("placement=auto", "placement=auto"), ("placement=off", "placement=off"))
OFF = "unionfs[placement=off]"


def _small(base: Path, _aside: Path, _scale: Scale) -> list[str]:
    return fixtures.grid(base, 2, 10)


def _image(base: Path, _aside: Path, scale: Scale) -> list[str]:
    return fixtures.blob(base, scale.count(64, 16))


def _hundred_thousand(base: Path, _aside: Path, scale: Scale) -> list[str]:
    return fixtures.grid(base, scale.count(1000, 50), 100, 0)


def _start(case: Case) -> dict[str, float]:
    if case.system.kind == "none":
        done = case.measure("start", "/", "", case.launch.python, "-c", "pass")
        spent = done["exit"].milliseconds
        return {"exec-exit": spent, "exec-answer": spent}
    if case.system.kind != "fuse":
        return {}
    union = case.union()
    command = union.command(case.options, foreground=False)
    try:
        done = case.measure("start", case.ground.root, union.root, *command)
    finally:
        union.forget_background()
    spent = done["exit"].milliseconds
    return {"exec-exit": spent, "exec-answer": spent + done["first"].milliseconds}


def _idle_memory(case: Case) -> dict[str, float]:
    """What one more mount costs, beside one that is there."""
    if case.system.kind != "fuse":
        return {}
    first, second = case.union("r/0"), case.union("r/1")
    with case.mounted(first), case.mounted(second) as root:
        case.measure("walk", root, 1)
        time.sleep(0.2)
        return {"memory-idle": processes.pss(second.pid()) / MIB}


def _ten(row: str) -> Callable[[Case], dict[str, float]]:
    """Page cache that is added when programs in ten mounts map the same file."""

    def run(case: Case) -> dict[str, float]:
        count = case.scale.count(10, 3)
        size = case.scale.count(64, 16) * MIB
        unions = [case.union(f"r/{number}") for number in range(count)]
        fixtures.drop(case.ground.root / "f" / "low" / "blob")
        with ExitStack() as stack:
            roots = [stack.enter_context(case.mounted(union)) for union in unions]
            before = processes.page_cache()
            for root in roots:
                case.data("map", root / "blob", size)
            return {row: max(0, processes.page_cache() - before) / MIB}

    return run


def _hundred_thousand_known(case: Case) -> dict[str, float]:
    if case.system.kind != "fuse":
        return {}
    union = case.union()
    with case.mounted(union) as root:
        case.measure("walk", root / "d000", 1)
        before = processes.rss(union.pid())
        case.measure("walk-and-stat", root, 1)
        after = processes.rss(union.pid())
    return {"rss-100k": after / MIB, "rss-100k-growth": (after - before) / MIB}


def _idle(case: Case) -> dict[str, float]:
    if case.system.kind != "fuse":
        return {}
    seconds = case.scale.count(60, 5)
    union = case.union()
    with case.mounted(union) as root:
        case.measure("walk", root, 1)
        time.sleep(2.0)
        before = processes.activity(union.pid())
        time.sleep(seconds)
        after = processes.activity(union.pid())
    minutes = seconds / 60
    return {
        "idle-cpu": (after.nanoseconds - before.nanoseconds) / 1e6 / minutes,
        "idle-wakeups": (after.switches - before.switches) / minutes,
    }


def _lowers(count: int, base: Path, _aside: Path, scale: Scale) -> list[str]:
    return fixtures.many_lowers(base, count, LOWERS_DIRECTORIES, scale.count(100, 30))


def _stat_last(row: str, case: Case) -> dict[str, float]:
    with case.mounted() as root:
        done = case.measure("stat", root, LOWERS_DIRECTORIES, case.scale.count(100, 30))
    return {row: done["cold"].each}


#: Kept, so that a fixture is known by its function.
_LOWERS = {count: partial(_lowers, count) for count in (2, 20, 100, 500)}


def _many_lowers(count: int, *goals: Goal, quick: bool = True) -> Scenario:
    row = f"lowers-{count}"
    what = f"stat cold with {count} lowers, the file in the last"
    return Scenario(
        row,
        "lowers",
        (trips(row, what, *goals),),
        _LOWERS[count],
        partial(_stat_last, row),
        writes=False,
        quick=quick,
    )


def _hogs(session: str, case: Case) -> dict[str, float]:
    seconds = case.scale.count(10, 3)
    with (
        case.mounted() as root,
        case.worker("worker_hogs", "hogs", seconds + 1, session=session == "other") as hogs,
        case.worker("worker_hogs", "trips", root / "d000" / "f0000", seconds) as client,
    ):
        hogs.go()
        time.sleep(0.3)
        client.go()
        found = client.results()
        work = hogs.results()["loops"]
    name = f"hogs-{session}"
    figures = {f"{name}-{label}": found[label].each for label in ("median", "p99", "worst")}
    return {**figures, f"{name}-work": work.nanoseconds / 1000}


def _placement(session: str) -> Scenario:
    name = f"hogs-{session}"
    where = "the client's session" if session == "same" else "another session"
    rows = (
        Row(f"{name}-median", f"a trip, hogs in {where}: median", goals=(Goal(1.3, OFF),)),
        Row(f"{name}-p99", "99th percentile", goals=(Goal(1.3, OFF),)),
        Row(f"{name}-worst", "the worst", goals=(Goal(2.0, OFF),)),
        Row(f"{name}-work", "what the hogs get done", "loops/ms", (Goal(0.9, OFF),), higher=True),
    )
    return Scenario(
        name,
        "placement",
        rows,
        _small,
        partial(_hogs, session),
        options="timeout=0",
        only=("unionfs",),
        variants=PLACEMENT,
        modes=(FREE, UNPRIVILEGED),
        writes=False,
        quick=False,
    )


_TEN = {"ro": (Goal(1.2 * 64, ""),), "rw": ()}


def _ten_mounts(kind: str) -> Scenario:
    row = f"memory-10-{kind}"
    what = "read-only" if kind == "ro" else "writable"
    return Scenario(
        row,
        "daemon",
        (Row(row, f"page cache of 64 MiB mapped in 10 {what} mounts", "MiB", _TEN[kind]),),
        _image,
        _ten(row),
        read_only=kind == "ro",
        writes=False,
        quick=False,
    )


SCENARIOS = (
    Scenario(
        "start",
        "daemon",
        (
            Row("exec-exit", "from exec to exit 0", "ms", (Goal(4.0, "python3"), USERS)),
            Row("exec-answer", "from exec to the first answer", "ms", (Goal(14.0, "python3"),)),
        ),
        _small,
        _start,
        baseline=True,
    ),
    Scenario(
        "memory-idle",
        "daemon",
        (Row("memory-idle", "PSS of a further mount", "MiB", (Goal(30.0, ""),)),),
        _small,
        _idle_memory,
    ),
    _ten_mounts("ro"),
    _ten_mounts("rw"),
    Scenario(
        "rss-100k",
        "daemon",
        (
            plain("rss-100k", "RSS after a walk of 100,000 files", Goal(1.5), unit="MiB"),
            Row("rss-100k-growth", "of that, for the files", "MiB", (Goal(60.0, ""),)),
        ),
        _hundred_thousand,
        _hundred_thousand_known,
        quick=False,
        rounds=2,
        seconds=300.0,
    ),
    Scenario(
        "idle",
        "daemon",
        (
            Row("idle-cpu", "CPU of an idle mount", "ms/min", (Goal(0.0, ""),)),
            Row("idle-wakeups", "its wake-ups", "/min", (Goal(0.0, ""),)),
        ),
        _small,
        _idle,
        quick=False,
        rounds=1,
    ),
    _many_lowers(2),
    _many_lowers(20, Goal(1.2, "row:lowers-2")),
    _many_lowers(100, Goal(1.2, "row:lowers-2"), quick=False),
    _many_lowers(500, quick=False),
    _placement("same"),
    _placement("other"),
)
