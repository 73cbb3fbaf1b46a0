"""What was measured, of whom and where; and that as JSON."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench.figures import figure, goal_text, ratio, verdict
from tests.bench.model import DRIVERS, MODES, Goal, Row, Scenario
from tests.bench.run import Results, rows_of
from tests.bench.stores import DRIVERS as OUR_DRIVERS
from tests.bench.stores import PEER, SNAPSHOTTERS
from tests.bench.systems import OURS, System


@dataclass(frozen=True)
class Report:
    """What was measured, of whom and where."""

    results: Results
    scenarios: list[Scenario]
    systems: list[System]
    missing: list[str]
    peer: str
    rounds: int
    quick: bool
    notes: dict[str, str]

    def head(self) -> dict[str, Any]:
        """The machine and the systems."""
        return {
            "kernel": f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
            "cpu": _cpu(),
            "cpus": os.cpu_count(),
            "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
            "load": os.getloadavg()[0],
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "rounds": self.rounds,
            "quick": self.quick,
            "systems": {
                system.name: {
                    "version": system.version,
                    "options": system.options,
                    "note": self.notes.get(system.name, ""),
                }
                for system in self.systems
            },
            "missing": self.missing,
        }

    def part(self, part: str) -> Report:
        """The same about one of `PARTS` alone."""
        snapshots = part == DRIVERS
        scenarios = [one for one in self.scenarios if one.part == part]
        wanted = {name for scenario in scenarios for name in scenario.only}
        everyone = not all(scenario.only for scenario in scenarios)

        def takes_part(name: str) -> bool:
            return everyone or name.partition(" ")[0] in wanted

        missing = [name for name in self.missing if name.startswith(SNAPSHOTTERS) == snapshots]
        systems = [one for one in self.systems if one.keeps_snapshots == snapshots]
        return replace(
            self,
            scenarios=scenarios,
            systems=[one for one in systems if takes_part(one.name)],
            missing=[name for name in missing if takes_part(name)],
            peer=PEER if snapshots else self.peer,
        )

    def ours(self, part: str) -> str:
        """The system that goals are about: the first of ours that was measured."""
        snapshots = part == DRIVERS
        found = (one for one in self.systems if one.keeps_snapshots == snapshots and one.is_ours)
        return next((one.name for one in found), next(iter(OUR_DRIVERS)) if snapshots else OURS[0])

    def names(self, row: Row, mode: str) -> list[str]:
        """The systems with a figure or a failure in *row*, in the order of the systems."""
        there = {
            *self.results.values.get(mode, {}).get(row.name, {}),
            *self.results.failures.get(mode, {}).get(row.name, {}),
        }
        return sorted(there, key=self.place)

    def place(self, name: str) -> tuple[int, str]:
        """Where *name* stands among the systems."""
        order = [system.name for system in self.systems]
        base = name.partition("[")[0]
        return (order.index(base) if base in order else len(order), name)

    def as_json(self) -> dict[str, Any]:
        """Everything, with all values of all rounds."""
        rows = [self._row(scenario, row) for scenario, row in rows_of(self.scenarios)]
        return {"head": self.head(), "peer": self.peer, "rows": rows}

    def ours_in(self, scenario: Scenario) -> str:
        """The same for the rows of *scenario*: the first variant, where there are some."""
        ours = self.ours(scenario.part)
        return f"{ours}[{scenario.variants[0][0]}]" if scenario.variants else ours

    def peer_in(self, scenario: Scenario) -> str:
        """Who the ratios are to: the other variant, where there are some."""
        if scenario.part == DRIVERS:
            return PEER
        ours = self.ours(scenario.part)
        return f"{ours}[{scenario.variants[1][0]}]" if scenario.variants else self.peer

    def _row(self, scenario: Scenario, row: Row) -> dict[str, Any]:
        modes: dict[str, Any] = {}
        for mode in self.modes():
            found = {
                name: self._system(scenario, row, mode, name) for name in self.names(row, mode)
            }
            if found:
                modes[mode] = found
        return {
            "name": row.name,
            "group": scenario.group,
            "what": row.what,
            "unit": row.unit,
            "better": "higher" if row.higher else "lower",
            "goals": [self._goal(scenario, row, goal) for goal in row.goals],
            "modes": modes,
        }

    def _goal(self, scenario: Scenario, row: Row, goal: Goal) -> dict[str, Any]:
        came = verdict(self.results, goal.mode, row, goal, self.ours_in(scenario))
        state = "unknown" if came is None else "met" if came.met else "missed"
        value = None if came is None else came.ratio
        return {"goal": goal_text(row, goal), "state": state, "ratio": value}

    def _system(self, scenario: Scenario, row: Row, mode: str, name: str) -> dict[str, Any]:
        found = figure(self.results, mode, row.name, name)
        if found is None:
            return {"failure": self.results.failures[mode][row.name][name]}
        values = self.results.values[mode][row.name][name]
        to_peer = ratio(self.results, mode, row.name, name, self.peer_in(scenario))
        return {**found.as_json(), "values": values, "ratio": to_peer}

    def modes(self) -> list[str]:
        """The modes that were measured."""
        rows = rows_of(self.scenarios)
        return [mode for mode in MODES if any(self.names(row, mode) for _, row in rows)]


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.processor() or "?"
