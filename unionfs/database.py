"""One SQLite file, used by many threads and processes, one transaction for each change.

Write-ahead logging lets readers go on beside the one writer, and a commit is on the disk before
it returns. The version of the schema stands in the file: an older one is brought up to
date, a newer one is refused and left untouched.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

from unionfs.errors import FailedPreconditionError, FaultyError, StoreError, UnsupportedError
from unionfs.reserve import Reserve

#: Seconds to wait for another process's transaction.
_PATIENCE: Final = 60.0
#: Pages after which the log begins anew: where it does not grow, to bring it to the disk takes
#: a quarter of the time, since no change of its size goes with it.
_LOG_PAGES: Final = 64


class Database:
    """One connection to a SQLite file, shared by the threads of a process.

    *migrations* are the scripts that make each version of the schema out of the one before.
    """

    def __init__(self, path: str, application: int, migrations: Sequence[str]) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._reserve = Reserve(f"{path}-reserve")
        if self._reserve.is_needed():
            self._reserve.give_up()
        try:
            # Autocommit: transactions begin and end where we say so.
            self._connection = sqlite3.connect(
                path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            self._open(application, migrations)
        except sqlite3.OperationalError as error:
            self.close()
            raise self._explained(error) from error
        except sqlite3.Error as error:
            self.close()
            raise UnsupportedError(f"{path}: {error}") from error
        except StoreError:
            self.close()
            raise

    def _open(self, application: int, migrations: Sequence[str]) -> None:
        """Bring the schema up to date; a database that is not ours, or newer, stays untouched."""
        version = self._checked_version(application, len(migrations))
        mode = self._journal_mode()
        if self._pragma(f"journal_mode = {mode}") != mode:
            raise UnsupportedError(
                f"{self._path}: SQLite has no write-ahead log on this file system; choose"
                " a local one with --root"
            )
        self._pragma("synchronous = FULL")
        self._pragma("foreign_keys = ON")
        self._pragma(f"wal_autocheckpoint = {_LOG_PAGES}")
        if version < len(migrations):
            with self.write():
                # Another process may have been first.
                for script in migrations[self._pragma("user_version") :]:
                    for statement in script.split(";"):
                        self.run(statement)
                self._pragma(f"user_version = {len(migrations)}")
                self._pragma(f"application_id = {application}")

    def _journal_mode(self) -> str:
        """Return ``wal``, but where blocks are smaller than pages.

        SQLite maps a part of the log into memory, and the kernel kills a process (SIGBUS) that
        writes to a page whose other blocks a full disk has no room for.
        """
        block = os.statvfs(os.path.dirname(self._path) or ".").f_bsize
        return "wal" if block >= mmap.PAGESIZE else "truncate"

    def _checked_version(self, application: int, newest: int) -> int:
        """Return the version of the schema, which is ours and not too new."""
        # All as of one moment: another process may be making it.
        self.run("BEGIN")
        version, found = self._pragma("user_version"), self._pragma("application_id")
        foreign = found not in (0, application) or (found == 0 and self._has_tables())
        self.run("COMMIT")
        if version > newest and not foreign:
            raise FailedPreconditionError(
                f"{self._path}: version {version} is newer than this program's {newest}; use the"
                " newer one"
            )
        if foreign:
            raise FailedPreconditionError(f"{self._path}: not a database of this program's")
        return int(version)

    def _has_tables(self) -> bool:
        return bool(self.rows("SELECT 1 FROM sqlite_master"))

    def _pragma(self, text: str) -> Any:
        row = self.run(f"PRAGMA {text}").fetchone()
        return None if row is None else row[0]

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement. Raises ``sqlite3.IntegrityError`` for a broken constraint."""
        if self._connection is None:
            raise FailedPreconditionError(f"{self._path}: closed")
        try:
            return self._connection.execute(statement, parameters)
        except sqlite3.OperationalError as error:
            raise self._explained(error) from error
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise FaultyError(f"{self._path}: {error}; restore it from a backup") from error

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a SELECT, as of one point in time."""
        with self._lock:
            return self.run(statement, parameters).fetchall()

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """Do what is in the block as one transaction; an exception undoes all of it.

        Nobody else writes meanwhile, so that what is read in it stays true to its end.
        """
        with self._lock:
            self.run("BEGIN IMMEDIATE")
            try:
                yield
                self.run("COMMIT")
            except BaseException:
                with contextlib.suppress(StoreError, OSError, sqlite3.Error):
                    self.run("ROLLBACK")
                raise

    def _explained(self, error: sqlite3.OperationalError) -> Exception:
        name = getattr(error, "sqlite_errorname", "")
        full = name.startswith("SQLITE_IOERR") and self._reserve.is_needed()
        if full or name.startswith("SQLITE_FULL"):
            self._reserve.give_up()  # for the next one, which may be about to free some
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        if name.startswith("SQLITE_BUSY"):
            return FailedPreconditionError(
                f"{self._path}: another process has held it for {_PATIENCE:.0f} seconds"
            )
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR")):
            return UnsupportedError(f"{self._path}: {self._obstacle() or error}")
        return error

    def _obstacle(self) -> str | None:
        """Return why this process cannot write the file, where SQLite says only that it cannot."""
        directory = os.path.dirname(self._path)
        if os.statvfs(directory).f_flag & os.ST_RDONLY:
            return f"{os.strerror(errno.EROFS)}; a store is written to, even to be read"
        mine = os.access(directory, os.W_OK | os.X_OK) and (
            not os.path.exists(self._path) or os.access(self._path, os.R_OK | os.W_OK)
        )
        return None if mine else f"{os.strerror(errno.EACCES)}; choose a store with --root"

    def close(self) -> None:
        """Close the connection; twice is fine."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
                self._reserve.fill()
