"""``unionfs plugin`` as a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.mounts import REPOSITORY

#: Seconds until it answers, and until it is gone.
PATIENCE: Final = 20.0
_STUB: Final = "import sys; sys.argv[0] = 'unionfs'; from unionfs.cli import program; program()"


class PluginProcess:
    """A plugin that is started with *arguments*, and is ready when this returns.

    *patch* is Python that runs in it first, *log* the file that has what it says.
    """

    def __init__(self, log: Path, *arguments: str, patch: str = "", **popen: Any) -> None:
        # Its address is abstract, and one that the kernel has chosen.
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind("")
        self._notified.settimeout(PATIENCE)
        address = self._notified.getsockname()[1:].decode()
        with log.open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"{patch}\n{_STUB}", "plugin", *arguments],
                env={
                    **os.environ,
                    "PYTHONPATH": str(REPOSITORY),
                    "NOTIFY_SOCKET": f"@{address}",
                    **popen.pop("env", {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **popen,
            )
        self.log = log
        try:
            assert self.told() == "READY=1", log.read_text()
        except BaseException:
            self.kill()  # nobody else knows it
            raise

    def told(self) -> str:
        """The next that it tells systemd."""
        return self._notified.recv(64).decode()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it by a signal, and return its status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end, and return its status."""
        try:
            return self.process.wait(PATIENCE)
        finally:
            self._notified.close()

    def kill(self) -> None:
        """Kill it, and the processes of its connections; daemons of mounts are none of these."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()


def refused(*arguments: str, patch: str = "") -> str:
    """Start a plugin that cannot start; what it says."""
    done = subprocess.run(
        [sys.executable, "-c", f"{patch}\n{_STUB}", "plugin", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("unionfs: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("unionfs: ").removesuffix("\n")
