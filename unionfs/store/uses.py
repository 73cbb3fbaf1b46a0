"""Who uses what of a store: snapshots and volumes, each by whom and where.

A use is written before its mount is made and taken back after the mount is gone, so that
one that is there is always known. One that is written may be dead: its process was killed,
the machine restarted. Those are found out when somebody looks, and forgotten.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final, NamedTuple

from unionfs import registry
from unionfs.database import Database
from unionfs.fuse import mounting

_BOOT: Final = "/proc/sys/kernel/random/boot_id"
_SELECT: Final = (
    "SELECT id, kind, driver, name, holder, target, since, boot, mount_namespace, pid_namespace,"
    " pid, start_time FROM uses"
)


class Subject(NamedTuple):
    """What is used."""

    kind: str
    """``snapshot`` or ``volume``."""
    driver: str
    name: str


class Use(NamedTuple):
    """One use of one subject."""

    id: int
    subject: Subject
    holder: str
    """By whom, as users know it: a path, the name of a container, an engine's id."""
    target: str
    """The directory where it is mounted; empty for one that lasts until it is taken back."""
    since: int
    """In nanoseconds since 1970."""
    boot: str
    mount_namespace: int
    pid_namespace: int
    pid: int | None
    """The process that the use ends with, ``None`` for one that ends with its mount."""
    start_time: int | None


class Uses:
    """The uses that are written in a store's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, subject: Subject, holder: str, target: str, pid: int | None = None) -> int:
        """Write down a use; return its number.

        It lasts until it is removed, and dies with the process *pid* or, without one, with
        what is mounted on *target*, an absolute path. With neither it dies with the boot.
        """
        start_time = None if pid is None else registry.start_time(pid)
        with self._database.write():
            added = self._database.run(
                "INSERT INTO uses (kind, driver, name, holder, target, since, boot,"
                " mount_namespace, pid_namespace, pid, start_time)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *subject,
                    holder,
                    target,
                    time.time_ns(),
                    _boot(),
                    registry.namespace("mnt"),
                    registry.namespace("pid"),
                    pid,
                    start_time,
                ),
            )
        assert added.lastrowid is not None
        return added.lastrowid

    def outlive(self, number: int) -> None:
        """Let the use *number* no longer die with a process, now that its mount is there."""
        with self._database.write():
            self._database.run(
                "UPDATE uses SET pid = NULL, start_time = NULL WHERE id = ?", (number,)
            )

    def remove(self, number: int) -> None:
        """Forget the use *number*."""
        with self._database.write():
            self._database.run("DELETE FROM uses WHERE id = ?", (number,))

    def of(self, subject: Subject) -> list[Use]:
        """Return the living uses of *subject*, the oldest first."""
        return self._living(
            _SELECT + " WHERE kind = ? AND driver = ? AND name = ? ORDER BY id", subject
        )

    def on(self, target: str) -> list[Use]:
        """Return the living uses that see *target* as we do as their place, the newest last."""
        here = registry.namespace("mnt")
        found = self._living(_SELECT + " WHERE target = ? ORDER BY id", (target,))
        return [use for use in found if use.mount_namespace == here]

    def all(self) -> list[Use]:
        """Return all living uses."""
        return self._living(_SELECT + " ORDER BY id", ())

    def forget_dead(self) -> None:
        """Forget the uses that are over, as far as that can be seen from here."""
        self.all()

    def _living(self, query: str, parameters: tuple[str, ...]) -> list[Use]:
        while True:
            found = [_use(row) for row in self._database.rows(query, parameters)]
            if not found:
                return []
            targets = {os.fsdecode(entry.target) for entry in mounting.mounts()}
            living = [use for use in found if _lives(use, targets)]
            # One that was changed while we looked is none that we know to be dead: look again.
            if all(self._forget(dead) for dead in set(found) - set(living)):
                return living

    def _forget(self, use: Use) -> bool:
        """Forget *use*; say whether it was still what it says."""
        with self._database.write():
            done = self._database.run(
                "DELETE FROM uses WHERE id = ? AND pid IS ?", (use.id, use.pid)
            )
        return done.rowcount > 0


def _use(row: tuple[Any, ...]) -> Use:
    number, kind, driver, name, *rest = row
    return Use(number, Subject(kind, driver, name), *rest)


def _lives(use: Use, targets: set[str]) -> bool:
    if use.boot != _boot():
        return False
    if use.pid is not None:
        if use.pid_namespace != registry.namespace("pid"):
            return True
        # One that had ended before it was written down has no time.
        return use.start_time is not None and registry.start_time(use.pid) == use.start_time
    # What is mounted in another namespace we cannot see.
    elsewhere = use.mount_namespace != registry.namespace("mnt")
    return not use.target or elsewhere or use.target in targets


def _boot() -> str:
    with open(_BOOT, encoding="ascii") as file:
        return file.read().strip()
