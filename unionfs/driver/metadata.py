"""What a driver remembers of its snapshots; a snapshot exists when its row does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from unionfs.database import Database
from unionfs.driver.api import LABEL_LIMIT, Info, Kind, Usage
from unionfs.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)

#: "ufs" and the kind of database, in SQLite's application_id.
_APPLICATION: Final = 0x75667301

#: The script that makes each version out of the one before it. Those that were released stay.
_MIGRATIONS: Final = (
    """
    CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        parent INTEGER REFERENCES snapshots (id),
        labels TEXT NOT NULL,
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL,
        size_limit INTEGER,
        size INTEGER,
        inodes INTEGER
    ) STRICT;
    CREATE INDEX snapshots_of_parent ON snapshots (parent);
    CREATE VIEW listed AS
        SELECT s.id, s.key, s.kind, s.parent, p.key, s.labels, s.created, s.updated,
            s.size_limit, s.size, s.inodes
        FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent;
    """,
)

_CHAIN: Final = """
    WITH RECURSIVE chain (id, depth) AS (
        VALUES (?, 0)
        UNION ALL
        SELECT parent, depth + 1 FROM snapshots JOIN chain USING (id) WHERE parent IS NOT NULL
    )
    SELECT listed.* FROM listed JOIN chain USING (id) ORDER BY depth
"""


_KINDS: Final = {kind.value: kind for kind in Kind}


class Snapshot(NamedTuple):
    """A row: a snapshot as its driver knows it."""

    id: int
    """Never used again for another one."""
    key: str
    kind: Kind
    parent_id: int | None
    parent: str
    labels: Mapping[str, str]
    created: int
    updated: int
    size_limit: int | None
    usage: Usage | None
    """What it takes of the disk, once it is committed and cannot change."""

    def info(self) -> Info:
        """Return what the API tells of it."""
        return Info(
            self.key,
            self.kind,
            self.parent,
            self.labels,
            self.created,
            self.updated,
            self.size_limit,
        )


class Metadata(Database):
    """The snapshots of one driver. Methods that change something belong in a `write` block.

    *more* are migrations for the tables that the driver has beside.
    """

    def __init__(self, path: str, more: Sequence[str] = ()) -> None:
        super().__init__(path, _APPLICATION, (*_MIGRATIONS, *more))

    def find(self, key: str) -> Snapshot:
        """Return the snapshot *key*. Raises `NotFoundError`."""
        found = self.rows("SELECT * FROM listed WHERE key = ?", (key,))
        if not found:
            raise NotFoundError(f"{key}: no such snapshot")
        return _snapshot(found[0])

    def parent_of_new(self, name: str) -> Snapshot:
        """Return the snapshot *name*, which is to be a parent.

        Raises `NotFoundError`, and `InvalidArgumentError` when it is not committed.
        """
        found = self.find(name)
        if found.kind is not Kind.COMMITTED:
            raise InvalidArgumentError(
                f"{name}: {found.kind.value}, and only a committed snapshot can be a parent"
            )
        return found

    def chain(self, snapshot: Snapshot) -> list[Snapshot]:
        """Return *snapshot* and all below it, its parent first after itself."""
        return [_snapshot(row) for row in self.rows(_CHAIN, (snapshot.id,))]

    def infos(self) -> list[Info]:
        """Return what the API tells of every snapshot, parents before their children."""
        # A child's row is made after its parent's.
        rows = self.rows(
            "SELECT id, key, kind, parent, labels, created, updated, size_limit"
            " FROM snapshots ORDER BY id"
        )
        names = {None: "", **{row[0]: row[1] for row in rows}}
        # One text is parsed in a third of the time that many take.
        labels = json.loads(f"[{','.join([row[4] for row in rows])}]")
        return [
            Info(key, _KINDS[kind], names[parent], own, created, updated, limit)
            for own, (_, key, kind, parent, _, created, updated, limit) in zip(
                labels, rows, strict=True
            )
        ]

    def ids(self) -> set[int]:
        """Return the number of every snapshot."""
        return {row[0] for row in self.rows("SELECT id FROM snapshots")}

    def children(self, snapshot: Snapshot) -> list[str]:
        """Return the keys of those whose parent *snapshot* is."""
        found = self.rows("SELECT key FROM snapshots WHERE parent = ?", (snapshot.id,))
        return [row[0] for row in found]

    def require_free(self, key: str) -> None:
        """Raise `AlreadyExistsError` if *key* names a snapshot."""
        if self.rows("SELECT 1 FROM snapshots WHERE key = ?", (key,)):
            raise AlreadyExistsError(f"{key}: there is a snapshot of that name")

    def insert(
        self,
        key: str,
        kind: Kind,
        parent: Snapshot | None,
        labels: Mapping[str, str],
        size_limit: int | None,
    ) -> Snapshot:
        """Add a snapshot. Raises `AlreadyExistsError`."""
        self.require_free(key)
        now = time.time_ns()
        parent_id = None if parent is None else parent.id
        added = self.run(
            "INSERT INTO snapshots (key, kind, parent, labels, created, updated, size_limit)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key, kind.value, parent_id, json.dumps(dict(labels)), now, now, size_limit),
        )
        assert added.lastrowid is not None
        above = "" if parent is None else parent.key
        number, kept = added.lastrowid, dict(labels)
        return Snapshot(number, key, kind, parent_id, above, kept, now, now, size_limit, None)

    def commit(
        self, snapshot: Snapshot, name: str, labels: Mapping[str, str], usage: Usage | None
    ) -> Snapshot:
        """Make an active snapshot a committed one. Raises `AlreadyExistsError`.

        Without *usage* it is measured whenever somebody asks.
        """
        if name != snapshot.key:
            self.require_free(name)
        now = time.time_ns()
        self.run(
            "UPDATE snapshots SET key = ?, kind = ?, labels = ?, created = ?, updated = ?,"
            " size = ?, inodes = ? WHERE id = ?",
            (
                name,
                Kind.COMMITTED.value,
                json.dumps(dict(labels)),
                now,
                now,
                *(usage or (None, None)),
                snapshot.id,
            ),
        )
        return self.find(name)

    def uncommit(self, snapshot: Snapshot) -> None:
        """Make a committed snapshot again the active one that it was, as *snapshot* tells it."""
        self.run(
            "UPDATE snapshots SET key = ?, kind = ?, labels = ?, created = ?, updated = ?,"
            " size = NULL, inodes = NULL WHERE id = ?",
            (
                snapshot.key,
                snapshot.kind.value,
                json.dumps(dict(snapshot.labels)),
                snapshot.created,
                snapshot.updated,
                snapshot.id,
            ),
        )

    def label(self, snapshot: Snapshot, labels: Mapping[str, str]) -> Snapshot:
        """Replace the labels of *snapshot*."""
        self.run(
            "UPDATE snapshots SET labels = ?, updated = ? WHERE id = ?",
            (json.dumps(dict(labels)), time.time_ns(), snapshot.id),
        )
        return self.find(snapshot.key)

    def remove(self, snapshot: Snapshot) -> None:
        """Remove the row of *snapshot*. Raises `FailedPreconditionError` for a parent."""
        if children := self.children(snapshot):
            more = f" and {len(children) - 1} more" if len(children) > 1 else ""
            raise FailedPreconditionError(
                f"{snapshot.key}: is the parent of {children[0]}{more}; remove those first"
            )
        self.run("DELETE FROM snapshots WHERE id = ?", (snapshot.id,))


def _snapshot(row: tuple[Any, ...]) -> Snapshot:
    number, key, kind, parent_id, parent, labels, created, updated, limit, size, inodes = row
    return Snapshot(
        number,
        key,
        _KINDS[kind],
        parent_id,
        parent or "",
        json.loads(labels),
        created,
        updated,
        limit,
        None if size is None else Usage(size, inodes),
    )


def check_key(key: str, what: str = "key") -> None:
    """Raise `InvalidArgumentError` unless *key* can name a snapshot."""
    if not key:
        raise InvalidArgumentError(f"an empty {what}")
    if "\0" in key:
        raise InvalidArgumentError(f"{key!r}: a NUL in a {what}")
    try:
        key.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(key).decode(errors="backslashreplace")
        raise InvalidArgumentError(f"{shown}: a {what} is UTF-8") from None


def check_labels(labels: Mapping[str, str | None]) -> None:
    """Raise `InvalidArgumentError` for a label without a name, or one that is too long."""
    for name, value in labels.items():
        check_key(name, "label")
        if len(name.encode()) + len((value or "").encode()) > LABEL_LIMIT:
            raise InvalidArgumentError(f"label {name}: longer than {LABEL_LIMIT} bytes")
