"""A database on a server: three clients take from one stock, and nothing is lost or taken twice."""

from __future__ import annotations

import json
import sys
from typing import Final

from tests.engines.ground import REPOSITORY
from tests.walkthrough import nfs
from tests.walkthrough.lesson import Lesson
from tests.walkthrough.machine import PLACE

ROUNDS: Final = 10

MAKE: Final = """\
import sqlite3
sqlite3.connect("shop/shop.db").executescript(
    "CREATE TABLE stock (amount INTEGER); INSERT INTO stock VALUES (1000);"
    "CREATE TABLE taken (name TEXT, number INTEGER, what BLOB, UNIQUE (name, number));"
)
"""
LOOK: Final = """\
import sqlite3
database = sqlite3.connect("export/shop.db")
print(*database.execute("PRAGMA integrity_check"))
print(*database.execute("SELECT amount FROM stock"))
print(*database.execute("SELECT name, count(*) FROM taken GROUP BY name ORDER BY name"))
"""


def run(lesson: Lesson) -> None:
    """Transactions of three clients at once, and a look at what came of them."""
    try:
        nfs.network(lesson)
        database(lesson)
        nfs.serve(lesson, ["shop.db"])
        take(lesson)
        look(lesson)
    finally:
        nfs.end(lesson)


def database(lesson: Lesson) -> None:
    lesson.say("A database with a stock of 1000; the volume is a view of its directory.")
    (lesson.machine.directory / "make.py").write_text(MAKE)
    lesson.host("mkdir shop export && python3 make.py")
    view = f"--driver unionfs -o from={PLACE}/shop data"
    lesson.check("made", lesson.engine(f"volume create {view}"), "data")
    lesson.host("unionfs volume mount data export")


def take(lesson: Lesson) -> None:
    lesson.say(
        "Three clients, each a SQLite whose files are on the server; locks are the server's."
    )
    where = {"port": nfs.PORT, "mount_port": nfs.MOUNT_PORT, "export": "/data", "version": 4}
    lesson.keep("where", json.dumps(where))
    lesson.keep("client", f"env -C {REPOSITORY} {sys.executable} -m tests.nfs.sqlite_nfs")
    script = f'for name in one two three; do $client "$where" /shop.db $name {ROUNDS} & done; wait'
    lesson.check("none has an error", lesson.host(script), "")


def look(lesson: Lesson) -> None:
    (lesson.machine.directory / "look.py").write_text(LOOK)
    taken = " ".join(f"('{name}', {ROUNDS})" for name in ("one", "three", "two"))
    expected = ["('ok',)", f"({1000 - 3 * ROUNDS},)", taken]
    shown = lesson.host("python3 look.py")
    lesson.check("the database is whole, and so is the stock", shown.splitlines(), expected)
    shown = lesson.host("sed -i s/export/shop/ look.py; python3 look.py")
    lesson.check("the directory's own is as it was", shown.splitlines(), ["('ok',)", "(1000,)"])
