"""Rows about bytes: sequential, random and mapped, of uppers and of lowers; databases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench import fixtures
from tests.bench.case import Case
from tests.bench.model import Goal, Row, Scale, Scenario
from tests.bench.rows_names import plain

AS_KERNEL = Goal(0.95, "kernel")
SIZES = {"memory": (512, 48), "disk": (256, 32)}
MIB = 1 << 20


def fast(name: str, what: str, *goals: Goal) -> Row:
    """A speed; better when higher."""
    return Row(name, what, "MB/s", (*goals, Goal(1.5, "fo", "unprivileged")), higher=True)


def each(name: str, what: str, *goals: Goal) -> Row:
    """The time of one random access, with the limits of a speed."""
    inverse = tuple(Goal(round(1 / goal.factor, 2), goal.against, goal.mode) for goal in goals)
    return Row(name, what, goals=(*inverse, Goal(0.67, "fo", "unprivileged")))


def _size(case: Case) -> int:
    full, quick = SIZES["disk" if case.scenario.place == "disk" else "memory"]
    return case.scale.count(full, quick) * MIB


def _blob(place: str, base: Path, _aside: Path, scale: Scale) -> list[str]:
    return fixtures.blob(base, scale.count(*SIZES[place]))


def _empty(base: Path, _aside: Path, _scale: Scale) -> list[str]:
    (base / "low").mkdir()
    return ["f/low"]


_blob_in_memory = partial(_blob, "memory")
_blob_on_disk = partial(_blob, "disk")


def _count(case: Case) -> int:
    return case.scale.count(10_000, 2000)


def _read(case: Case, rows: str, *, cold: bool) -> dict[str, float]:
    """The three ways to read `blob`, each on a fresh mount; *cold*: and from its disk."""
    size, found = _size(case), {}
    union = case.union()

    def fresh(*arguments: object) -> dict[str, float]:
        if cold:
            fixtures.drop(case.ground.root / "f" / "low" / "blob")
        with case.mounted(union) as root:
            done = case.data(arguments[0], root / "blob", *arguments[1:])
        return {
            label: phase.each if arguments[0] == "random-read" else phase.rate
            for label, phase in done.items()
        }

    read = fresh("read", size)
    found = {f"{rows}-seq-read": read["first"], f"{rows}-seq-read-2": read["second"]}
    found[f"{rows}-mmap-read"] = fresh("map", size)["map"]
    found[f"{rows}-rand-read"] = fresh("random-read", size, _count(case))["read"]
    return found


def _reading(rows: str, *, cold: bool = False) -> Callable[[Case], dict[str, float]]:
    return partial(_read, rows=rows, cold=cold)


def _upper(case: Case) -> dict[str, float]:
    size, count = _size(case), _count(case)
    union = case.union()
    with case.mounted(union) as root:
        written = case.data("write", root / "blob", size)["write"].rate
    found = {"upper-seq-write": written}
    with case.mounted(union) as root:
        read = case.data("read", root / "blob", size)
        found |= {"upper-seq-read": read["first"].rate, "upper-seq-read-2": read["second"].rate}
    with case.mounted(union) as root:
        found["upper-mmap-read"] = case.data("map", root / "blob", size)["map"].rate
    with case.mounted(union) as root:
        found["upper-rand-read"] = case.data("random-read", root / "blob", size, count)["read"].each
    with case.mounted(union) as root:
        done = case.data("random-write", root / "blob", size, count)
        found["upper-rand-write"] = done["write"].each
    return found


def _large(base: Path, _aside: Path, scale: Scale) -> list[str]:
    return fixtures.blob(base, scale.count(1024, 64))


def _copy_up(row: str) -> Callable[[Case], dict[str, float]]:
    def run(case: Case) -> dict[str, float]:
        with case.mounted() as root:
            done = case.data("touch", root / "blob")
        return {row: done["write"].milliseconds}

    return run


def _sqlite(case: Case) -> dict[str, float]:
    with case.mounted() as root:
        done = case.data("sqlite", root, case.scale.count(500, 100))
    return {f"sqlite-{mode}": phase.each for mode, phase in done.items()}


def _rows(name: str, what: str, *goals: Goal, first: tuple[Goal, ...] = ()) -> tuple[Row, ...]:
    return (
        fast(f"{name}-seq-read", f"{what}: sequential read, fresh mount", *(first or goals)),
        fast(f"{name}-seq-read-2", f"{what}: the same again", *goals),
        fast(f"{name}-mmap-read", f"{what}: read through a mapping", *(first or goals)),
        each(f"{name}-rand-read", f"{what}: 4 KiB at random places", *goals),
    )


SCENARIOS = (
    Scenario(
        "upper-data",
        "data",
        (
            fast("upper-seq-write", "upper: sequential write with its close", AS_KERNEL),
            *_rows("upper", "upper", AS_KERNEL),
            each("upper-rand-write", "upper: 4 KiB written at random places", AS_KERNEL),
        ),
        _empty,
        _upper,
    ),
    Scenario(
        "ro-data",
        "data",
        _rows("ro", "read-only mount", AS_KERNEL),
        _blob_in_memory,
        _reading("ro"),
        read_only=True,
        writes=False,
    ),
    Scenario(
        "lower-data",
        "data",
        _rows("lower", "lower, writable mount", Goal(0.9, "kernel"), first=(Goal(2200.0, ""),)),
        _blob_in_memory,
        _reading("lower"),
        writes=False,
    ),
    Scenario(
        "disk-data",
        "data",
        _rows("disk", "lower on disk, caches dropped", Goal(0.9, "kernel")),
        _blob_on_disk,
        _reading("disk", cold=True),
        place="disk",
        writes=False,
        quick=False,
    ),
    Scenario(
        "copyup-1g",
        "data",
        (plain("copyup-1g", "1 byte into a lower file of 1 GiB", Goal(1.05, "kernel"), unit="ms"),),
        _large,
        _copy_up("copyup-1g"),
        changes_lower=True,
    ),
    Scenario(
        "copyup-reflink",
        "data",
        (plain("copyup-reflink", "the same on xfs: reflink", Goal(1.2, "kernel"), unit="ms"),),
        _large,
        _copy_up("copyup-reflink"),
        place="xfs",
        changes_lower=True,
        quick=False,
    ),
    Scenario(
        "sqlite",
        "data",
        (
            plain("sqlite-wal", "SQLite transaction, WAL, synchronous=FULL", Goal(1.3, "kernel")),
            plain("sqlite-rollback", "the same with a rollback journal", Goal(1.3, "kernel")),
        ),
        _empty,
        _sqlite,
    ),
)
