"""The table of volumes in a store's database: a volume exists when its row does."""

from __future__ import annotations

import json
from typing import Any, Final

from unionfs.database import Database
from unionfs.errors import NotFoundError
from unionfs.store.volume import Volume

_SELECT: Final = "SELECT name, driver, options, labels, created, data, holds FROM volumes"


class VolumeTable:
    """The rows, one transaction for each change."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Volume]:
        """Return all volumes, by name."""
        return [_volume(row) for row in self._database.rows(_SELECT + " ORDER BY name")]

    def find(self, name: str) -> Volume:
        """Return the volume *name*. Raises `NotFoundError`."""
        rows = self._database.rows(_SELECT + " WHERE name = ?", (name,))
        if not rows:
            raise NotFoundError(f"get {name}: no such volume")
        return _volume(rows[0])

    def has_data(self, driver: str, data: str) -> bool:
        """Say whether the snapshot *data* of *driver* has the files of a volume."""
        query = "SELECT 1 FROM volumes WHERE driver = ? AND data = ?"
        return bool(self._database.rows(query, (driver, data)))

    def insert(self, volume: Volume) -> None:
        """Add *volume*, whose name is free."""
        self._change(
            "INSERT INTO volumes (name, driver, options, labels, created, data, holds)"
            " VALUES (?, ?, ?, ?, ?, ?, 0)",
            volume.name,
            volume.driver,
            json.dumps(dict(volume.options)),
            json.dumps(dict(volume.labels)),
            volume.created,
            volume.data,
        )

    def set_data(self, name: str, data: str) -> None:
        """Let the files of the volume *name* be those of the snapshot *data*."""
        self._change("UPDATE volumes SET data = ? WHERE name = ?", data, name)

    def count_hold(self, name: str) -> None:
        """Take note that one more has begun to use the volume *name*."""
        self._change("UPDATE volumes SET holds = holds + 1 WHERE name = ?", name)

    def delete(self, name: str) -> None:
        """Remove the volume *name*."""
        self._change("DELETE FROM volumes WHERE name = ?", name)

    def _change(self, statement: str, *parameters: Any) -> None:
        with self._database.write():
            self._database.run(statement, parameters)


def _volume(row: tuple[Any, ...]) -> Volume:
    name, driver, options, labels, *rest = row
    return Volume(name, driver, json.loads(options), json.loads(labels), *rest)
