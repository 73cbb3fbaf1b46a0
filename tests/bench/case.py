"""One system in one round of one scenario: what a scenario's `run` works with."""

from __future__ import annotations

import contextlib
import select
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.arena import Ground, remove_tree
from tests.bench.model import Scale, Scenario
from tests.bench.mounting import Launch, Union
from tests.bench.stores import Store
from tests.bench.systems import System
from tests.watchdog import Watchdog


@dataclass(frozen=True)
class Measured:
    """What a phase of a worker took."""

    nanoseconds: int
    count: int

    @property
    def each(self) -> float:
        """Microseconds for each of what was counted."""
        return self.nanoseconds / 1000 / self.count

    @property
    def milliseconds(self) -> float:
        return self.nanoseconds / 1e6

    @property
    def rate(self) -> float:
        """Megabytes in a second, where bytes were counted."""
        return self.count * 1000 / self.nanoseconds


@dataclass
class Worker:
    """A client that is ready and waits for its start."""

    process: subprocess.Popen[str]
    deadline: float

    def _line(self) -> str:
        assert self.process.stdout is not None
        wait = max(0.0, self.deadline - time.monotonic())
        if not select.select([self.process.stdout], [], [], wait)[0]:
            raise TimeoutError("the client did not answer in time")
        return self.process.stdout.readline()

    def wait_ready(self) -> None:
        if self._line() != "ready\n":
            raise OSError(self._failure())

    def go(self) -> None:
        """Let it begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def results(self) -> dict[str, Measured]:
        """Wait until it is done."""
        found = {}
        while line := self._line():
            label, nanoseconds, count = line.split()
            found[label] = Measured(int(nanoseconds), int(count))
        if self.process.wait(10) or not found:
            raise OSError(self._failure())
        return found

    def _failure(self) -> str:
        assert self.process.stderr is not None
        self.process.kill()
        lines = self.process.stderr.read().strip().splitlines()
        # What a command said comes before the traceback of the worker that ran it.
        said = lines[0] if lines and not lines[0].startswith("Traceback") else ""
        return (
            f"{lines[-1][-200:]} {said[:200]}".strip()
            if lines
            else f"worker ended with {self.process.wait(10)}"
        )

    def end(self) -> None:
        """Leave nothing of it."""
        if self.process.poll() is None:
            self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@dataclass
class Case:
    """The ground, a system, and the time that both have."""

    system: System
    scenario: Scenario
    scale: Scale
    ground: Ground
    launch: Launch
    watchdog: Watchdog
    options: str = ""
    unions: list[Union] = field(default_factory=list)
    deadline: float = 0.0

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.seconds

    @property
    def seconds(self) -> float:
        """That may pass before its mounts are aborted."""
        return self.scale.count(self.scenario.seconds, min(20.0, self.scenario.seconds))

    def union(self, place: str = "r/0") -> Union:
        """A union of this system, with fresh directories and not mounted."""
        made = Union(
            self.system,
            self.ground,
            self.launch,
            self.watchdog,
            place,
            writable=not self.scenario.read_only,
            copies=self.scenario.writes and not self.scenario.read_only,
            seconds=self.seconds,
        )
        made.make()
        self.unions.append(made)
        return made

    def store(self) -> Store:
        """A home for snapshots, not yet made."""
        return Store(self.system, self.ground, self.launch)

    @property
    def aside(self) -> Path:
        """What the scenario built beside the lowers."""
        return self.ground.root / "s"

    @contextlib.contextmanager
    def mounted(self, union: Union | None = None) -> Iterator[Path]:
        """A fresh mount, with a fresh upper unless *union* brings one."""
        union = union or self.union()
        union.mount(self.options)
        try:
            yield union.root
        finally:
            union.unmount()

    @contextlib.contextmanager
    def worker(self, script: str, *arguments: object, session: bool = False) -> Iterator[Worker]:
        """A worker that is ready: the module *script*, if asked in a *session* of its own."""
        command = [self.launch.python, "-S", "-E", "-m", f"tests.bench.{script}"]
        command += [str(each) for each in arguments]
        pipe = subprocess.PIPE
        process = self.launch.start(
            command,
            cwd=self.launch.project,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            # One of the two keeps Ctrl-C away from it.
            start_new_session=session,
            process_group=None if session else 0,
        )
        made = Worker(process, self.deadline)
        try:
            made.wait_ready()
            yield made
        finally:
            made.end()

    def measure(self, *arguments: object, script: str = "worker") -> dict[str, Measured]:
        """The phases of one worker."""
        with self.worker(script, *arguments) as worker:
            worker.go()
            return worker.results()

    def data(self, *arguments: object) -> dict[str, Measured]:
        """The phases of a worker for data."""
        return self.measure(*arguments, script="worker_data")

    def command(self, *argv: object) -> Measured:
        """A command, from its start to its end."""
        return self.measure("command", *argv)["run"]

    def clear(self) -> None:
        """Unmount what is left and remove the directories."""
        for union in self.unions:
            with contextlib.suppress(OSError, TimeoutError):
                union.unmount()
        remove_tree(self.ground.root / "r")
