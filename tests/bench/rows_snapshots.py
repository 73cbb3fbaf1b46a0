"""Rows about storage drivers: what snapshots cost, beside containerd's snapshotters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench.case import Case, Measured
from tests.bench.model import DRIVERS, FREE, Goal, Row, Scale, Scenario
from tests.bench.stores import PEER, SNAPSHOTTERS, Store, running

MIB = 1 << 20
#: Where all of a tree is copied or shared, depth and metadata are not the question.
LAYERED = ("driver-overlay", "driver-overlay-kernel", "driver-block", "containerd-overlayfs")
#: Those that copy such a file do it alike.
LARGE = ("driver-overlay", "driver-block", "driver-reflink", "containerd-overlayfs")
RESIDENT = ("driver-overlay", "containerd-overlayfs")
NO_SLOWER = Goal(1.0, PEER)


def nothing(_base: Path, _aside: Path, _scale: Scale) -> list[str]:
    """Stores fill themselves."""
    return []


def _work(case: Case, store: Store, work: str, *arguments: object) -> dict[str, Measured]:
    where = (*store.address, case.ground.root / "r" / "mounted")
    return case.measure(work, *where, *arguments, script="worker_snapshots")


def _pairs(suffix: str, case: Case) -> dict[str, float]:
    count = case.scale.count(100, 50)
    with running(case.store()) as store:
        found = _work(case, store, "pairs", count)
    names = {"prepare": "prepare", "remove": "remove", "both": "prepare-remove"}
    return {f"{name}{suffix}": found[label].each for label, name in names.items()}


def _call(case: Case) -> dict[str, float]:
    with running(case.store()) as store:
        return {"grpc-call": _work(case, store, "nothing", 500)["call"].each}


def _write(case: Case) -> dict[str, float]:
    count = case.scale.count(20, 5)
    with running(case.store()) as store:
        return {"prepare-write": _work(case, store, "write", count)["life"].each / 1000}


def _change(mib: int, case: Case) -> dict[str, float]:
    """Time of all of it, and what the file system has less of afterwards."""
    with running(case.store()) as store:
        _work(case, store, "fill", mib)
        before = store.used()
        done = _work(case, store, "change", mib)["change"]
        taken = store.used() - before
    return {f"change-{mib}m": done.milliseconds, f"change-{mib}m-space": taken / 1024}


def _depth(depth: int, case: Case) -> dict[str, float]:
    with running(case.store()) as store:
        done = _work(case, store, "depth", depth, case.scale.count(10, 3))["seen"]
    return {f"depth-{depth}": done.each / 1000}


def _many(case: Case) -> dict[str, float]:
    count = case.scale.count(1000, 50)
    with running(case.store()) as store:
        _work(case, store, "fill", 1)
        before = store.used()
        done = _work(case, store, "many", count)["prepare"]
        taken = store.used() - before
    return {"many": done.each / 1000, "many-space": taken / count / 1024}


def _list(row: str, full: int, quick: int, case: Case) -> dict[str, float]:
    count = case.scale.count(full, quick)
    with running(case.store()) as store:
        done = _work(case, store, "list", count, 5)["list"]
        command = case.command(*store.command("ls"))
    return {row: done.each / 1000, f"{row}-command": command.milliseconds}


def scenario(
    name: str,
    rows: tuple[Row, ...],
    run: Callable[[Case], dict[str, float]],
    *,
    only: tuple[str, ...] = (),
    place: str = "memory",
    room: int = 0,
    rounds: int = 1000,
    quick: bool = True,
    seconds: float = 120.0,
) -> Scenario:
    """A scenario over what keeps snapshots."""
    return Scenario(
        name,
        "drivers",
        rows,
        nothing,
        run,
        place=place,
        room=room,
        rounds=rounds,
        seconds=seconds,
        only=only,
        quick=quick,
        modes=(FREE,),
        part=DRIVERS,
    )


def _pair_rows(suffix: str, where: str) -> tuple[Row, ...]:
    return (
        Row(f"prepare-remove{suffix}", f"prepare and remove{where}", goals=(NO_SLOWER,)),
        Row(f"prepare{suffix}", "of that, prepare"),
        Row(f"remove{suffix}", "of that, remove; containerd's data go later"),
    )


def _change_rows(mib: int, size: str) -> tuple[Row, ...]:
    """The same for each size is the goal of what copies blocks."""
    same = () if mib == 1 else (Goal(1.2, "row:change-1m", of="driver-block"),)
    same_space = () if mib == 1 else (Goal(1.2, "row:change-1m-space", of="driver-block"),)
    what = f"a 4 KiB change in a file of {size}: prepare to unmount"
    return (
        Row(f"change-{mib}m", what, "ms", same),
        Row(f"change-{mib}m-space", "disk taken", "KiB", same_space),
    )


def _change_scenario(
    mib: int,
    size: str,
    *,
    only: tuple[str, ...] = (),
    quick: bool = True,
    rounds: int = 1000,
) -> Scenario:
    return scenario(
        f"change-{mib}m",
        _change_rows(mib, size),
        partial(_change, mib),
        only=only,
        room=3 * mib // 1024,
        rounds=rounds,
        quick=quick,
        seconds=400.0,
    )


def _depth_scenario(depth: int, *, rounds: int = 1000) -> Scenario:
    name = f"depth-{depth}"
    what = f"prepare, mount, stat of the lowest of {depth} layers' file"
    rows = (Row(name, what, "ms"),)
    run = partial(_depth, depth)
    return scenario(name, rows, run, only=LAYERED, quick=False, rounds=rounds, seconds=300.0)


SCENARIOS = (
    scenario("pairs", _pair_rows("", ""), partial(_pairs, "")),
    scenario(
        "pairs-disk",
        _pair_rows("-disk", ", on the disk"),
        partial(_pairs, "-disk"),
        only=("driver-overlay", *SNAPSHOTTERS),
        place="disk",
        quick=False,
    ),
    scenario(
        "grpc-call",
        (Row("grpc-call", "a call of containerd that does nothing"),),
        _call,
        only=("containerd-overlayfs",),
    ),
    scenario(
        "prepare-write",
        (Row("prepare-write", "prepare, mount, write 4 KiB, unmount, remove", "ms"),),
        _write,
    ),
    scenario(
        "many-listed",
        (
            Row("list-10k", "10,000 snapshots, in a resident process", "ms", (NO_SLOWER,)),
            Row("list-10k-command", "the same by `unionfs` and `ctr`", "ms"),
        ),
        partial(_list, "list-10k", 10_000, 1000),
        only=RESIDENT,
        quick=False,
        rounds=2,
        seconds=300.0,
    ),
    scenario(
        "few-listed",
        (
            Row("list-10", "10 snapshots, in a resident process", "ms"),
            Row("list-10-command", "the same by `unionfs` and `ctr`", "ms"),
        ),
        partial(_list, "list-10", 10, 10),
        only=RESIDENT,
    ),
    _change_scenario(1, "1 MiB"),
    _change_scenario(100, "100 MiB", quick=False),
    _change_scenario(4096, "4 GiB", only=LARGE, quick=False, rounds=1),
    _depth_scenario(2),
    _depth_scenario(20, rounds=3),
    _depth_scenario(128, rounds=1),
    scenario(
        "many",
        (
            Row("many", "1,000 snapshots of one parent, each", "ms"),
            Row("many-space", "disk taken, each", "KiB"),
        ),
        _many,
        rounds=1,
        quick=False,
        seconds=300.0,
    ),
)
