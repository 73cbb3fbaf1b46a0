"""The report: JSON for programs, Markdown for people."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.figures import TIMES, figure, goal_text, ratio, shown, verdict
from tests.bench.model import Row, Scenario
from tests.bench.run import Results, rows_of
from tests.bench.systems import OURS, System

BEGIN = "<!-- begin: written by scripts/bench --markdown -->"
END = "<!-- end: written by scripts/bench --markdown -->"


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

    def ours(self) -> str:
        """The system that goals are about: the first of ours that was measured."""
        return next((one.name for one in self.systems if one.is_ours), OURS[0])

    def names(self, row: Row, mode: str) -> list[str]:
        """The systems with a figure or a failure in *row*, in the order of the systems."""
        there = {
            *self.results.values.get(mode, {}).get(row.name, {}),
            *self.results.failures.get(mode, {}).get(row.name, {}),
        }
        order = [system.name for system in self.systems]
        return sorted(there, key=lambda name: (_place(name, order), name))

    def as_json(self) -> dict[str, Any]:
        """Everything, with all values of all rounds."""
        rows = [self._row(scenario, row) for scenario, row in rows_of(self.scenarios)]
        return {"head": self.head(), "peer": self.peer, "rows": rows}

    def _row(self, scenario: Scenario, row: Row) -> dict[str, Any]:
        modes: dict[str, Any] = {}
        for mode in self.results.values:
            found = {name: self._system(row, mode, name) for name in self.names(row, mode)}
            if found:
                modes[mode] = found
        return {
            "name": row.name,
            "group": scenario.group,
            "what": row.what,
            "unit": row.unit,
            "better": "higher" if row.higher else "lower",
            "goals": self._goals(row),
            "modes": modes,
        }

    def _goals(self, row: Row) -> list[dict[str, Any]]:
        found = []
        for goal in row.goals:
            came = verdict(self.results, goal.mode, row, goal, self.ours())
            state = "unknown" if came is None else "met" if came.met else "missed"
            value = None if came is None else came.ratio
            found.append({"goal": goal_text(row, goal), "state": state, "ratio": value})
        return found

    def _system(self, row: Row, mode: str, name: str) -> dict[str, Any]:
        found = figure(self.results, mode, row.name, name)
        if found is None:
            return {"failure": self.results.failures[mode][row.name][name]}
        values = self.results.values[mode][row.name][name]
        to_peer = ratio(self.results, mode, row.name, name, self.peer)
        return {**found.as_json(), "values": values, "ratio": to_peer}

    def as_markdown(self) -> str:
        """Head and tables, one for each group and mode."""
        parts = [_head(self.head(), self.peer)]
        for mode in self.results.values:
            for group in dict.fromkeys(scenario.group for scenario in self.scenarios):
                rows = [r for s, r in rows_of(self.scenarios) if s.group == group]
                rows = [row for row in rows if self.names(row, mode)]
                if rows:
                    parts.append(f"### {group}, {mode}\n\n{self._table(rows, mode)}")
        parts.append(self._failures())
        return "\n\n".join(part for part in parts if part) + "\n"

    def _table(self, rows: list[Row], mode: str) -> str:
        seen = {name for row in rows for name in self.names(row, mode)}
        order = [system.name for system in self.systems]
        names = sorted(seen, key=lambda name: (_place(name, order), name))
        lines = [
            f"| row | unit | {' | '.join(names)} | {self.ours()} : {self.peer} | goal |",
            f"|---|---|{'---:|' * len(names)}---:|---|",
        ]
        for row in rows:
            cells = [self._cell(row, mode, name) for name in names]
            to_peer = ratio(self.results, mode, row.name, self.ours(), self.peer)
            shown_ratio = "" if to_peer is None else f"{to_peer:.2f}"
            goals = self._goals_in(row, mode)
            unit = f"{row.unit}{' ↑' if row.higher else ''}"
            lines.append(f"| {row.name} | {unit} | {' | '.join(cells)} | {shown_ratio} | {goals} |")
        return "\n".join(lines)

    def _cell(self, row: Row, mode: str, name: str) -> str:
        found = figure(self.results, mode, row.name, name)
        if found is None:
            failed = name in self.results.failures.get(mode, {}).get(row.name, {})
            return "✗" if failed else ""
        return f"{shown(found.median)} ±{found.spread * 100:.0f}%"

    def _goals_in(self, row: Row, mode: str) -> str:
        found = []
        for goal in row.goals:
            if goal.mode == mode:
                came = verdict(self.results, mode, row, goal, self.ours())
                state = "?" if came is None else "**met**" if came.met else "missed"
                found.append(f"{goal_text(row, goal)} {state}")
        return ", ".join(found)

    def _failures(self) -> str:
        lines = {
            f"- {row.name}, {mode}, {name}: {reason}"
            for mode, rows in self.results.failures.items()
            for _, row in rows_of(self.scenarios)
            for name, reason in rows.get(row.name, {}).items()
        }
        return "### Without a figure\n\n" + "\n".join(sorted(lines)) if lines else ""


def _place(name: str, order: list[str]) -> int:
    base = name.partition("[")[0]
    return order.index(base) if base in order else len(order)


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.processor() or "?"


def _head(head: dict[str, Any], peer: str) -> str:
    quick = " (quick)" if head["quick"] else ""
    machine = f"{head['kernel']}, {head['cpus']} {TIMES} {head['cpu']}, {head['python']}"
    reading = (
        f"Medians of {head['rounds']} rounds{quick}, with half the distance of the extremes. "
        f"✗: failed, see below; ↑: higher is better; ratios are to {peer}."
    )
    lines = [f"{machine}.", "", reading, ""]
    for name, facts in head["systems"].items():
        note = f"; {facts['note']}" if facts["note"] else ""
        options = f", `{facts['options']}`" if facts["options"] else ", its defaults"
        lines.append(f"- {name}: {facts['version']}{options}{note}")
    if head["missing"]:
        lines.append(f"- not on this machine: {', '.join(head['missing'])}")
    return "\n".join(lines)


def write_markdown(path: Path, text: str) -> None:
    """Write *text* between the marks of *path*; a file without marks becomes *text*."""
    block = f"{BEGIN}\n\n{text}\n{END}"
    old = path.read_text() if path.exists() else ""
    if BEGIN in old and END in old:
        before, rest = old.split(BEGIN, 1)
        block = before + block + rest.split(END, 1)[1]
    path.write_text(block if block.endswith("\n") else block + "\n")
