"""What is measured: rows, their goals, and the scenarios that fill them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tests.bench.case import Case

#: Short names of peers, for goals and for `--peer`.
PEERS = {"fo": "fuse-overlayfs", "fo1": "fuse-overlayfs-1", "kernel": "overlay"}

Number = TypeVar("Number", int, float)

#: What scenarios are about; each part has tables of its own. In the first and the last it is
#: unions that take part, in the second what keeps snapshots.
MOUNTS, DRIVERS, ENGINES = PARTS = "mounts", "drivers", "engines"

FREE, PINNED, UNPRIVILEGED = MODES = "free", "pinned", "unprivileged"


@dataclass(frozen=True)
class Goal:
    """A limit for our own figure: *factor* times the figure of *against*.

    *against* is a peer, `row:NAME` for another row of ours, or empty: *factor* is the limit.
    """

    factor: float
    against: str = "fo"
    mode: str = FREE
    of: str = ""
    """The system that it is for; empty: the first of ours."""

    @property
    def peer(self) -> str:
        return PEERS.get(self.against, self.against)


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    name: str
    what: str
    unit: str = "µs"
    goals: tuple[Goal, ...] = ()
    higher: bool = False
    """Higher is better."""
    trips: bool = False
    """Bound by the trips to the daemon: is measured pinned to one CPU too."""


@dataclass(frozen=True)
class Scale:
    """How much there is of everything."""

    quick: bool = False

    def count(self, full: Number, quick: Number) -> Number:
        """The number to take: *full*, or *quick*."""
        return quick if self.quick else full


#: Fills *base* with lowers, and *aside* with what is no layer; names the lowers, topmost first.
Build = Callable[[Path, Path, Scale], list[str]]


@dataclass(frozen=True)
class Scenario:
    """One mount's work in one round: gives a figure for each of its rows."""

    name: str
    group: str
    rows: tuple[Row, ...]
    build: Build
    run: Callable[[Case], dict[str, float]]
    options: str = ""
    """For all systems, beside their own."""
    place: str = "memory"
    """The arena: see `tests.bench.arena.Arena.ground`."""
    changes_lower: bool = False
    """Needs copy-on-write: a system that has none is left out."""
    writes: bool = True
    """Plain ext4 gets a copy of the lower to write to."""
    read_only: bool = False
    """The union has no upper."""
    rounds: int = 1000
    """At most."""
    seconds: float = 120.0
    """For one round of one system; then its connection is aborted."""
    only: tuple[str, ...] = ()
    """The systems that it is for; empty: all."""
    quick: bool = True
    """Part of `--quick`."""
    baseline: bool = False
    """Python doing nothing takes part, as `python3`."""
    variants: tuple[tuple[str, str], ...] = ()
    """(suffix, options): each system once with each."""
    modes: tuple[str, ...] = MODES
    room: int = 0
    """The GiB that it needs where the layers lie, if these are many."""
    part: str = MOUNTS
    """What it is about."""
