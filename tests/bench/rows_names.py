"""Rows about names and small files: what every program does all day."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bench.case import Case
from tests.bench.fixtures import grid, one_directory
from tests.bench.model import Goal, Row, Scale, Scenario

#: Everything once more without privilege.
USERS = Goal(0.7, "fo", "unprivileged")
#: Trip for trip no slower than fuse-overlayfs with everything on one CPU.
TRIP = (Goal(1.0, "fo", "pinned"), USERS)

DIRECTORIES = 50


def trips(name: str, what: str, *goals: Goal) -> Row:
    """A row bound by the trips to the daemon, in microseconds."""
    return Row(name, what, goals=(*goals, *TRIP), trips=True)


def plain(name: str, what: str, *goals: Goal, unit: str = "µs") -> Row:
    """Another row that is better when lower."""
    return Row(name, what, unit, (*goals, USERS))


def _files(scale: Scale) -> int:
    return scale.count(100, 20)


def _grid(base: Path, _aside: Path, scale: Scale) -> list[str]:
    return grid(base, DIRECTORIES, _files(scale))


def _one_directory(base: Path, _aside: Path, scale: Scale) -> list[str]:
    return one_directory(base, scale.count(10_000, 1000))


def _look(work: str) -> Callable[[Case], dict[str, float]]:
    def run(case: Case) -> dict[str, float]:
        with case.mounted() as root:
            done = case.measure(work, root, DIRECTORIES, _files(case.scale))
        return {f"{work}-{label}": phase.each for label, phase in done.items()}

    return run


def _open_many(case: Case) -> dict[str, float]:
    with case.mounted() as root:
        done = case.measure("open-many", root, DIRECTORIES, _files(case.scale), 4)
    return {"open-cold-4": done["cold"].each}


def _change(case: Case) -> dict[str, float]:
    with case.mounted() as root:
        done = case.measure("change", root / "d000", case.scale.count(2000, 300))
    return {label: phase.each for label, phase in done.items()}


def _chmod(row: str) -> Callable[[Case], dict[str, float]]:
    def run(case: Case) -> dict[str, float]:
        with case.mounted() as root:
            done = case.measure("chmod", root, 10, case.scale.count(50, 10))
        return {row: done["chmod"].each}

    return run


def _rename_directory(case: Case) -> dict[str, float]:
    with case.mounted() as root:
        done = case.measure("rename-directory", root / "big", root / "moved")
    return {"rename-directory": done["rename"].milliseconds}


def _mixed(case: Case) -> dict[str, float]:
    with case.mounted() as root:
        done = case.measure("mixed", root, DIRECTORIES, _files(case.scale))
    return {"mixed-8": done["all"].milliseconds}


def _looking(name: str, *rows: Row) -> Scenario:
    return Scenario(name, "names", rows, _grid, _look(name), writes=False)


SCENARIOS = (
    _looking(
        "stat",
        trips("stat-cold", "stat of files never seen, 5,000 in 50 directories", Goal(0.4)),
        plain("stat-warm", "the same again", Goal(1.1, "kernel")),
    ),
    _looking(
        "open",
        trips("open-cold", "open, read 4 KiB, close of files never seen", Goal(0.4)),
        plain("open-warm", "the same again", Goal(0.3)),
    ),
    Scenario(
        "open-many",
        "names",
        (trips("open-cold-4", "open, read, close by 4 processes at once", Goal(0.7)),),
        _grid,
        _open_many,
        writes=False,
    ),
    _looking(
        "absent",
        trips("absent-cold", "stat of names that are not there", Goal(0.4)),
        plain("absent-warm", "the same again", Goal(1.2, "kernel")),
    ),
    Scenario(
        "change",
        "names",
        (
            trips("create", "create, write 4 KiB, close", Goal(0.45)),
            trips("mkdir", "make a directory", Goal(0.45)),
            trips("symlink", "make a symlink", Goal(0.45)),
            trips("rename", "rename a file of the upper", Goal(0.45)),
            trips("unlink", "remove a file of the upper", Goal(0.45)),
        ),
        _grid,
        _change,
    ),
    Scenario(
        "chmod",
        "names",
        (plain("chmod", "chmod of a 4 KiB lower file: a copy-up", Goal(1.3, "kernel")),),
        _grid,
        _chmod("chmod"),
        changes_lower=True,
    ),
    Scenario(
        "chmod-volatile",
        "names",
        (trips("chmod-volatile", "the same with `volatile`: without fsync", Goal(0.7)),),
        _grid,
        _chmod("chmod-volatile"),
        options="volatile",
        changes_lower=True,
    ),
    Scenario(
        "mixed",
        "names",
        (
            Row(
                "mixed-8",
                "8 processes: 3 open cold, 3 create and unlink, 2 walk",
                "ms",
                (Goal(0.8), *TRIP),
                trips=True,
            ),
        ),
        _grid,
        _mixed,
    ),
    Scenario(
        "rename-directory",
        "names",
        (
            plain(
                "rename-directory",
                "rename of a lower directory with 10,000 files (a copy where refused)",
                Goal(2.0, "kernel"),
                unit="ms",
            ),
        ),
        _one_directory,
        _rename_directory,
        changes_lower=True,
    ),
)
