"""Where the course is held: machines are started when a part needs them, parts run and are told."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from typing import Self

from tests.walkthrough.lesson import CheckError, Lesson, UnavailableError
from tests.walkthrough.machine import Machine
from tests.walkthrough.parts import Part


class Classroom:
    """Holds lessons, printed by *write*; its machines end with it."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._machines: dict[str, Machine] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def machine(self, engine: str) -> Machine:
        """The machine with that engine."""
        if engine not in self._machines:
            machine = Machine(engine)
            self._stack.callback(machine.close)
            self._machines[engine] = machine
        return self._machines[engine]

    def hold(self, part: Part, engine: str) -> int:
        """Run *part*; how many checks it had. Raises `CheckError`, `UnavailableError`."""
        if missing := part.missing(engine):
            raise UnavailableError(missing)
        try:
            return self._hold(part, self.machine(engine))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            # What is done beside the lesson, such as starting an engine.
            self._write(f"    ✗ {error}")
            raise CheckError("what the lesson needs is done") from error

    def _hold(self, part: Part, machine: Machine) -> int:
        lesson = Lesson(machine, self._write)
        try:
            part.run(lesson)
            lesson.end()
        finally:
            machine.clear()
        return lesson.checks
