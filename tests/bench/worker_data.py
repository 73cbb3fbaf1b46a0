"""Workers for the bytes of files: sequential, random, mapped, and a database's."""

from __future__ import annotations

import mmap
import os
import random

from tests.bench.client import Phase, Works, serve

MIB = 1 << 20
PAGE = 4096


def _read_all(path: str) -> None:
    buffer = bytearray(MIB)
    file = os.open(path, os.O_RDONLY)
    while os.readv(file, [buffer]):
        pass
    os.close(file)


def _write_all(path: str, size: int) -> None:
    buffer = b"\x5a" * MIB
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for _ in range(size // MIB):
        os.write(file, buffer)
    os.close(file)


def _map_all(path: str) -> None:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        while mapped.read(MIB):
            pass


def _offsets(size: int, count: int) -> list[int]:
    chosen = random.Random(size)
    return [chosen.randrange(size // PAGE) * PAGE for _ in range(count)]


def do_read(path: str, size: str) -> list[Phase]:
    def run() -> None:
        _read_all(path)

    return [("first", run, int(size)), ("second", run, int(size))]


def do_write(path: str, size: str) -> list[Phase]:
    """Closing belongs to it: that is when some systems write."""

    def run() -> None:
        _write_all(path, int(size))

    return [("write", run, int(size))]


def do_map(path: str, size: str) -> list[Phase]:
    def run() -> None:
        _map_all(path)

    return [("map", run, int(size))]


def do_random_read(path: str, size: str, count: str) -> list[Phase]:
    offsets = _offsets(int(size), int(count))

    def run() -> None:
        file = os.open(path, os.O_RDONLY)
        for offset in offsets:
            os.pread(file, PAGE, offset)
        os.close(file)

    return [("read", run, len(offsets))]


def do_random_write(path: str, size: str, count: str) -> list[Phase]:
    offsets, page = _offsets(int(size), int(count)), b"\xa5" * PAGE

    def run() -> None:
        file = os.open(path, os.O_RDWR)
        for offset in offsets:
            os.pwrite(file, page, offset)
        os.close(file)

    return [("write", run, len(offsets))]


def do_touch(path: str) -> list[Phase]:
    """One byte written: of a lower file, a copy-up."""

    def run() -> None:
        file = os.open(path, os.O_RDWR)
        os.pwrite(file, b"x", 0)
        os.close(file)

    return [("write", run, 1)]


def do_sqlite(directory: str, count: str) -> list[Phase]:
    import sqlite3  # noqa: PLC0415 - only this one needs it

    def transactions(mode: str) -> None:
        database = sqlite3.connect(f"{directory}/{mode}.db", isolation_level=None)
        database.execute(f"PRAGMA journal_mode={mode}")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")
        for number in range(int(count)):
            database.execute("BEGIN")
            database.execute("INSERT INTO t (text) VALUES (?)", (f"{number:0100d}",))
            database.execute("COMMIT")
        database.close()

    def wal() -> None:
        transactions("wal")

    def rollback() -> None:
        transactions("delete")

    return [("wal", wal, int(count)), ("rollback", rollback, int(count))]


WORKS: Works = {
    "read": do_read,
    "write": do_write,
    "map": do_map,
    "random-read": do_random_read,
    "random-write": do_random_write,
    "touch": do_touch,
    "sqlite": do_sqlite,
}

if __name__ == "__main__":
    serve(WORKS)
