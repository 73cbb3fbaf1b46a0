"""Threads for requests that have to wait."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Final

from unionfs.log import Log

log = Log(__name__)

#: Seconds that the end of a mount waits for calls that are under way.
_PATIENCE: Final = 30.0


class Workers:
    """Threads for what waits: as many as are needed and one to spare, kept for the next task.

    A thread gets the CPUs and the scheduling class of the one that starts it. So workers
    are started by the thread that calls ``begin``, and by each other, never by a reader.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = 0
        self._busy = 0
        self._changed = threading.Condition()

    def begin(self) -> None:
        """Start the first worker."""
        with self._changed:
            self._hire()

    def start(self, task: Callable[[], None]) -> None:
        """Run *task* in a thread that does nothing else meanwhile."""
        with self._changed:
            self._busy += 1
        self._tasks.put(task)

    @contextlib.contextmanager
    def another(self) -> Iterator[None]:
        """Count the caller among those that ``finish`` waits for."""
        with self._changed:
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _hire(self) -> None:
        # At the limit on threads the task waits for one of those that are there.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._work, daemon=True).start()
            self._idle += 1

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            with self._changed:
                self._idle -= 1
                if self._idle == 0:
                    self._hire()
            try:
                task()
            except Exception:
                log.exception("a request was lost")
            with self._changed:
                self._busy -= 1
                self._idle += 1
                self._changed.notify_all()

    def finish(self) -> None:
        """Wait until nothing is under way, but not for ever: a layer may have died."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0, _PATIENCE)
