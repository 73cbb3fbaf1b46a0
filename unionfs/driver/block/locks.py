"""A lock for each number, among all threads and processes: one byte of a file each.

A lock goes with its process, whatever ends that (open file description locks, fcntl(2)).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from unionfs.filelocks import lock_byte


class Locks:
    """The locks in the file *path*."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._held = threading.local()

    @contextlib.contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Keep others from *number*. A thread may nest it."""
        if self.holds(number):
            yield
            return
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            lock_byte(fd, number)
            self._held.numbers.add(number)
            yield
        finally:
            self._held.numbers.discard(number)
            os.close(fd)

    def holds(self, number: int) -> bool:
        """Say whether this thread holds *number*."""
        held: set[int] = self._held.__dict__.setdefault("numbers", set())
        return number in held
