"""Figures to judgements: medians, spreads, ratios, goals met and missed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from tests.bench.model import Goal, Row
from tests.bench.run import Results

#: The sign.
TIMES = "\u00d7"


@dataclass(frozen=True)
class Figure:
    """A row's figure of one system."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """Half the distance of the extremes, as a part of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "low": self.low,
            "high": self.high,
            "rounds": self.rounds,
        }


@dataclass(frozen=True)
class Verdict:
    """Whether a goal was met."""

    goal: Goal
    mode: str
    ratio: float
    met: bool

    def __str__(self) -> str:
        sign = "met" if self.met else "missed"
        return f"{self.ratio:.2f} {TIMES} {self.goal.against or 'limit'}: {sign}"


def figure(results: Results, mode: str, row: str, system: str) -> Figure | None:
    """The figure of *system*, None if there is none."""
    values = results.values.get(mode, {}).get(row, {}).get(system)
    if not values:
        return None
    return Figure(statistics.median(values), min(values), max(values), len(values))


def ratio(results: Results, mode: str, row: str, system: str, peer: str) -> float | None:
    """Median to median of *peer*; None where one is missing or the peer's is nothing."""
    ours, theirs = figure(results, mode, row, system), figure(results, mode, row, peer)
    if ours is None or theirs is None or not theirs.median:
        return None
    return ours.median / theirs.median


def verdict(results: Results, mode: str, row: Row, goal: Goal, ours: str) -> Verdict | None:
    """What came of *goal*; None where it cannot be told."""
    if goal.mode != mode:
        return None
    ours = goal.of or ours
    mine = figure(results, mode, row.name, ours)
    if mine is None:
        return None
    if not goal.against:
        value = mine.median / goal.factor if goal.factor else mine.median
        met = mine.median >= goal.factor if row.higher else mine.median <= goal.factor
        return Verdict(goal, mode, value, met)
    if goal.against.startswith("row:"):
        other = figure(results, mode, goal.against[4:], ours)
    else:
        other = figure(results, mode, row.name, goal.peer)
    if other is None or not other.median:
        return None
    value = mine.median / other.median
    met = value >= goal.factor if row.higher else value <= goal.factor
    return Verdict(goal, mode, value, met)


def goal_text(row: Row, goal: Goal) -> str:
    """The goal as it is written in the report."""
    sign = "≥" if row.higher else "≤"
    where = "" if goal.mode == "free" else f" {goal.mode}"
    where += f" ({goal.of})" if goal.of else ""
    against = goal.against.removeprefix("row:")
    return (
        f"{sign} {goal.factor:g} {TIMES} {against}{where}" if against else f"{sign} {goal.factor:g}"
    )


def shown(value: float) -> str:
    """Three digits that count."""
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
