"""A database that several clients share: each takes from one stock, and writes down what it took.

As a program it is one client that has the database in a file system of the kernel's.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

STOCK = 1000


def make(path: Path) -> None:
    """Make the database *path*."""
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.executescript(
            f"CREATE TABLE stock (amount INTEGER); INSERT INTO stock VALUES ({STOCK});"
            "CREATE TABLE taken (name TEXT, number INTEGER, what BLOB, UNIQUE (name, number));"
        )


def take(database: sqlite3.Connection, name: str, numbers: Iterable[int]) -> None:
    """Make a transaction for each of *numbers*, which reads what others have made."""
    for number in numbers:
        database.execute("BEGIN IMMEDIATE")
        ((left,),) = database.execute("SELECT amount FROM stock")
        database.execute("UPDATE stock SET amount = ?", (left - 1,))
        database.execute("INSERT INTO taken VALUES (?, ?, ?)", (name, number, os.urandom(3000)))
        database.execute("COMMIT")


def check(path: Path, names: Sequence[str], rounds: int) -> None:
    """Fail unless each of *names* has taken *rounds* times: nothing lost, nothing taken twice."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ((left,),) = database.execute("SELECT amount FROM stock")
        assert left == STOCK - len(names) * rounds
        taken = database.execute("SELECT name, count(*) FROM taken GROUP BY name").fetchall()
    assert sorted(taken) == sorted((name, rounds) for name in names)


def connect(path: str | Path) -> sqlite3.Connection:
    """Open the database as one of several that wait for each other."""
    return sqlite3.connect(path, timeout=300, isolation_level=None)


if __name__ == "__main__":
    with contextlib.closing(connect(sys.argv[1])) as opened:
        take(opened, sys.argv[2], range(int(sys.argv[3])))
