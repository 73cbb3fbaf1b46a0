"""dockerd with its storage driver ``fuse-overlayfs``, which runs the program of that name."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.engines.client import Client
from tests.engines.ground import Ground

#: Seconds until dockerd answers, and until it is gone.
START: Final = 30.0


class Docker(Client):
    """A dockerd in *ground*, and ``docker`` that talks to it.

    *programs* is a directory in front of its PATH, in which its storage driver *driver* finds
    ``fuse-overlayfs``.
    """

    #: Debian's client: others may lie in front of it on the PATH.
    CLIENT: Final = "/usr/bin/docker"

    def __init__(self, ground: Ground, programs: Path, driver: str = "fuse-overlayfs") -> None:
        super().__init__(ground)
        self.home = ground.base / "docker"
        self.home.mkdir()
        self.socket = self.home / "docker.sock"
        self._path = f"{programs}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._driver = driver
        self._daemon: subprocess.Popen[str] | None = None
        self._log = (self.home / "log").open("w")
        self.start()

    def start(self, *options: str) -> None:
        """Start dockerd and wait until it answers."""
        self._daemon = self.ground.start(
            "dockerd",
            f"--data-root={self.home / 'data'}",
            f"--exec-root={self.home / 'exec'}",
            f"--pidfile={self.home / 'pid'}",
            f"--host=unix://{self.socket}",
            f"--storage-driver={self._driver}",
            "--default-ulimit=nofile=20000:20000",
            *options,
            environment={"PATH": self._path, "TMPDIR": str(self.ground.base / "tmp")},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        end = time.monotonic() + START
        while self._ask("version").returncode != 0:
            assert self._daemon.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.1)

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = self.ground.command(
            [self.CLIENT, f"--host=unix://{self.socket}", *arguments],
        )
        return subprocess.run(command, capture_output=True, text=True, timeout=START, check=False)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End dockerd, by default as a shutdown of the machine does."""
        assert self._daemon is not None
        self.ground.run("kill", f"-{number.value}", (self.home / "pid").read_text())
        self._daemon.wait(START)
        self._daemon = None

    def log(self) -> str:
        """All that dockerd has said."""
        return (self.home / "log").read_text()

    def __call__(
        self,
        *arguments: str,
        settings: Mapping[str, str] | None = None,
        **options: Any,
    ) -> str:
        """Run ``docker ARGUMENTS``, with *settings* in its environment; what it wrote.

        *options* are those of `Ground.run`.
        """
        out = self.ground.run(
            self.CLIENT,
            f"--host=unix://{self.socket}",
            *arguments,
            environment={"HOME": str(self.home), "PATH": self._path, **(settings or {})},
            **options,
        )
        return out.removesuffix("\n")

    def clear(self) -> None:
        """Remove all containers; images stay."""
        if containers := self("ps", "--all", "--quiet").split():
            self("rm", "--force", *containers)

    def close(self) -> None:
        """End dockerd, if it runs."""
        if self._daemon is not None and self._daemon.poll() is None:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.stop()
        self._log.close()
