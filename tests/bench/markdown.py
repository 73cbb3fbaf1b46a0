"""The report for people: Markdown tables, put between two marks of a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.bench.figures import TIMES, figure, goal_text, ratio, shown, verdict
from tests.bench.model import DRIVERS, ENGINES, MOUNTS, PARTS, UNPRIVILEGED, Row, Scenario
from tests.bench.report import Report
from tests.bench.run import rows_of

#: Each part has marks of its own, and others for figures of an ordinary user.
MARKS = {
    MOUNTS: "written by scripts/bench --markdown",
    DRIVERS: "storage drivers, written by scripts/bench --markdown",
    ENGINES: "engines, written by scripts/bench --markdown",
}

Rows = list[tuple[Scenario, Row]]


def write(path: Path, report: Report) -> None:
    """Put the report between the marks of *path*; a file without marks becomes the report."""
    page = path.read_text() if path.exists() else ""
    blocks = []
    for name, part in _parts(report):
        about = MARKS[name]
        if part.modes() == [UNPRIVILEGED]:
            about = f"unprivileged, {about}"
        begin, end = (f"<!-- {word}: {about} -->" for word in ("begin", "end"))
        block = f"{begin}\n\n{_part_text(part)}\n{end}\n"
        blocks.append(block)
        if begin in page and end in page:
            before, rest = page.split(begin, 1)
            page = before + block + rest.split(end, 1)[1].removeprefix("\n")
            blocks.pop()
    path.write_text("\n".join(blocks) if blocks else page)


def _parts(report: Report) -> Iterator[tuple[str, Report]]:
    """What *report* has about each part of which something was measured."""
    for name in PARTS:
        part = report.part(name)
        if part.scenarios:
            yield name, part


def text(report: Report) -> str:
    """All of it, for a terminal."""
    return "\n".join(_part_text(part) for _, part in _parts(report))


def _part_text(report: Report) -> str:
    """Head, the goals, and a table for each mode and group."""
    parts = [_head(report), _goals(report)]
    for mode in report.modes():
        for group in dict.fromkeys(scenario.group for scenario in report.scenarios):
            rows = [(s, r) for s, r in rows_of(report.scenarios) if s.group == group]
            rows = [(s, row) for s, row in rows if report.names(row, mode)]
            if rows:
                parts.append(f"### {group}, {mode}\n\n{_table(report, rows, mode)}")
    parts.append(_failures(report))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: Report) -> str:
    head = report.head()
    variants = any(scenario.variants for scenario in report.scenarios)
    others = " (placement: to `placement=off`)" if variants else ""
    quick = " (quick)" if head["quick"] else ""
    machine = f"{head['kernel']}, {head['cpus']} {TIMES} {head['cpu']}, {head['python']}"
    reading = (
        f"Medians of up to {head['rounds']} rounds{quick}, with half the distance of the "
        f"extremes. \u2717: failed, see the end; \u2191: higher is better; ratios are to "
        f"{report.peer}{others}."
    )
    lines = [f"{head['date']}, {machine}, load at the end {head['load']:.1f}.", "", reading, ""]
    for name, facts in head["systems"].items():
        note = f"; {facts['note']}" if facts["note"] else ""
        options = f", `{facts['options']}`" if facts["options"] else ", its defaults"
        lines.append(f"- {name}: {facts['version']}{options}{note}")
    if head["missing"]:
        lines.append(f"- not on this machine: {', '.join(head['missing'])}")
    return "\n".join(lines)


def _goals(report: Report) -> str:
    """The figures of ours, its ratios free and pinned, and what came of each goal."""
    modes = report.modes()
    ours = report.ours(report.scenarios[0].part)
    columns = "".join(f" {ours}, {mode} | : {report.peer} |" for mode in modes)
    lines = [f"| row | unit |{columns} goals |", f"|---|---|{'---:|---:|' * len(modes)}---|"]
    for scenario, row in rows_of(report.scenarios):
        cells = "".join(f" {_pair(report, scenario, row, mode)} |" for mode in modes)
        states = ", ".join(_states(report, scenario, row, modes))
        lines.append(f"| {row.name} | {_unit(row)} |{cells} {states} |")
    return "### Goals\n\n" + "\n".join(lines)


def _pair(report: Report, scenario: Scenario, row: Row, mode: str) -> str:
    ours = report.ours_in(scenario)
    found = figure(report.results, mode, row.name, ours)
    to_peer = ratio(report.results, mode, row.name, ours, report.peer_in(scenario))
    cells = ("" if found is None else shown(found.median), _ratio(to_peer))
    return " | ".join(cells)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _states(report: Report, scenario: Scenario, row: Row, modes: list[str]) -> list[str]:
    found = []
    for goal in row.goals:
        if goal.mode in modes:
            came = verdict(report.results, goal.mode, row, goal, report.ours_in(scenario))
            state = "?" if came is None else "**met**" if came.met else "missed"
            value = f" ({_ratio(came.ratio)})" if came is not None and goal.against else ""
            found.append(f"{goal_text(row, goal)} {state}{value}")
    return found


def _unit(row: Row) -> str:
    return f"{row.unit} \u2191" if row.higher else row.unit


def _table(report: Report, rows: Rows, mode: str) -> str:
    names = list(dict.fromkeys(name for _, row in rows for name in report.names(row, mode)))
    names.sort(key=report.place)
    lines = [f"| row | | unit | {' | '.join(names)} |", f"|---|---|---|{'---:|' * len(names)}"]
    for _, row in rows:
        cells = [_cell(report, row, mode, name) for name in names]
        what = row.what if mode == report.modes()[0] else ""
        lines.append(f"| {row.name} | {what} | {_unit(row)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(report: Report, row: Row, mode: str, name: str) -> str:
    found = figure(report.results, mode, row.name, name)
    if found is not None:
        return f"{shown(found.median)} \u00b1{found.spread * 100:.0f}%"
    failed = name in report.results.failures.get(mode, {}).get(row.name, {})
    return "\u2717" if failed else ""


def _failures(report: Report) -> str:
    found: dict[tuple[str, str, str], list[str]] = {}
    for mode in report.modes():
        for _, row in rows_of(report.scenarios):
            failed = report.results.failures.get(mode, {}).get(row.name, {})
            for name, reason in failed.items():
                found.setdefault((mode, name, reason), []).append(row.name)
    lines = [f"- {', '.join(rows)}; {m}; {name}: {why}" for (m, name, why), rows in found.items()]
    return "### Without a figure\n\n" + "\n".join(lines) if lines else ""
