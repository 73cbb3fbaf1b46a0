"""A process that aborts FUSE connections whose time is up, so that no test can hang on a mount.

It is a process and not a thread: a page fault on a hung mapping keeps the interpreter's lock.
Run as a program it reads `arm MINOR SECONDS` and `disarm MINOR` lines and answers each `disarm`
with `fine` or `fired`. At the end of its input it aborts what is still armed.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path

CONNECTIONS = Path("/sys/fs/fuse/connections")


def connection(minor: int) -> int:
    """What tells this connection from a later one with the same number; 0 if there is none."""
    try:
        return (CONNECTIONS / str(minor)).stat().st_ino
    except OSError:
        return 0


def abort(minor: int) -> None:
    """End the FUSE connection of the mount with device number 0:*minor*, if it still is one."""
    with contextlib.suppress(OSError):  # gone already
        (CONNECTIONS / str(minor) / "abort").write_text("1")


class Watchdog:
    """The test process's end of the conversation."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def arm(self, minor: int, seconds: float) -> None:
        """Abort connection *minor* unless disarmed within *seconds*."""
        self._send(f"arm {minor} {seconds}")

    def disarm(self, minor: int) -> bool:
        """Forget *minor*; whether it had been aborted."""
        self._send(f"disarm {minor}")
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip() == "fired"

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def _watch() -> None:
    armed: dict[int, tuple[float, int]] = {}
    fired: set[int] = set()
    pending = b""
    while True:
        now = time.monotonic()
        for minor in [minor for minor, (end, _) in armed.items() if end <= now]:
            _, meant = armed.pop(minor)
            if connection(minor) == meant:  # else that one has ended, and this is another's
                fired.add(minor)
                abort(minor)
        wait = min(end for end, _ in armed.values()) - now if armed else None
        if not select.select([0], [], [], wait)[0]:
            continue
        chunk = os.read(0, 4096)
        if not chunk:
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            verb, minor_text, *rest = line.split()
            minor = int(minor_text)
            if verb == b"arm":
                armed[minor] = (time.monotonic() + float(rest[0]), connection(minor))
                fired.discard(minor)
            else:
                armed.pop(minor, None)
                os.write(1, b"fired\n" if minor in fired else b"fine\n")
    for minor, (_, meant) in armed.items():
        if connection(minor) == meant:
            abort(minor)


if __name__ == "__main__":
    _watch()
