"""A system mounted over the lowers of a ground, and gone again whatever happens."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests import system
from tests.bench.arena import Ground, Missing, run
from tests.bench.systems import System
from tests.mounts import GRACE, REPOSITORY, device_minor
from tests.ordinary import USER
from tests.watchdog import Watchdog, abort

#: No language and no configuration of the one who measures.
SAME_FOR_ALL = {"LC_ALL": "C", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}

#: What the installed `unionfs` runs: `python -m` would have more to import.
_PROGRAM = "from unionfs.cli import program; program()"

#: What a page of mount(2) can hold.
KERNEL_LIMIT = 4095


@dataclass(frozen=True)
class Launch:
    """How processes are started: as whom, on which CPU, with which Python."""

    python: str
    environment: dict[str, str]
    cpu: int | None = None
    user: bool = False

    def prepare(self) -> None:
        """For a child between fork and exec."""
        if self.cpu is not None:
            os.sched_setaffinity(0, {self.cpu})
        if self.user:
            os.setgroups([])
            os.setgid(USER)
            os.setuid(USER)
        system.die_with_parent()

    def start(self, command: list[str], **more: object) -> subprocess.Popen[str]:
        """Start *command* so."""
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            command,
            preexec_fn=self.prepare,  # noqa: PLW1509 - this process has no threads
            text=True,
            # Ctrl-C is for the benchmark, which ends them in good order.
            **{
                "stdin": subprocess.DEVNULL,
                "env": self.environment,
                "process_group": 0,
                **more,
            },
        )

    @property
    def project(self) -> str:
        """Where the project lies for them."""
        return self.environment["PYTHONPATH"].partition(":")[0]

    def own_command(self) -> list[str]:
        return [self.python, "-c", _PROGRAM, "mount"]


@dataclass
class Union:
    """One mounted system in the directory *place* of a ground (`r/0`, `r/1`, …)."""

    system: System
    ground: Ground
    launch: Launch
    watchdog: Watchdog
    place: str = "r/0"
    writable: bool = True
    copies: bool = False
    """Plain ext4: work on a copy."""
    seconds: float = 120.0
    daemon: subprocess.Popen[str] | None = None
    minor: int | None = None
    _log: Path | None = field(default=None)

    @property
    def root(self) -> Path:
        return self.ground.root / self.place / "merged"

    def make(self) -> None:
        """Make the directories anew."""
        base = self.ground.root / self.place
        if base.exists():
            run("rm", "-rf", str(base))
        for name in ("upper", "work", "merged"):
            (base / name).mkdir(parents=True)
        if self.launch.user:
            run("chown", "-R", f"{USER}:{USER}", str(base))
        for path in (base, base.parent):
            path.chmod(0o755)
        if self.system.kind == "bind" and self.copies:
            for lower in reversed(self.ground.lowers):
                source = self.ground.root / lower
                run("cp", "-a", "--reflink=auto", f"{source}/.", str(base / "upper"))

    def arguments(self, extra: str = "") -> list[str]:
        """Layers and options, and the target, relative to the ground."""
        upper = f"{self.place}/upper" if self.writable else None
        work, lowers = f"{self.place}/work", list(self.ground.lowers)
        if not self.system.takes_overlay_options:
            extra = ""
        layers = self.system.layers(lowers, upper, work, extra)
        return [*layers, f"{self.place}/merged"]

    def command(self, extra: str = "", *, foreground: bool = True) -> list[str]:
        """The command line of a FUSE system."""
        program = self.launch.own_command() if self.system.is_ours else [self.system.program]
        return [*program, *(["-f"] if foreground else []), *self.arguments(extra)]

    def mount(self, extra: str = "") -> None:
        """Mount, and wait for the first answer."""
        if self.system.kind == "bind":
            source = self.ground.root / self.place / "upper"
            lower = self.ground.root / self.ground.lowers[-1]
            system.mount(source if self.copies else lower, self.root, None, system.MS_BIND)
        elif self.system.kind == "kernel":
            self._mount_kernel(extra)
        else:
            self._start(extra)

    def _mount_kernel(self, extra: str) -> None:
        data = self.arguments(extra)[1]
        if len(data) > KERNEL_LIMIT:
            raise Missing("more options than mount(2) takes")
        before = os.getcwd()
        os.chdir(self.ground.root)
        try:
            system.mount("overlay", self.root, "overlay", 0, data)
        finally:
            os.chdir(before)

    def _start(self, extra: str) -> None:
        with tempfile.NamedTemporaryFile(delete=False, prefix="unionfs-bench-log") as log:
            self._log = Path(log.name)
            self.daemon = self.launch.start(
                self.command(extra),
                cwd=self.ground.root,
                stdout=log,
                stderr=log,
                # As every daemon is that goes to the background by itself.
                process_group=None,
                start_new_session=True,
            )
        end = time.monotonic() + 20.0
        while self.minor is None:
            if self.daemon.poll() is not None or time.monotonic() > end:
                raise OSError(f"{self.system.name} did not mount: {self._said()}")
            time.sleep(0.002)
            self.minor = device_minor(self.root)
        self.watch()
        self.stat_root()

    def watch(self) -> None:
        """Put the connection under the watchdog."""
        if self.minor is not None:
            self.watchdog.arm(self.minor, self.seconds)

    def stat_root(self) -> None:
        """Answered once the daemon serves; as its user, since root may be refused."""
        if self.launch.user:
            root = str(self.root)
            system.in_child(lambda: os.stat(root).st_size, uid=USER, gid=USER)
        else:
            os.stat(self.root)

    def pid(self) -> int:
        """The daemon's."""
        assert self.daemon is not None
        return self.daemon.pid

    def forget_background(self) -> None:
        """Unmount what a command has mounted whose daemon is not our child."""
        self.minor = device_minor(self.root)
        if self.minor is not None:
            self.watch()
            self.unmount()
            time.sleep(0.2)  # its end is not to run into the next measurement

    def _said(self) -> str:
        if self._log is None:
            return ""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "without a word"

    def unmount(self) -> None:
        """Unmount and wait for the daemon's end. Raises when the watchdog had to help."""
        fired = False
        try:
            if self.daemon is not None and self.minor is None:
                self.daemon.kill()  # interrupted before it was seen to be mounted
            self._unmount_patiently()
            if self.daemon is not None:
                self.daemon.wait(GRACE)
        except subprocess.TimeoutExpired:
            pass  # killed below: unionfs-fuse ends only with its last file
        finally:
            fired = self._end()
        if fired:
            raise TimeoutError(f"aborted after {self.seconds:.0f} s")

    def _unmount_patiently(self) -> None:
        end = time.monotonic() + 5.0
        while os.path.ismount(self.root) if self.minor is None else device_minor(self.root):
            try:
                system.umount(self.root)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _end(self) -> bool:
        fired = False
        if self.daemon is not None:
            if self.daemon.poll() is None:
                if self.minor is not None:
                    abort(self.minor)
                self.daemon.kill()
            self.daemon.wait(GRACE)
        if self.minor is not None:
            fired = self.watchdog.disarm(self.minor)
        while device_minor(self.root) is not None:
            with contextlib.suppress(OSError):
                system.umount(self.root, system.MNT_DETACH)
        if self._log is not None:
            self._log.unlink(missing_ok=True)
        self.daemon = self.minor = self._log = None
        return fired


def environment() -> dict[str, str]:
    """For processes of root."""
    return {**os.environ, **SAME_FOR_ALL, "PYTHONPATH": str(REPOSITORY)}
