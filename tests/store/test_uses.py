"""Who uses what: uses that begin and end while others look."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from unionfs import registry
from unionfs.database import Database
from unionfs.store import schema, uses
from unionfs.store.uses import Subject, Uses

SUBJECT = Subject("snapshot", "overlay", "key")


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Uses]:
    database = Database(str(tmp_path / "store.db"), schema.APPLICATION, schema.MIGRATIONS)
    yield Uses(database)
    database.close()


def test_a_use_dies_with_its_process(table: Uses) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    table.add(SUBJECT, "child", "", pid)
    os.waitpid(pid, 0)
    assert table.of(SUBJECT) == []


def test_a_use_that_outlives_its_process_while_somebody_looks(
    table: Uses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process has mounted, said so, and ended, between two glances of ours."""
    number = table.add(SUBJECT, "child", "/", os.getpid())
    lives = uses._lives

    def ended(use: uses.Use, targets: set[str]) -> bool:
        if use.pid is None:
            return lives(use, targets)
        table.outlive(number)
        return False

    monkeypatch.setattr(uses, "_lives", ended)
    assert [use.id for use in table.of(SUBJECT)] == [number]


def test_a_place_in_another_mount_namespace_is_another_place(
    table: Uses, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.outlive(table.add(SUBJECT, "here", "/", os.getpid()))
    assert [use.holder for use in table.on("/")] == ["here"]
    elsewhere = {"mnt": -1, "pid": registry.namespace("pid")}
    monkeypatch.setattr(registry, "namespace", elsewhere.__getitem__)
    assert table.on("/") == []
    assert [use.holder for use in table.of(SUBJECT)] == ["here"]
