"""The command: `scripts/walkthrough`, or `python -m tests.walkthrough` as root."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from tests.walkthrough.classroom import Classroom
from tests.walkthrough.lesson import CheckError, UnavailableError
from tests.walkthrough.parts import ENGINES, PARTS, Part


def main() -> int:
    given = _arguments()
    plan = [
        (part, given.engine or part.engines[0])
        for part in PARTS
        if (not given.part or part.name in given.part)
        and (not given.engine or given.engine in part.engines)
    ]
    if given.list:
        for part, engine in plan:
            _write(f"{part.name:18}{engine:8}{part.title}")
        return 0
    if not plan:
        sys.stderr.write(f"walkthrough: {given.engine} has none of: {', '.join(given.part)}\n")
        return 2
    if os.geteuid() != 0:
        sys.stderr.write("walkthrough: mounting needs root; run: sudo scripts/walkthrough\n")
        return 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    try:
        return _hold(plan)
    except BrokenPipeError:  # who read it has gone: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/walkthrough",
        description="A course on the storage and networks of containers, on storage of ours:"
        " each command is shown with what it prints, and each line of that is checked.",
        epilog="The exit status is 1 if a check failed. What this machine cannot run is named.",
    )
    add = parser.add_argument
    names = [part.name for part in PARTS]
    add("--part", nargs="+", action="extend", default=[], choices=names, metavar="NAME")
    add("--engine", choices=ENGINES, help="all that it has (default: each part's first)")
    add("--list", action="store_true", help="show the parts, and the engine of each")
    return parser.parse_args()


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _interrupted(number: int, frame: object) -> None:
    # The second one must not stop the cleaning up.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _hold(plan: list[tuple[Part, str]]) -> int:
    told: list[str] = []
    failed = 0
    with Classroom(_write) as classroom:
        for part, engine in plan:
            _write(f"\n==> {part.name} ({engine}): {part.title}")
            began = time.monotonic()
            try:
                checks = classroom.hold(part, engine)
                told.append(f"{part.name:18}{checks:3} checks, {time.monotonic() - began:.0f} s")
            except UnavailableError as reason:
                _write(f"    skipped: {reason}")
                told.append(f"{part.name:18}skipped: {reason}")
            except CheckError as fact:
                failed += 1
                told.append(f"{part.name:18}FAILED: {fact}")
    _write("\n==> the parts")
    for line in told:
        _write(f"    {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
