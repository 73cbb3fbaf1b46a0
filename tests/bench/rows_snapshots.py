"""Rows about storage drivers: what snapshots cost, beside containerd's snapshotters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.bench.case import Case, Measured
from tests.bench.model import FREE, Goal, Row, Scale, Scenario
from tests.bench.stores import PEER, SNAPSHOTTERS, Store, running

MIB = 1 << 20
#: Where all of a tree is copied or shared, depth and metadata are not the question.
LAYERED = ("driver-overlay", "driver-overlay-kernel", "driver-block", "containerd-overlayfs")
RESIDENT = ("driver-overlay", "containerd-overlayfs")
NO_SLOWER = Goal(1.0, PEER)


def nothing(_base: Path, _aside: Path, _scale: Scale) -> list[str]:
    """Stores fill themselves."""
    return []


def _work(case: Case, store: Store, work: str, *arguments: object) -> dict[str, Measured]:
    where = (*store.address, case.ground.root / "r" / "mounted")
    return case.measure(work, *where, *arguments, script="worker_snapshots")


def _pairs(suffix: str, case: Case) -> dict[str, float]:
    count = case.scale.count(300, 100)
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
    """Time of all of it, and what the disk has more of afterwards."""
    with running(case.store()) as store, ExitStack() as stack:
        where = (*store.address, case.ground.root / "r" / "mounted")
        worker = stack.enter_context(case.worker("worker_snapshots", "change", *where, mib))
        before = store.used()
        worker.go()
        done = worker.results()["change"]
        taken = store.used() - before
    return {f"change-{mib}m": done.milliseconds, f"change-{mib}m-space": taken / 1024}


def _depth(depth: int, case: Case) -> dict[str, float]:
    with running(case.store()) as store:
        done = _work(case, store, "depth", depth, case.scale.count(10, 3))["seen"]
    return {f"depth-{depth}": done.each / 1000}


def _many(case: Case) -> dict[str, float]:
    count = case.scale.count(1000, 50)
    with running(case.store()) as store:
        where = (*store.address, case.ground.root / "r" / "mounted")
        with case.worker("worker_snapshots", "many", *where, count) as worker:
            before = store.used()
            worker.go()
            done = worker.results()["prepare"]
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
        rounds=rounds,
        seconds=seconds,
        only=only,
        quick=quick,
        modes=(FREE,),
        snapshots=True,
    )


def _pair_rows(suffix: str, where: str) -> tuple[Row, ...]:
    return (
        Row(f"prepare-remove{suffix}", f"prepare and remove{where}", goals=(NO_SLOWER,)),
        Row(f"prepare{suffix}", "of that, prepare"),
        Row(f"remove{suffix}", "of that, remove; containerd's data go later"),
    )


def _change_rows(mib: int, size: str, *, last: bool = False) -> tuple[Row, ...]:
    same = Goal(1.2, "row:change-1m", of="driver-block")
    same_space = Goal(1.2, "row:change-1m-space", of="driver-block")
    what = f"a 4 KiB change in a file of {size}"
    return (
        Row(f"change-{mib}m", f"{what}: prepare to unmount", "ms", (same,) if last else ()),
        Row(f"change-{mib}m-space", "disk taken", "KiB", (same_space,) if last else ()),
    )


def _depth_scenario(depth: int, *, quick: bool = True, rounds: int = 1000) -> Scenario:
    name = f"depth-{depth}"
    what = f"prepare, mount, stat of the lowest of {depth} layers' file"
    rows = (Row(name, what, "ms"),)
    run = partial(_depth, depth)
    return scenario(name, rows, run, only=LAYERED, quick=quick, rounds=rounds, seconds=300.0)


SCENARIOS = (
    scenario("pairs", _pair_rows("", ""), partial(_pairs, "")),
    scenario(
        "pairs-disk",
        _pair_rows("-disk", ", on the disk"),
        partial(_pairs, "-disk"),
        only=("driver-overlay", *SNAPSHOTTERS),
        place="disk",
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
        rounds=3,
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
    scenario("change-1m", _change_rows(1, "1 MiB"), partial(_change, 1)),
    scenario("change-100m", _change_rows(100, "100 MiB"), partial(_change, 100)),
    scenario(
        "change-4096m",
        _change_rows(4096, "4 GiB, on the disk", last=True),
        partial(_change, 4096),
        place="disk-ext4",
        rounds=1,
        quick=False,
        seconds=400.0,
    ),
    _depth_scenario(2),
    _depth_scenario(20, rounds=3),
    _depth_scenario(128, rounds=1, quick=False),
    scenario(
        "many",
        (
            Row("many", "1,000 snapshots of one parent, each", "ms"),
            Row("many-space", "disk taken, each", "KiB"),
        ),
        _many,
        rounds=2,
        seconds=300.0,
    ),
)
