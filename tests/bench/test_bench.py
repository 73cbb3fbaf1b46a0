"""The benchmark works: some of its rows, quickly, and what it writes about them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import containerd, stores
from tests.bench.markdown import MARKS
from tests.bench.model import DRIVERS, MOUNTS
from tests.bench.run import chosen
from tests.mounts import REPOSITORY

pytestmark = [pytest.mark.needs_root, pytest.mark.kernel_overlay]

ROWS = {"stat-cold", "stat-warm", "upper-seq-write", "memory-idle"}


@dataclass(frozen=True)
class Done:
    pid: int
    out: str
    err: str


def bench(*arguments: str | Path) -> Done:
    command = [sys.executable, "-m", "tests.bench", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True) as process:
        out, err = process.communicate(timeout=80)
    assert process.returncode == 0, err
    return Done(process.pid, out, err)


def test_a_run(tmp_path: Path) -> None:
    found, page, plot = tmp_path / "found.json", tmp_path / "page.md", tmp_path / "plot.svg"
    files = ("--json", found, "--markdown", page, "--svg", plot)
    systems = ("--systems", "unionfs", "overlay", "ext4")
    done = bench("--quick", "--rounds", "1", "--peer", "kernel", *files, *systems, "--rows", *ROWS)
    report = json.loads(found.read_text())
    assert set(report["head"]["systems"]) == {"unionfs", "overlay", "ext4"}
    rows: dict[str, Any] = {row["name"]: row for row in report["rows"]}
    assert rows.keys() >= ROWS
    for name in ("stat-cold", "upper-seq-write"):
        for system in ("unionfs", "overlay", "ext4"):
            assert rows[name]["modes"]["free"][system]["median"] > 0, done.err
    assert rows["stat-cold"]["modes"]["free"]["overlay"]["ratio"] == 1.0
    assert {goal["state"] for goal in rows["memory-idle"]["goals"]} <= {"met", "missed"}
    assert "stat-cold" in page.read_text()
    assert plot.read_text().endswith("</svg>\n")
    assert not [name for name in os.listdir("/dev/shm") if f"bench-{done.pid}-" in name]


def test_storage_drivers(tmp_path: Path) -> None:
    found, page = tmp_path / "found.json", tmp_path / "page.md"
    about_mounts = f"<!-- begin: {MARKS[MOUNTS]} -->kept<!-- end: {MARKS[MOUNTS]} -->\n"
    page.write_text(
        f"{about_mounts}<!-- begin: {MARKS[DRIVERS]} --><!-- end: {MARKS[DRIVERS]} -->\nlast\n"
    )
    systems = ("driver-overlay", "driver-overlay-kernel", "containerd-overlayfs")
    files = ("--json", found, "--markdown", page, "--systems", *systems)
    done = bench("--quick", "--rounds", "1", *files, "--rows", "pairs", "few-listed", "change-1m")
    report = json.loads(found.read_text())
    there = set(systems) - {name.partition(" ")[0] for name in report["head"]["missing"]}
    assert there == set(report["head"]["systems"]) >= set(systems[:2])
    rows: dict[str, Any] = {row["name"]: row for row in report["rows"]}
    for name in ("prepare-remove", "change-1m", "change-1m-space"):
        for system in there:
            assert rows[name]["modes"]["free"][system]["median"] > 0, done.err
    assert rows["list-10-command"]["modes"]["free"]["driver-overlay"]["median"] > 0
    text = page.read_text()
    assert text.startswith(about_mounts)
    assert "| change-1m |" in text
    assert text.endswith("last\n")


def test_quick_leaves_out_what_is_long_unless_it_is_named() -> None:
    group = {scenario.name for scenario in chosen(["drivers"], quick=True)}
    assert "change-1m" in group
    assert "change-4096m" not in group
    assert [one.name for one in chosen(["change-4096m"], quick=True)] == ["change-4096m"]


def test_containerd_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _program: None)
    present, missing = stores.find()
    assert {one.kind for one in present} == {"driver"}
    assert missing == [f"{name} (no containerd in PATH)" for name in stores.SNAPSHOTTERS]


@given(st.lists(st.tuples(st.integers(1, 2000), st.binary(max_size=300))))
def test_messages_are_read_as_written(parts: list[tuple[int, bytes]]) -> None:
    message = b"".join(containerd.field(number, value) for number, value in parts)
    assert list(containerd.fields(message)) == parts


def test_a_message_of_containerd() -> None:
    # Info of protoc's making: name "a", kind COMMITTED, created_at of 5 seconds.
    assert list(containerd.fields(bytes.fromhex("0a0161180322020805"))) == [
        (1, b"a"),
        (3, 3),
        (4, b"\x08\x05"),
    ]


def test_the_list_needs_nothing() -> None:
    assert "stat-cold" in bench("--list").out
