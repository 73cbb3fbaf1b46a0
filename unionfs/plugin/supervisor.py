"""What a plugin hears from whoever started it, and says to him: signals, and sd_notify(3)."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import MutableMapping
from types import FrameType
from typing import Any, Final, Self

from unionfs.log import Log

#: Each of them asks the plugin to end, which then has the exit status 0.
ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = Log("unionfs.plugin")


class Supervisor:
    """Told by a signal, to the main thread, that the plugin is to end; a context.

    *environment* is rid of the address for sd_notify(3), which is not for our children.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before: dict[signal.Signals, Any] = {}
        self._woken = -1

    def __enter__(self) -> Self:
        for number in ENDING:
            # Who has it ignored, as nohup(1), has it ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, _told)
        # Told by whichever thread the signal comes to, and though it comes just before the main
        # thread waits: Python's own handlers run when that does something again.
        self._woken = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_raised: object) -> None:
        signal.set_wakeup_fd(self._woken)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """Return a descriptor that can be read from as soon as the plugin is to end."""
        return self._reader

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, at most *timeout* seconds, and say whether the plugin is to end."""
        return bool(select.select([self._reader], [], [], timeout)[0])

    def ready(self) -> None:
        """Say that the plugin answers now: ``Type=notify`` of systemd.service(5)."""
        self._notify("READY=1")

    def stopping(self) -> None:
        """Say that the plugin has begun to end."""
        self._notify("STOPPING=1")

    def _notify(self, state: str) -> None:
        if not self._address:
            return
        # An at sign stands for the null byte of an abstract address.
        address = self._address
        address = f"\0{address[1:]}" if address.startswith("@") else address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.connect(address)
                channel.sendall(state.encode())
        except OSError as error:
            log.warning("%s: could not be told %s: %s", self._address, state, error.strerror)


def _told(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the signal's number is in the pipe, and without a handler it would end us."""
