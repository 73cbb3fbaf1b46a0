"""Which thread reads on which CPU.

Waking a process on another CPU costs more than most requests do, so where a reader runs
decides how long a trip takes. ``spread``: one reader pinned to each CPU that the process
may use, all blocked in a read of the same descriptor. ``off``: one reader, which the
scheduler places.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

MODES = ("auto", "spread", "off")

#: Requests from one look at what comes to the next.
_BLOCK = 16
#: The set of CPUs that the process may use is asked for this often, in seconds, and only
#: when requests come.
_RECHECK = 1.0


class Reader:
    """What a thread that reads requests asks before each read, and tells after it."""

    __slots__ = ("_clients", "_look", "cpu", "notice")

    def __init__(self, look: Callable[[], None], clients: list[int]) -> None:
        #: Where this reader runs; None leaves it to the scheduler.
        self.cpu: int | None = None
        #: There is something to do before the next read.
        self.notice = True
        self._look = look
        self._clients = clients

    def await_turn(self) -> None:
        """Return when this thread may read: at once, unless another reads alone."""
        while self.notice:
            self.notice = False
            self._pin()

    def served(self, client: int) -> None:
        """Take note of a request from the thread *client*, as its header names it."""
        self._clients.append(client)
        if len(self._clients) >= _BLOCK:
            self._look()

    def _pin(self) -> None:
        if self.cpu is not None:
            # The CPU may have left the set just now; the next look sees that.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {self.cpu})


class Placement:
    """The threads that read requests, and where they run."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._clients: list[int] = []
        self._readers: list[Reader] = []
        self._looking = threading.Lock()
        self._allowed: set[int] = set()
        self._checked = time.monotonic()

    def start(self, read_loop: Callable[[Reader], None]) -> list[threading.Thread]:
        """Start the threads; each runs *read_loop* with a reader of its own."""
        self._allowed = os.sched_getaffinity(os.getpid())
        count = 1 if self._mode == "off" else len(self._allowed)
        self._readers = [Reader(self._look, self._clients) for _ in range(count)]
        self._place()
        threads: list[threading.Thread] = []
        for number, reader in enumerate(self._readers):
            thread = threading.Thread(
                target=read_loop, args=(reader,), name=f"reader-{number}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                # The limit on threads; those that are there serve.
                if not threads:
                    raise
                break
            threads.append(thread)
        return threads

    def _look(self) -> None:
        if self._looking.acquire(blocking=False):
            try:
                self._clients.clear()
                self._recheck(time.monotonic())
            finally:
                self._looking.release()

    def _recheck(self, now: float) -> None:
        """Follow what the process may use: its main thread, never pinned by us, tells it."""
        if now - self._checked < _RECHECK:
            return
        self._checked = now
        allowed = os.sched_getaffinity(os.getpid())
        if allowed != self._allowed:
            self._allowed = allowed
            self._place()

    def _place(self) -> None:
        """Give each reader a CPU; it goes there before its next read."""
        if self._mode == "off":
            return
        cpus = sorted(self._allowed)
        for number, reader in enumerate(self._readers):
            reader.cpu = cpus[number % len(cpus)]
            reader.notice = True
