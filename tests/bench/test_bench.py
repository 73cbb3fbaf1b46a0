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


def test_the_list_needs_nothing() -> None:
    assert "stat-cold" in bench("--list").out
