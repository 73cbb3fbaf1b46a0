"""`unionfs diff`: what it prints; which changes there are is the union's own business."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Command, wait_for_end

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs_root

CHANGES = "C /d\nC /d/deep\nD /file\nA /new\n"
LAYERS = "lowerdir=l1:l2,upperdir=u"


@pytest.fixture
def changed(command: Command) -> Path:
    """A mounted union with a change of each kind."""
    command.mount()
    (command.target / "file").unlink()
    (command.target / "new").touch()
    (command.target / "d/deep").write_text("changed")
    return command.target


@pytest.mark.usefixtures("changed")
def test_of_a_mount(command: Command) -> None:
    done = command.run("diff", "m")
    assert (done.stdout, done.stderr) == (CHANGES, "")


@pytest.mark.usefixtures("changed")
def test_of_layers_beside_their_mount_and_without(command: Command) -> None:
    assert command.run("diff", "-o", LAYERS).stdout == CHANGES
    command.run("umount", "m")
    assert command.run("diff", "-o", LAYERS).stdout == CHANGES
    assert command.run("diff", "-o", f"{LAYERS},workdir=w,ro").stdout == CHANGES


@pytest.mark.usefixtures("changed")
def test_of_a_bare_upper_directory(command: Command) -> None:
    command.run("umount", "m")
    done = command.run("diff", "u")
    assert done.stdout == CHANGES
    assert done.stderr.startswith("unionfs: no lower layers given: ")
    (command.base / "u/foreign").touch()
    assert "A /foreign\n" in command.run("diff", "u").stdout


@pytest.mark.usefixtures("changed")
def test_of_a_mount_whose_daemon_died(command: Command) -> None:
    pid = command.info()["pid"]
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid)
    assert command.run("diff", "m").stdout == CHANGES


@pytest.mark.usefixtures("changed")
def test_as_json(command: Command) -> None:
    for arguments in (["m"], ["-o", LAYERS]):
        rows = json.loads(command.run("diff", "--json", *arguments).stdout)
        assert [f"{row['kind']} {row['path']}" for row in rows] == CHANGES.splitlines()


def test_names_are_printed_as_they_are(command: Command) -> None:
    (command.base / "u/\udcff").touch()
    assert command.run("diff", "-o", LAYERS).stdout == "A /\udcff\n"
    rows = json.loads(command.run("diff", "-o", LAYERS, "--json").stdout)
    assert rows == [{"kind": "A", "path": "/\udcff"}]


def test_nothing_changed(command: Command) -> None:
    command.mount()
    assert command.run("diff", "m").stdout == ""
    assert json.loads(command.run("diff", "m", "--json").stdout) == []


def test_a_read_only_union_changes_nothing(command: Command) -> None:
    command.run("mount", "-o", "lowerdir=l1", "m")
    assert command.run("diff", "m").stdout == ""


def test_nothing_is_written(command: Command) -> None:
    os.chmod(command.base / "u", 0o555)
    before = {path: path.stat().st_ctime_ns for path in command.base.rglob("*")}
    command.run("diff", "-o", LAYERS)
    command.run("diff", "u")
    assert {path: path.stat().st_ctime_ns for path in command.base.rglob("*")} == before


def test_what_cannot_be_read_is_named(command: Command) -> None:
    (command.base / "u/d/closed").mkdir(mode=0o700, parents=True)
    nobody = "import os, unionfs.cli.diff, unionfs.union.changes; os.setresuid(1234, 1234, 1234)"
    done = command.run("diff", "-o", LAYERS, patch=nobody, status=2)
    assert done.stderr == "unionfs: /d/closed: Permission denied\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 1, "give a MOUNT, an UPPERDIR or -o"),
        (["m", "l1"], 1, "give a MOUNT, an UPPERDIR or -o"),
        (["m", "-o", LAYERS], 1, "give a MOUNT, an UPPERDIR or -o"),
        (["--wibble", "m"], 1, "--wibble: unknown argument"),
        (["-o", "lowerdir=l1"], 1, "upperdir= is missing"),
        (["-o", f"{LAYERS},wibble"], 1, "wibble: unknown option"),
        (["-o", "lowerdir=none,upperdir=u"], 32, "lowerdir=none: No such file or directory"),
        (["none"], 32, "none: No such file or directory"),
        (["l1/file"], 32, "upperdir=l1/file: Not a directory"),
    ],
)
def test_wrong_arguments(command: Command, arguments: list[str], status: int, said: str) -> None:
    assert command.refuse("diff", *arguments, status=status).startswith(said)
