"""The command `unionfs run` as processes of their own, and what must not be left of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.mounts import REPOSITORY
from unionfs.store.store import Store

#: Seconds for one command.
PATIENCE: Final = 30.0

_USERS: Final = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001::/home/user:/bin/sh\n"
_GROUPS: Final = "root:x:0:\nuser:x:1001:\nextra:x:1002:user,other\n"


def make_image(root: Path, name: str = "base") -> None:
    """Commit a small root file system, busybox, as snapshot *name* of the store in *root*."""
    store = Store.open(str(root), "overlay", {})
    store.driver.prepare("making", "")
    (mount,) = store.driver.mounts("making")
    fill(Path(mount.source))
    store.driver.commit(name, "making")
    store.close()


def fill(tree: Path) -> None:
    """Make *tree* a root file system."""
    for directory in ("bin", "etc", "tmp", "root", "home/user", "data", "proc", "sys", "dev"):
        (tree / directory).mkdir(parents=True)
    (tree / "tmp").chmod(0o1777)
    busybox = shutil.which("busybox")
    assert busybox is not None, "busybox-static is not installed"
    shutil.copy(busybox, tree / "bin/busybox")
    listed = subprocess.run([busybox, "--list"], capture_output=True, check=True, text=True)
    for applet in listed.stdout.split():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    (tree / "etc/passwd").write_text(_USERS)
    (tree / "etc/group").write_text(_GROUPS)
    (tree / "etc/words").write_text("of the image\n")
    (tree / "data/old").write_text("old\n")


class Runner:
    """Runs commands over the image ``base`` of a store, and knows what is left of them."""

    def __init__(
        self,
        base: Path,
        environment: dict[str, str] | None = None,
        before_exec: Callable[[], None] | None = None,
    ) -> None:
        self.base = base
        self.root = base / "store"
        self._environment = environment or {}
        self._before_exec = before_exec
        self._started: list[subprocess.Popen[str]] = []
        #: What the last one said on standard error.
        self.said = ""

    def command_line(self) -> list[str]:
        """The program ``unionfs``."""
        return [self._environment.get("PYTHON", sys.executable), "-m", "unionfs"]

    def surroundings(self) -> dict[str, str]:
        """Its environment, which names the store."""
        return {
            **(self._environment or os.environ),
            "PYTHONPATH": self._environment.get("PYTHONPATH", str(REPOSITORY)),
            "UNIONFS_ROOT": str(self.root),
        }

    def start(
        self, *arguments: str, command: Sequence[str] = ("run",), **popen: Any
    ) -> subprocess.Popen[str]:
        """Start ``unionfs run`` with *arguments*, or another *command*."""
        popen.setdefault("stdin", subprocess.DEVNULL)
        popen.setdefault("stdout", subprocess.PIPE)
        popen.setdefault("stderr", subprocess.PIPE)
        popen.setdefault("cwd", self.base)
        started = subprocess.Popen(
            [*self.command_line(), *command, *arguments],
            env={**self.surroundings(), **popen.pop("env", {})},
            text=True,
            preexec_fn=self._before_exec,  # noqa: PLW1509 - these have no threads
            **popen,
        )
        self._started.append(started)
        return started

    def run(
        self,
        *arguments: str,
        status: int = 0,
        typed: str | None = None,
        command: Sequence[str] = ("run",),
        **popen: Any,
    ) -> str:
        """Run to the end, with *typed* as standard input; the output."""
        if typed is not None:
            popen["stdin"] = subprocess.PIPE
        process = self.start(*arguments, command=command, **popen)
        try:
            out, errors = process.communicate(typed, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == status, (process.returncode, out, errors)
        self.said = str(errors)
        return str(out)

    def refuse(self, *arguments: str, status: int = 125, **more: Any) -> str:
        """Run what must fail before the command runs; the one line that says why."""
        assert self.run(*arguments, status=status, **more) == ""
        assert self.said.startswith("unionfs: ")
        assert self.said.count("\n") == 1, self.said
        return self.said.removeprefix("unionfs: ").rstrip("\n")

    def unionfs(self, *arguments: str, **more: Any) -> str:
        """Run another command of the program; the output."""
        return self.run(*arguments, command=(), **more)

    def snapshots(self) -> list[str]:
        """The keys of all snapshots."""
        lines = self.unionfs("snapshot", "ls").splitlines()[1:]
        return sorted(line.split()[0] for line in lines)

    def containers(self) -> list[str]:
        """The names of the containers that the store keeps something of."""
        names = os.listdir(self.root / "containers")
        return sorted(name for name in names if name != "lock")

    def supervisor(self, name: str) -> int:
        """The process that runs container *name*."""
        return int((self.root / "containers" / name / "pid").read_text())

    def processes(self) -> list[int]:
        """The processes of this store that live, daemons included: all but zombies."""
        found = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                environment = Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue
            if f"UNIONFS_ROOT={self.root}\0".encode() in environment:
                found.append(int(name))
        return found

    def wait_until_gone(self, seconds: float = 10.0) -> None:
        """Wait until no process of this store lives; fail if one stays, or a mount."""
        end = time.monotonic() + seconds
        while left := self.processes():
            assert time.monotonic() < end, [_describe(pid) for pid in left]
            time.sleep(0.02)
        assert str(self.root) not in Path("/proc/self/mountinfo").read_text()

    def end(self) -> None:
        """End what a failed test has left."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait(PATIENCE)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self.wait_until_gone()


def _describe(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        text = "gone"
    return f"{pid}: {text}"


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait until *condition* is true, and return what it returned."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)
    return value
