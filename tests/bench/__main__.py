"""The command: `scripts/bench`, or `python -m tests.bench` as root."""

from __future__ import annotations

import argparse
import compileall
import contextlib
import fnmatch
import json
import os
import signal
import sys
from pathlib import Path

from tests.bench import markdown, plot, stores
from tests.bench.arena import arena, open_to_users
from tests.bench.figures import goal_text
from tests.bench.model import FREE, PEERS, PINNED, UNPRIVILEGED, Scale, Scenario
from tests.bench.mounting import SAME_FOR_ALL, Launch, environment
from tests.bench.report import Report
from tests.bench.run import Results, Runner, chosen, progress, rows_of
from tests.bench.systems import OPTIONS, System, find
from tests.mounts import REPOSITORY
from tests.watchdog import Watchdog

ROUNDS, QUICK_ROUNDS = 5, 2
QUICK_SYSTEMS = ["unionfs", "overlay", "fuse-overlayfs*", "driver-*", "containerd-*"]


def _absolute(path: str) -> Path:
    """The file that the caller means: the benchmark works in a directory of its own."""
    return Path(path) if path == "-" else Path(path).absolute()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Compare this union with its peers on this machine."
    )
    add = parser.add_argument
    names = (*OPTIONS, *stores.DRIVERS, *stores.SNAPSHOTTERS)
    add("--quick", action="store_true", help="fewer rounds, smaller counts, less than a minute")
    add("--rows", nargs="+", default=[], metavar="PATTERN", help="rows, scenarios or groups")
    add("--systems", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(names)}")
    add("--rounds", type=int, metavar="N", help=f"(default {ROUNDS})")
    add("--peer", default="fo", metavar="NAME", help="ratios are to this one (fo, kernel, …)")
    add("--pinned", action="store_true", help="only with everything on one CPU")
    add("--free", action="store_true", help="only without; the default is both")
    add("--unprivileged", action="store_true", help="as user nobody, through fusermount3")
    add("--fuse-overlayfs", metavar="PATH", help="the binary of version 2")
    add("--binary", action="append", default=[], metavar="NAME=PATH", help="of another peer")
    add("--note", action="append", default=[], metavar="NAME=TEXT", help="how a peer was built")
    add("--json", type=_absolute, metavar="FILE")
    add("--markdown", type=_absolute, metavar="FILE", help="the tables; `-` for stdout (default)")
    add("--svg", type=_absolute, metavar="FILE", help="a plot of the ratios")
    add("--list", action="store_true", help="show all rows and their goals")
    return parser.parse_args()


def _pairs(texts: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def _modes(given: argparse.Namespace) -> list[str]:
    if given.unprivileged:
        return [UNPRIVILEGED]
    if given.pinned:
        return [PINNED]
    return [FREE] if given.free or given.quick else [FREE, PINNED]


def _list(scenarios: list[Scenario]) -> None:
    for scenario, row in rows_of(scenarios):
        goals = ", ".join(goal_text(row, goal) for goal in row.goals)
        line = f"{scenario.group:10}{row.name:18}{row.unit:9}{row.what}"
        sys.stdout.write(f"{line}: {goals}\n" if goals else f"{line}\n")


def _systems(given: argparse.Namespace) -> tuple[list[System], list[str]]:
    named = _pairs(given.binary)
    if given.fuse_overlayfs:
        named["fuse-overlayfs"] = given.fuse_overlayfs
    present, missing = find(named)
    keeping, missing_too = stores.find()
    present, missing = present + keeping, missing + missing_too
    wanted = given.systems or (QUICK_SYSTEMS if given.quick else ["*"])
    wanted = [PEERS.get(name, name) for name in wanted]
    chosen_systems = [one for one in present if any(fnmatch.fnmatch(one.name, w) for w in wanted)]
    return chosen_systems, [
        one for one in missing if any(fnmatch.fnmatch(one.partition(" ")[0], w) for w in wanted)
    ]


def _watchdog() -> Watchdog:
    """A watchdog that outlives Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return Watchdog()
    finally:
        signal.signal(signal.SIGINT, before)


def _measure(
    given: argparse.Namespace, systems: list[System], scenarios: list[Scenario], rounds: int
) -> Results:
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(arena())
        watchdog = _watchdog()
        stack.callback(watchdog.close)
        root = Launch(sys.executable, environment())
        # As an installation leaves it: a start need not compile.
        compileall.compile_dir(REPOSITORY / "unionfs", quiet=2)
        cpu = max(os.sched_getaffinity(0))
        launches = {FREE: root, PINNED: Launch(root.python, root.environment, cpu)}
        if given.unprivileged:
            user = stack.enter_context(open_to_users(made.base))
            launches[UNPRIVILEGED] = Launch(user["PYTHON"], {**SAME_FOR_ALL, **user}, user=True)
        modes = _modes(given)
        used = {mode: launches[mode] for mode in modes}
        runner = Runner(made, systems, Scale(given.quick), rounds, watchdog, used)
        try:
            runner.run(scenarios, modes)
        except KeyboardInterrupt:
            runner.results.interrupted = True
            progress("interrupted: the report has what was measured so far\n")
        return runner.results


def _write(given: argparse.Namespace, report: Report) -> None:
    if given.json:
        given.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    if given.svg:
        given.svg.write_text(plot.draw(report))
    if given.markdown and str(given.markdown) != "-":
        markdown.write(given.markdown, report)
    else:
        sys.stdout.write(markdown.text(report))


def main() -> int:
    given = _arguments()
    scenarios = chosen(given.rows, quick=given.quick and not given.list)
    if given.list:
        _list(scenarios)
        return 0
    if os.geteuid() != 0:
        sys.stderr.write("scripts/bench: mounting needs root; run: sudo scripts/bench\n")
        return 1
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    os.environ.update(SAME_FOR_ALL)
    systems, missing = _systems(given)
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    results = _measure(given, systems, scenarios, rounds)
    peer = PEERS.get(given.peer, given.peer)
    notes = _pairs(given.note)
    _write(given, Report(results, scenarios, systems, missing, peer, rounds, given.quick, notes))
    return 130 if results.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
