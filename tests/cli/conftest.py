"""The command as a process of its own, and an end for every daemon that it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from tests import system
from tests.mounts import REPOSITORY
from unionfs import registry
from unionfs.fuse import mounting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.watchdog import Watchdog

#: Seconds that one command may take.
PATIENCE = 30

_STUB = "from unionfs.cli import program; program()"


class Command:
    """Runs `unionfs`, by any of its names, in a directory with the layers of a small union."""

    def __init__(self, base: Path, watchdog: Watchdog) -> None:
        self.base = base
        self.target = base / "m"
        self._watchdog = watchdog
        self._armed: set[int] = set()
        for name in ("l1", "l2/d", "u", "w", "m"):
            (base / name).mkdir(parents=True)
        (base / "l1/file").write_text("one")
        (base / "l2/file").write_text("two")
        (base / "l2/d/deep").write_text("deep")

    #: The layers, relative to `base`, in which commands are run.
    layers = "lowerdir=l1:l2,upperdir=u,workdir=w"

    def start(
        self, *arguments: str | bytes, name: str = "unionfs", patch: str = "", **popen: Any
    ) -> subprocess.Popen[bytes]:
        """Start the program called *name*; *patch* is Python that runs in it first."""
        program = [sys.executable, "-c", f"import sys; sys.argv[0] = {name!r}\n{patch}\n{_STUB}"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **popen.pop("env", {})}
        return subprocess.Popen(
            [*program, *arguments],
            cwd=popen.pop("cwd", self.base),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=popen.pop("stdout", subprocess.PIPE),
            stderr=popen.pop("stderr", subprocess.PIPE),
            **popen,
        )

    def run(
        self, *arguments: str | bytes, status: int | None = 0, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the program to the end of its output, which a daemon must not keep open."""
        process = self.start(*arguments, **more)
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            self._guard()
        done = subprocess.CompletedProcess(
            process.args, process.returncode, os.fsdecode(out or b""), os.fsdecode(err or b"")
        )
        if status is not None:
            assert done.returncode == status, done
        return done

    def mount(self, *extra: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Mount the small union on `target`, with *extra* options."""
        return self.run("mount", "-o", ",".join([self.layers, *extra]), "m", **more)

    def refuse(self, *arguments: str | bytes, status: int, **more: Any) -> str:
        """Run what must fail without a mount; the one line that says why."""
        done = self.run(*arguments, status=status, **more)
        assert done.stdout == ""
        assert done.stderr.startswith("unionfs: ")
        assert done.stderr.count("\n") == 1, done.stderr
        assert not self.mounted()
        return done.stderr.removeprefix("unionfs: ").rstrip("\n")

    def info(self, target: Path | None = None) -> dict[str, Any]:
        """Return what `unionfs ls` tells about the union on *target*, by default `target`."""
        wanted = os.fspath(target or self.target)
        rows = json.loads(self.run("ls", "--json").stdout)
        (row,) = [row for row in rows if row["target"] == wanted]
        assert isinstance(row, dict)
        return row

    def mounted(self) -> list[mounting.MountEntry]:
        """Return what is mounted below `base`."""
        below = os.fsencode(self.base) + b"/"
        return [entry for entry in mounting.mounts() if entry.target.startswith(below)]

    def _guard(self) -> None:
        """Let no mount that is left hang the test."""
        for entry in self.mounted():
            minor = int(entry.device.split(":")[1])
            if entry.kind == mounting.FSTYPE and minor not in self._armed:
                self._armed.add(minor)
                self._watchdog.arm(minor, 60)

    def end(self) -> None:
        """Unmount all and wait for the daemons."""
        records = [registry.find(entry) for entry in self.mounted()]
        pids = [record.pid for record in records if record is not None]
        while below := self.mounted():
            system.umount(below[-1].target, system.MNT_DETACH)
        late = [pid for pid in pids if not wait_for_end(pid)]
        for pid in late:
            os.kill(pid, signal.SIGKILL)
        fired = [minor for minor in self._armed if self._watchdog.disarm(minor)]
        assert not late, "a daemon lived on"
        assert not fired, "the watchdog had to abort a mount"


def wait_for_end(pid: int, seconds: float = 5.0) -> bool:
    """Wait for the end of a process that is no child of ours; whether it came in time."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            return bool(select.select([descriptor], [], [], seconds)[0])
        finally:
            os.close(descriptor)
    return True


@pytest.fixture
def command(scratch: Path, watchdog: Watchdog) -> Iterator[Command]:
    """The command, with layers to mount; nothing stays mounted."""
    made = Command(scratch, watchdog)
    yield made
    made.end()


Run: TypeAlias = "Callable[..., subprocess.CompletedProcess[str]]"


def in_store(command: Command, *words: str) -> Run:
    """Return what runs ``unionfs`` and *words* on a store of the test's own."""

    def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        environment = {"UNIONFS_ROOT": str(command.base / "store"), **more.pop("env", {})}
        return command.run(*words, *arguments, env=environment, **more)

    return run


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Runs what must fail, by the test's own ``run``; the one line that says why."""

    def refused(*arguments: str, status: int = 1, **more: Any) -> str:
        done = run(*arguments, status=status, **more)
        assert done.stdout == ""
        assert re.fullmatch(r"unionfs: .*\n", done.stderr)
        return done.stderr.removeprefix("unionfs: ").rstrip("\n")

    return refused


@pytest.fixture
def daemon_killed_at(command: Command) -> Any:
    """Mounts with a daemon that kills itself in the given method of the session."""

    def mount(method: str, number: signal.Signals = signal.SIGKILL) -> str:
        patch = (
            "import os; from unionfs.fuse.device import DeviceSession\n"
            f"def die(*_): os.kill(os.getpid(), {int(number)})\n"
            f"DeviceSession.{method} = die"
        )
        return command.refuse("mount", "-o", command.layers, "m", status=32, patch=patch)

    return mount
