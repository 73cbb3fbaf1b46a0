"""How a part is told: a command as a person would type it, what it shows, and a check of that."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import Any, Final, NoReturn

from tests.walkthrough.machine import Machine

#: Lines of one command that are printed.
SOME: Final = 24
#: What engines print of a container or an image that they have made.
ID: Final = re.compile(r"(sha256:)?[0-9a-f]{64}")


class CheckError(Exception):
    """What was shown is not what it should be."""


class UnavailableError(Exception):
    """This machine cannot run the part, for the reason that this says."""


class Lesson:
    """One part on *machine*, printed by *write*, which takes a line.

    What a command shows must be checked before the next one runs: else the part fails.
    """

    def __init__(self, machine: Machine, write: Callable[[str], None]) -> None:
        self.machine = machine
        self._write = write
        self._unchecked = ""
        #: How many checks there were.
        self.checks = 0

    def need(self, there: bool, lacking: str) -> None:
        """Raise `UnavailableError`, which says what is *lacking*, unless it is *there*."""
        if not there:
            raise UnavailableError(lacking)

    def need_link(self, kind: str, options: str) -> None:
        """Raise `UnavailableError` if this kernel makes no network devices of that *kind*."""
        try_it = f"ip link add try0 {options} && ip link del try0"
        self.machine.shell(try_it, status=None)
        self.need(
            self.machine.ground.status == 0, f"this kernel has no {kind}: {self.said.strip()}"
        )

    def keep(self, name: str, value: str) -> None:
        """Let later commands call it ``$name``: paths of engines are long."""
        self.machine.environment[name] = value

    def say(self, text: str, *more: str) -> None:
        """Print what comes next, or what was seen; *more* are lines below it."""
        self._write(f"\n    {text}")
        for line in more:
            self._write(f"      {line}")

    def engine(self, arguments: str, **how: Any) -> str:
        """Run the engine, with *arguments* as a shell reads them; see `host`."""
        return self.host(f"{self.machine.name} {arguments}", **how)

    def host(
        self,
        script: str,
        *,
        status: int = 0,
        on: Machine | None = None,
        seconds: float = 60.0,
    ) -> str:
        """Run *script* beside the engine, in the directory of the course; what it wrote.

        It must end with *status*. *on* is another machine than the lesson's.
        """
        self.end()
        machine = on or self.machine
        self._write(f"  {machine.prompt}$ {script}")
        try:
            shown = machine.shell(script, status=None, seconds=seconds).rstrip("\n")
        except subprocess.TimeoutExpired:
            self._fail("the command comes to its end", f"none in {seconds} s", "one")
        ground = machine.ground
        self._print(shown)
        self._print(ground.said.rstrip("\n"))
        if ground.status != status:
            self._fail("the command's exit status", ground.status, status)
        if status:
            self._write(f"      (exit status {status})")
        if shown or ground.said:
            self._unchecked = script
        return shown

    def start(self, container: str, rest: str) -> None:
        """Start *container* in the background; *rest* are options, the image and the command."""
        shown = self.engine(f"run -d --name {container} {rest}")
        self.check(f"{container} runs", shown, ID)

    def remove(self, container: str) -> None:
        """Remove a container, which need not have ended."""
        at_once = "-f -t 0" if self.machine.name == "podman" else "-f"
        shown = self.engine(f"rm {at_once} {container}")
        self.check(f"{container} is removed", shown, re.compile(f"{container}|[0-9a-f]{{64}}"))

    @property
    def said(self) -> str:
        """What the last command of this machine said on standard error."""
        return self.machine.ground.said

    def check(self, fact: str, found: object, expected: object) -> None:
        """Print *fact*, if *found* is what is *expected*: equal to it, or matched by it.

        A pattern must match all of the text.
        """
        self._unchecked = ""
        if isinstance(expected, re.Pattern):
            right = expected.fullmatch(str(found)) is not None
        else:
            right = found == expected
        if not right:
            self._fail(fact, found, expected)
        self.checks += 1
        self._write(f"    ✓ {fact}")

    def check_that(self, fact: str, right: object, found: object) -> None:
        """Print *fact*, if it is *right*; *found* is what it was told by."""
        self.check(fact, found if not right else fact, fact)

    def end(self) -> None:
        """Fail if nobody has checked what the last command showed."""
        if self._unchecked:
            self._fail(f"a check of what is shown by {self._unchecked}", "none", "one")

    def _print(self, text: str) -> None:
        lines = text.splitlines()
        for line in lines[:SOME]:
            self._write(f"      {line}")
        if len(lines) > SOME:
            self._write(f"      … and {len(lines) - SOME} more")

    def _fail(self, fact: str, found: object, expected: object) -> NoReturn:
        if isinstance(expected, re.Pattern):
            expected = f"text like {expected.pattern!r}"
        self._write(f"    ✗ {fact}")
        self._write(f"      expected: {expected!r}")
        self._write(f"      found:    {found!r}")
        raise CheckError(fact)
