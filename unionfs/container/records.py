"""What a store keeps of containers: ``ROOT/containers/NAME``, one directory for each.

Whoever runs one holds its lock, so that one whose lock is free has ended, or was
killed: `take_dead` finds those, and whoever finds one cleans up after it. ``log`` is the
output of a detached one, which stays as long as its snapshot does, ``driver`` says which driver
keeps that, ``pid`` is the process to send signals to, and the rest are the files that the
command sees in /etc.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from typing import Final

from unionfs.errors import AlreadyExistsError

_LOCK: Final = "lock"
_PID: Final = "pid"
_DRIVER: Final = "driver"
_VOLUMES: Final = "volumes"
_LOG: Final = "log"
_ROOT: Final = "root"
_CONTAINERS: Final = "containers"


class Record:
    """The directory of one container, locked by this process."""

    def __init__(self, store_root: str, name: str, lock: int) -> None:
        self.name = name
        self.directory = os.path.join(store_root, _CONTAINERS, name)
        self._store_root = store_root
        self._lock = lock

    @property
    def root(self) -> str:
        """Where the root file system is mounted, in the container's own mount namespace."""
        return os.path.join(self.directory, _ROOT)

    @property
    def log(self) -> str:
        """The file for the output of a detached container."""
        return os.path.join(self.directory, _LOG)

    def write(self, name: str, text: str) -> str:
        """Write a file into the directory and return its path."""
        path = os.path.join(self.directory, name)
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
        return path

    def _read(self, name: str) -> str:
        """Return the text of a file in the directory, empty where there is none."""
        try:
            with open(os.path.join(self.directory, name), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    @property
    def volumes(self) -> list[str]:
        """The names of the volumes that it uses."""
        return self._read(_VOLUMES).split()

    @property
    def driver(self) -> str:
        """The name of the driver that keeps its snapshot; empty if it never came so far."""
        return self._read(_DRIVER)

    def begin(self, *, driver: str, volumes: Iterable[str]) -> None:
        """Write down which process runs the container, and what it uses."""
        # First: whose snapshot may go must be known before it may go.
        self.write(_DRIVER, driver)
        os.mkdir(self.root, 0o755)
        self.write(_VOLUMES, "\n".join(volumes))
        self.write(_PID, f"{os.getpid()}\n")

    def end(self, *, keep_log: bool) -> None:
        """Remove what is of no use when the container has ended: all but a log that is kept."""
        with _alone(self._store_root):
            if not (keep_log and os.path.exists(self.log)):
                shutil.rmtree(self.directory)
                return
            for name in os.listdir(self.directory):
                if name not in (_LOG, _LOCK, _DRIVER):
                    path = os.path.join(self.directory, name)
                    os.rmdir(path) if name == _ROOT else os.unlink(path)

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._lock)


def claim(store_root: str, name: str) -> Record:
    """Make the directory of container *name*, and lock it. Raises `AlreadyExistsError`."""
    with _alone(store_root) as containers:
        directory = os.path.join(containers, name)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o711)
        lock = _locked(directory)
        if lock is None:
            raise AlreadyExistsError(f"{name}: a container of this name is running")
        return Record(store_root, name, lock)


def take_dead(store_root: str) -> Iterator[Record]:
    """Yield the containers that nobody runs, each locked until the next is asked for."""
    with _alone(store_root) as containers:
        names = sorted(name for name in os.listdir(containers) if name != _LOCK)
        locks = [_locked(os.path.join(containers, name)) for name in names]
    found = zip(names, locks, strict=True)
    records = [Record(store_root, name, lock) for name, lock in found if lock is not None]
    try:
        yield from records
    finally:
        for record in records:
            record.close()


@contextlib.contextmanager
def _alone(store_root: str) -> Iterator[str]:
    """Keep others from making or taking containers meanwhile; yields their directory."""
    containers = os.path.join(store_root, _CONTAINERS)
    with contextlib.suppress(FileExistsError):
        os.mkdir(containers, 0o711)
    lock = os.open(os.path.join(containers, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield containers
    finally:
        os.close(lock)


def _locked(directory: str) -> int | None:
    """Return the lock of the container in *directory*, ``None`` while somebody runs it."""
    try:
        lock = os.open(os.path.join(directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        return None  # something of somebody else's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
