"""The run: scenarios one after the other, in each round the systems by turns."""

from __future__ import annotations

import fnmatch
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tests.bench.arena import SHARING, Arena, Missing
from tests.bench.case import Case
from tests.bench.model import DRIVERS, FREE, PINNED, Row, Scale, Scenario
from tests.bench.mounting import Launch
from tests.bench.rows import SCENARIOS
from tests.bench.systems import System
from tests.watchdog import Watchdog

#: Python doing nothing.
BASELINE = "python3"

#: Figures by mode, row and system.
Values = dict[str, dict[str, dict[str, list[float]]]]


@dataclass
class Results:
    """All that was measured, and why something was not."""

    values: Values = field(default_factory=dict)
    failures: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    interrupted: bool = False

    def add(self, mode: str, system: str, figures: dict[str, float]) -> None:
        """Take the figures of one round."""
        for row, figure in figures.items():
            rows = self.values.setdefault(mode, {}).setdefault(row, {})
            rows.setdefault(system, []).append(figure)

    def fail(self, mode: str, scenario: Scenario, system: str, reason: str) -> None:
        """Note why the rows of *scenario* have no figure."""
        for row in scenario.rows:
            self.failures.setdefault(mode, {}).setdefault(row.name, {})[system] = reason


def chosen(patterns: list[str], *, quick: bool = False) -> list[Scenario]:
    """The scenarios that fill a row (or are, or are of a group) of one of *patterns*.

    Without patterns all. If it is to be *quick* the long ones only if a pattern is about
    themselves and not about their group.
    """

    def matches(scenario: Scenario) -> bool:
        words = [scenario.name, *(row.name for row in scenario.rows)]
        if scenario.quick or not quick:
            words.append(scenario.group)
        return any(fnmatch.fnmatch(word, each) for word in words for each in patterns)

    if not patterns:
        return [one for one in SCENARIOS if one.quick or not quick]
    return [one for one in SCENARIOS if matches(one)]


def rows_of(scenarios: list[Scenario]) -> list[tuple[Scenario, Row]]:
    return [(scenario, row) for scenario in scenarios for row in scenario.rows]


@dataclass
class Runner:
    """Measures *scenarios* on *systems*."""

    arena: Arena
    systems: list[System]
    scale: Scale
    rounds: int
    watchdog: Watchdog
    launches: dict[str, Launch]
    results: Results = field(default_factory=Results)

    def run(self, scenarios: list[Scenario], modes: list[str]) -> Results:
        """Measure everything."""
        begin = time.monotonic()
        for number, scenario in enumerate(scenarios, 1):
            for mode in modes:
                if mode in scenario.modes and self._belongs(scenario, mode):
                    head = f"[{number}/{len(scenarios)}] {time.monotonic() - begin:.0f} s"
                    self._scenario(scenario, mode, head)
        return self.results

    def _belongs(self, scenario: Scenario, mode: str) -> bool:
        # In one run with the free mode only rows that depend on trips are pinned too.
        return mode != PINNED or FREE not in self.launches or any(r.trips for r in scenario.rows)

    def _taking_part(self, scenario: Scenario) -> Iterator[tuple[System, str]]:
        variants = scenario.variants or (("", ""),)
        for system, (suffix, options) in itertools.product(self.systems, variants):
            fits = not scenario.only or system.name in scenario.only
            fits = fits and system.keeps_snapshots == (scenario.part == DRIVERS)
            if fits and (system.copies_on_write or not scenario.changes_lower):
                name = f"{system.name}[{suffix}]" if suffix else system.name
                extra = ",".join(part for part in (scenario.options, options) if part)
                yield replace(system, name=name), extra
        if scenario.baseline:
            yield System(BASELINE, "none"), ""

    def _scenario(self, scenario: Scenario, mode: str, head: str) -> None:
        parts = list(self._taking_part(scenario))
        rounds = min(self.rounds, scenario.rounds)
        for turn in range(rounds):
            shift = turn % max(1, len(parts))
            for system, options in parts[shift:] + parts[:shift]:
                if system.name in self._failed(scenario, mode):
                    continue
                progress(f"{head} {scenario.name} {mode}: {turn + 1}/{rounds} {system.name}")
                self._round(scenario, mode, system, options)

    def _failed(self, scenario: Scenario, mode: str) -> dict[str, str]:
        return self.results.failures.get(mode, {}).get(scenario.rows[0].name, {})

    def _round(self, scenario: Scenario, mode: str, system: System, options: str) -> None:
        launch = self.launches[mode]
        try:
            place = SHARING[scenario.place] if system.shares_extents else scenario.place
            self.arena.require_room(scenario.room)
            ground = self.arena.ground(place)
            ground.build(scenario, self.scale, user=launch.user)
            case = Case(system, scenario, self.scale, ground, launch, self.watchdog, options)
            try:
                self.results.add(mode, system.name, scenario.run(case))
            finally:
                case.clear()
        except (OSError, Missing, AssertionError, subprocess.SubprocessError) as error:
            progress(f"{scenario.name} {mode} {system.name}: {error}\n")
            self.results.fail(mode, scenario, system.name, str(error))


def progress(text: str) -> None:
    """Tell on stderr how far it is: in one line on a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text[:100]}" if not text.endswith("\n") else f"\r\033[K{text}")
    elif text.endswith("\n") or os.environ.get("UNIONFS_BENCH_VERBOSE"):
        sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()
