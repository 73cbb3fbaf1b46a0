"""The table behind ``nfs_export=on``: which object of the layers each number was given for.

A client of an NFS server keeps a file's handle for weeks. Of a FUSE file it holds a number and
a generation, nothing else, so what they mean must outlive the daemon. The table lies in a
directory of its own in the workdir, beside ``work/`` and ``index/``: the kernel's overlayfs
empties the one, refuses strange names in the other, and looks at nothing else there.

A row is in the file when the call that made it returns, and so survives a SIGKILL. It is on the
disk after ``sync``: after a power failure rows that came later may be missing, the rest is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from typing import Any, Final, NamedTuple

from unionfs.errors import LayerError

#: The directory in the workdir, and the file in it.
DIRECTORY: Final = b"nfs_export"
_FILE: Final = b"handles.sqlite"
_APPLICATION: Final = 0x756E6668  # "unfh"
_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE objects (
    number INTEGER PRIMARY KEY,
    handle BLOB NOT NULL UNIQUE,
    parent INTEGER,
    name BLOB,
    next_parent INTEGER,
    next_name BLOB,
    linked BLOB
) STRICT;
CREATE TABLE mounts (count INTEGER NOT NULL) STRICT;
INSERT INTO mounts VALUES (0)
"""
#: Seconds to wait for a daemon that is ending.
_PATIENCE: Final = 1.0


class Row(NamedTuple):
    """What is known of the object that has *number*.

    *handle* (of ``layer.handles``) is its own, or of the lower object that it was copied from.
    It was last seen as *name* in the directory *parent*, and is at *next_name* in
    *next_parent* if a rename was cut short. *linked* is the own handle of an upper object of
    several names, which may live under names that nobody asked for.
    """

    number: int
    handle: bytes
    parent: int | None
    name: bytes | None
    next_parent: int | None
    next_name: bytes | None
    linked: bytes | None


class HandleTable:
    """The rows of one union. Raises ``OSError`` where the disk does."""

    def __init__(self, workdir: bytes, *, volatile: bool) -> None:
        """Open the table in *workdir*, or make it. Raises ``LayerError``."""
        self.path = os.path.join(os.path.realpath(workdir), DIRECTORY, _FILE)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(self.path), 0o700)
            self._connection = sqlite3.connect(
                self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise LayerError("workdir", self.path, str(error)) from error
        try:
            self._prepare("OFF" if volatile else "NORMAL")
        except sqlite3.Error as error:
            self._connection.close()
            raise LayerError("workdir", self.path, _reason(error)) from error
        except LayerError:
            self._connection.close()
            raise

    def _prepare(self, synchronous: str) -> None:
        run = self._connection.execute
        # One daemon has it for as long as it serves, so the log needs no shared memory.
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("BEGIN EXCLUSIVE")
        ((version,),) = run("PRAGMA user_version")
        ((application,),) = run("PRAGMA application_id")
        if (application, version) not in ((0, 0), (_APPLICATION, _VERSION)):
            reason = f"version {version}, made by another program or a newer one"
            raise LayerError("workdir", self.path, reason)
        if version == 0:
            for statement in _SCHEMA.split(";"):
                run(statement)
            run(f"PRAGMA application_id = {_APPLICATION}")
            run(f"PRAGMA user_version = {_VERSION}")
        run("UPDATE mounts SET count = count + 1")
        run("COMMIT")
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA synchronous = {synchronous}")
        ((self.mounts,),) = run("SELECT count FROM mounts")
        #: How many changes are on the disk; at first one is not known to be.
        self._synced = -1

    def _run(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, parameters)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
            code = errno.ENOSPC if full else errno.EIO
            raise OSError(code, f"{os.strerror(code)} ({error})", self.path) from error

    def of_handle(self, handle: bytes) -> Row | None:
        """Return the row of the object that has *handle*."""
        found = self._run("SELECT * FROM objects WHERE handle = ?", handle).fetchone()
        return None if found is None else Row(*found)

    def of_number(self, number: int) -> Row | None:
        """Return the row of the object that was given *number*."""
        found = self._run("SELECT * FROM objects WHERE number = ?", number).fetchone()
        return None if found is None else Row(*found)

    def add(
        self, number: int, handle: bytes, parent: int, name: bytes, linked: bytes | None
    ) -> bool:
        """Write a new row; false, and nothing written, where *number* or *handle* has one."""
        statement = (
            "INSERT INTO objects (number, handle, parent, name, linked) VALUES (?, ?, ?, ?, ?)"
        )
        try:
            self._run(statement, number, handle, parent, name, linked)
        except sqlite3.IntegrityError:
            return False
        return True

    def renumber(self, number: int, new: int) -> None:
        """Give the object that had *number* a new one."""
        self._run("UPDATE objects SET number = ? WHERE number = ?", new, number)

    def set_name(self, number: int, parent: int | None, name: bytes | None) -> None:
        """Record the name that an object has now, ``None`` where none is known."""
        statement = (
            "UPDATE objects SET parent = ?, name = ?, next_parent = NULL, next_name = NULL"
            " WHERE number = ?"
        )
        self._run(statement, parent, name, number)

    def set_next_name(self, number: int, parent: int, name: bytes) -> None:
        """Record the name that an object is about to have."""
        statement = "UPDATE objects SET next_parent = ?, next_name = ? WHERE number = ?"
        self._run(statement, parent, name, number)

    def set_linked(self, number: int, own: bytes) -> None:
        """Record the own handle of an upper object that has several names."""
        self._run("UPDATE objects SET linked = ? WHERE number = ?", own, number)

    def remove(self, number: int) -> None:
        """Forget an object that is gone."""
        self._run("DELETE FROM objects WHERE number = ?", number)

    def begin(self) -> None:
        """Keep what is recorded from here on for ``commit``."""
        if not self._connection.in_transaction:
            self._run("BEGIN")

    def commit(self) -> None:
        """Write what was recorded since ``begin``."""
        if self._connection.in_transaction:
            self._run("COMMIT")

    def sync(self) -> None:
        """Bring all rows to the disk. Waits for it, if any is new."""
        changes = self._connection.total_changes
        if changes == self._synced:
            return
        # Rows are in SQLite's log until it copies them to the table, which it syncs itself.
        with contextlib.suppress(FileNotFoundError):
            log = os.open(self.path + b"-wal", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(log)
            finally:
                os.close(log)
        self._synced = changes

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _reason(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
        return "in use by another mount; unmount that one, or give another directory"
    if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
        return f"{error}; without it the handles that NFS clients hold are void: remove it if so"
    return str(error)
