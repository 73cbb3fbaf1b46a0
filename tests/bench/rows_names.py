"""Rows about names and small files: what every program does all day."""

from __future__ import annotations

from pathlib import Path

from tests.bench.case import Case
from tests.bench.fixtures import grid
from tests.bench.model import Goal, Row, Scale, Scenario

#: Trip for trip no slower than fuse-overlayfs, all on one CPU; and without privilege.
TRIP = (Goal(1.0, "fo", "pinned"), Goal(0.7, "fo", "unprivileged"))
USERS = Goal(0.7, "fo", "unprivileged")


def trips(name: str, what: str, *goals: Goal) -> Row:
    """A row bound by the trips to the daemon, in microseconds."""
    return Row(name, what, goals=(*goals, *TRIP), trips=True)


DIRECTORIES = 50


def _grid(base: Path, _aside: Path, scale: Scale) -> list[str]:
    return grid(base, DIRECTORIES, scale.count(100, 20))


def _look(case: Case, work: str) -> dict[str, float]:
    with case.mounted() as root:
        done = case.measure(work, root, DIRECTORIES, case.scale.count(100, 20))
    return {f"{work}-{label}": phase.each for label, phase in done.items()}


def _stat(case: Case) -> dict[str, float]:
    return _look(case, "stat")


def _open(case: Case) -> dict[str, float]:
    return _look(case, "open")


def _absent(case: Case) -> dict[str, float]:
    return _look(case, "absent")


def _change(case: Case) -> dict[str, float]:
    with case.mounted() as root:
        done = case.measure("change", root / "d000", case.scale.count(2000, 300))
    return {label: phase.each for label, phase in done.items()}


SCENARIOS = (
    Scenario(
        "stat",
        "names",
        (
            trips("stat-cold", "stat of files never seen, 5,000 in 50 directories", Goal(0.4)),
            Row("stat-warm", "the same again", goals=(Goal(1.1, "kernel"), USERS)),
        ),
        _grid,
        _stat,
        writes=False,
    ),
    Scenario(
        "open",
        "names",
        (
            trips("open-cold", "open, read 4 KiB, close of files never seen", Goal(0.4)),
            Row("open-warm", "the same again", goals=(Goal(0.3), USERS)),
        ),
        _grid,
        _open,
        writes=False,
    ),
    Scenario(
        "absent",
        "names",
        (
            trips("absent-cold", "stat of names that are not there", Goal(0.4)),
            Row("absent-warm", "the same again", goals=(Goal(1.2, "kernel"), USERS)),
        ),
        _grid,
        _absent,
        writes=False,
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
)
