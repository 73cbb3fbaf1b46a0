"""The tables of a store, beside those that its drivers have."""

from __future__ import annotations

from typing import Final

#: "ufs" and the kind of database, in SQLite's application_id.
APPLICATION: Final = 0x75667302

#: The script that makes each version out of the one before it. Those that were released stay.
MIGRATIONS: Final = (
    """
    CREATE TABLE uses (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        driver TEXT NOT NULL,
        name TEXT NOT NULL,
        holder TEXT NOT NULL,
        target TEXT NOT NULL,
        since INTEGER NOT NULL,
        boot TEXT NOT NULL,
        mount_namespace INTEGER NOT NULL,
        pid_namespace INTEGER NOT NULL,
        pid INTEGER,
        start_time INTEGER
    ) STRICT;
    CREATE INDEX uses_of_name ON uses (kind, driver, name);
    CREATE TABLE images (
        driver TEXT NOT NULL,
        name TEXT NOT NULL,
        id TEXT NOT NULL,
        config BLOB NOT NULL,
        imported INTEGER NOT NULL,
        PRIMARY KEY (driver, name)
    ) STRICT;
    CREATE TABLE image_layers (
        driver TEXT NOT NULL,
        image TEXT NOT NULL,
        position INTEGER NOT NULL,
        chain TEXT NOT NULL,
        PRIMARY KEY (driver, image, position),
        FOREIGN KEY (driver, image) REFERENCES images (driver, name) ON DELETE CASCADE
    ) STRICT;
    CREATE INDEX image_layers_of_chain ON image_layers (driver, chain);
    """,
)
