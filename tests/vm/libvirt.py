"""libvirtd of one test's own, and Vagrant with it.

Nothing of either is left at the end, but for directories of libvirt's that were missing, empty.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

#: What is called, and the package that has it.
NEEDS = {
    "vagrant": "vagrant",
    "libvirtd": "libvirt-daemon",
    "virtlogd": "libvirt-daemon",
    "dnsmasq": "dnsmasq-base",
    "virsh": "libvirt-clients",
    "rsync": "rsync",
    "ssh": "openssh-client",
}
_SCRIPT = Path(__file__).parent / "libvirtd"
_SOCKET = "/run/libvirt/libvirt-sock"


def missing() -> list[str]:
    """The packages without which there is no Vagrant with libvirt here."""
    return sorted({package for program, package in NEEDS.items() if shutil.which(program) is None})


class Libvirt:
    """libvirtd in namespaces of its own, which keeps what it has below *directory*."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "home").mkdir()
        self.log = directory / "libvirtd.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "--"),
                    *("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc"),
                    *("--kill-child", str(_SCRIPT), str(directory)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait(lambda: self.run("virsh", "list").returncode == 0)
        except BaseException:
            self.close()
            raise

    def _wait(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    @property
    def _first(self) -> int:
        """Process 1 of the namespaces, as it is seen here."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return int((children.read_text().split() or ["0"])[0])

    def run(
        self,
        *words: str,
        cwd: Path | None = None,
        seconds: float = 60,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program beside libvirtd, with a home of the test's own."""
        return subprocess.run(
            [
                *("nsenter", "-t", str(self._first), "--mount", "--net", "--pid"),
                *(f"--wd={cwd or self.directory}", "--", *words),
            ],
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory / "home"), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )

    def close(self) -> None:
        """End libvirtd and all its machines."""
        self._process.kill()
        self._process.wait()
