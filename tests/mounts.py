"""Layers on disk and what is mounted over them: ours, the kernel's overlayfs, fuse-overlayfs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from tests import system, tree
from tests.watchdog import Watchdog, abort

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPOSITORY = Path(__file__).resolve().parent.parent

#: How the kernel mounts the oracle.
KERNEL_OPTIONS = "redirect_dir=on,index=on,xino=on"

#: The end of a daemon after its unmount, in seconds.
GRACE = 5.0


class Layers:
    """The directories of one union below *base*; `lowers` is topmost first.

    They are made, unless they are *there* already.
    """

    def __init__(self, base: Path, lowers: int = 2, *, there: bool = False) -> None:
        self.base = base
        self.upper: Path | None = base / "upper"
        self.work: Path | None = base / "work"
        self.merged = base / "merged"
        self.lowers = [base / f"lower{index + 1}" for index in range(lowers)]
        self._lowers_before: dict[Path, tree.Tree] = {}
        self.lower_may_change = False
        for directory in (*self.lowers, base / "upper", base / "work", self.merged):
            directory.mkdir(parents=True, exist_ok=there)

    def options(self, *extra: str) -> str:
        """The `-o` string that all three filesystems understand."""
        parts = ["lowerdir=" + ":".join(str(lower) for lower in self.lowers)]
        if self.upper is not None and self.work is not None:
            parts += [f"upperdir={self.upper}", f"workdir={self.work}"]
        return ",".join([*parts, *(option for option in extra if option)])

    def remember_lowers(self) -> None:
        """Take down what the lowers hold, once, before the first mount."""
        for lower in self.lowers:
            if lower not in self._lowers_before:
                self._lowers_before[lower] = tree.snapshot(lower, ctime=True)

    def check_lowers(self) -> None:
        """Fail unless every lower is byte for byte, and to its change times, what it was."""
        if self.lower_may_change:
            return
        for lower, before in self._lowers_before.items():
            tree.assert_same(before, tree.snapshot(lower, ctime=True))

    def check_work(self) -> None:
        """Fail unless the workdir is as the kernel would leave it."""
        if self.work is None:
            return
        assert set(os.listdir(self.work)) <= {"work", "index", "nfs_export"}, (
            "strange names in the workdir"
        )
        inner = self.work / "work"
        left = os.listdir(inner) if inner.exists() else []
        assert left in ([], ["incompat"]), f"left in {inner}: {left}"


class Mounted(Protocol):
    """A mounted union, whoever serves it."""

    root: Path
    layers: Layers

    def unmount(self) -> None: ...

    def abandon(self) -> None: ...


def unmount_patiently(target: Path, patience: float = 5.0) -> None:
    """umount(2), waiting while something still closes its files."""
    end = time.monotonic() + patience
    while True:
        try:
            return system.umount(target)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
            time.sleep(0.02)


def _mountinfo(pid: str = "self") -> list[list[str]]:
    text = Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape")
    return [line.split() for line in text.splitlines()]


def mounted_below(path: Path) -> list[str]:
    """The mount points at and below *path*, in the order of mounting."""
    names = [fields[4].encode().decode("unicode_escape") for fields in _mountinfo()]
    return [name for name in names if name == str(path) or name.startswith(f"{path}/")]


def device_minor(target: Path, pid: str = "self") -> int | None:
    """The minor device number of the topmost FUSE mount at *target*, None if there is none."""
    wanted = str(target).replace("\\", "\\134").replace(" ", "\\040")
    found = None
    for fields in _mountinfo(pid):
        if fields[4] == wanted and fields[fields.index("-") + 1].startswith("fuse"):
            found = int(fields[2].split(":")[1])
    return found


class KernelMount:
    """The kernel's overlayfs over *layers*."""

    def __init__(self, layers: Layers, options: str = KERNEL_OPTIONS) -> None:
        self.layers = layers
        self.root = layers.merged
        layers.remember_lowers()
        system.mount("overlay", self.root, "overlay", 0, layers.options(options))
        self.ended = False

    def unmount(self) -> None:
        """Unmount, unless that was done, and check that the lowers are untouched."""
        if self.ended:
            return
        self.ended = True
        unmount_patiently(self.root)
        self.layers.check_lowers()

    def abandon(self) -> None:
        """Unmount without checks, files open or not."""
        if not self.ended:
            self.ended = True
            system.umount(self.root, system.MNT_DETACH)


class _Daemon:
    """A FUSE daemon in the foreground, its log in a file, its connection under the watchdog."""

    def __init__(
        self,
        layers: Layers,
        command: Sequence[str],
        watchdog: Watchdog,
        *,
        seconds: float = 60.0,
        before_exec: Callable[[], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.layers = layers
        self.root = layers.merged
        self.log = ""
        self.ended = False
        self._watchdog = watchdog
        self._log_file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long
        layers.remember_lowers()

        def prepare() -> None:
            system.die_with_parent()
            if before_exec is not None:
                before_exec()

        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log_file,
            stderr=self._log_file,
            preexec_fn=prepare,  # noqa: PLW1509 - this process has no threads
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
        )
        self.minor = self._wait_until_mounted()
        watchdog.arm(self.minor, seconds)
        system.attempt(os.stat, self.root)  # answered once the daemon serves

    def _wait_until_mounted(self) -> int:
        end = time.monotonic() + 20.0
        while time.monotonic() < end:
            minor = device_minor(self.root)
            if minor is not None:
                return minor
            if self.process.poll() is not None:
                code = self._finish()
                raise AssertionError(f"daemon ended with {code} before mounting:\n{self.log}")
            time.sleep(0.005)
        self.process.kill()
        self._finish()
        raise AssertionError(f"nothing mounted in time:\n{self.log}")

    def _finish(self) -> int:
        code = self.process.wait()
        self.ended = True
        self._log_file.seek(0)
        self.log = self._log_file.read().decode(errors="replace")
        self._log_file.close()
        return code

    def end(self) -> int:
        """Unmount and wait for the daemon; its exit code. Nothing stays behind in any case."""
        try:
            if self.process.poll() is None:
                unmount_patiently(self.root)
            self.process.wait(GRACE)
        finally:
            if self.process.poll() is None:
                abort(self.minor)
                self.process.kill()
            if device_minor(self.root) is not None:
                system.umount(self.root, system.MNT_DETACH)
            fired = self._watchdog.disarm(self.minor)
            code = self._finish()
        assert not fired, f"the watchdog had to abort the mount; log:\n{self.log}"
        return code

    def abandon(self) -> None:
        """Unmount without checks, files open or not."""
        if not self.ended:
            abort(self.minor)
            self.kill()

    def kill(self) -> None:
        """SIGKILL the daemon and clear away its dead mount."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.bury()

    def bury(self) -> None:
        """Clear away the mount of a daemon that is dying by itself."""
        self.process.wait(GRACE)
        self._watchdog.disarm(self.minor)
        if device_minor(self.root) is not None:
            system.umount(self.root, system.MNT_DETACH)
        self._finish()


#: What libfuse says when unmounting finds it reading a request that nobody waits for (a
#: RELEASE, say): fuse_dev_do_read answers ECONNABORTED then, not ENODEV.
_ABORTED = "fuse: reading device: Software caused connection abort"


class UnionMount(_Daemon):
    """Our own daemon, started by the command as a user would."""

    def __init__(
        self,
        layers: Layers,
        watchdog: Watchdog,
        options: str = "",
        *,
        seconds: float = 60.0,
        python: str = sys.executable,
        program: Sequence[str] = ("-m", "unionfs"),
        before_exec: Callable[[], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.expected_log = self.allowed_log = ""
        command = [python, *program, "mount", "-f", "-o", layers.options(options)]
        super().__init__(
            layers,
            [*command, str(layers.merged)],
            watchdog,
            seconds=seconds,
            before_exec=before_exec,
            environment=environment,
        )

    def expect_log(self, text: str) -> None:
        """Demand that the daemon logs lines that contain *text*, and only those."""
        self.expected_log = self.allowed_log = text

    def allow_log(self, text: str) -> None:
        """Let the daemon log lines that contain *text*, and only those."""
        self.allowed_log = text

    def unmount(self) -> None:
        """Unmount, unless that was done, and check what must be so after every test."""
        if self.ended:
            return
        code = self.end()
        strange = [
            line
            for line in self.log.splitlines()
            if _ABORTED not in line and (not self.allowed_log or self.allowed_log not in line)
        ]
        assert not strange, "the daemon logged:\n" + "\n".join(strange)
        assert self.expected_log in self.log, f"not logged: {self.expected_log}"
        assert code == 0, f"the daemon ended with {code}"
        self.layers.check_work()
        self.layers.check_lowers()


class FuseOverlayfsMount(_Daemon):
    """The peer that engines use, from the distribution."""

    def __init__(self, layers: Layers, watchdog: Watchdog, options: str = "") -> None:
        command = ["fuse-overlayfs", "-f", "-o", layers.options(options), str(layers.merged)]
        super().__init__(layers, command, watchdog)

    def unmount(self) -> None:
        """Unmount, unless that was done, and check that the lowers are untouched."""
        if self.ended:
            return
        code = self.end()
        assert code == 0, f"fuse-overlayfs ended with {code}: {self.log}"
        self.layers.check_lowers()
