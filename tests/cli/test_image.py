"""``unionfs image``, as a person types it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.archives import archive, directory, member
from tests.cli.conftest import Command, Run, in_store
from tests.store import bundles
from tests.store.bundles import BASE, CHANGE, digest, layout

pytestmark = pytest.mark.needs_root


@pytest.fixture
def run(command: Command) -> Run:
    """Runs ``unionfs`` with a store of the test's own."""

    return in_store(command)


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Runs what must fail; the one line that says why."""

    def refused(*arguments: str, status: int = 1, **more: Any) -> str:
        done = run("image", *arguments, status=status, **more)
        assert done.stdout == ""
        assert re.fullmatch(r"unionfs: .*\n", done.stderr)
        return done.stderr.removeprefix("unionfs: ").rstrip("\n")

    return refused


@pytest.fixture
def app(command: Command) -> Path:
    return bundles.write_tar(command.base / "app.tar", layout("example.org/app:v1").all())


def test_in_used_and_out_again(command: Command, run: Run, app: Path) -> None:
    assert run("image", "import", "app.tar").stdout == "example.org/app:v1\n"
    run("snapshot", "prepare", "mine", "example.org/app:v1")
    run("snapshot", "mount", "mine", "m")
    assert (command.target / "etc/config").read_text() == "second"
    (command.target / "etc/config").write_text("third")
    run("snapshot", "umount", "m")
    assert run("snapshot", "diff", "mine").stdout == "C /etc\nC /etc/config\n"
    run("snapshot", "commit", "mine-too", "mine")
    run("image", "export", "mine-too", "out.tar", "--format", "docker-archive")
    run("image", "import", "out.tar", "again")
    run("snapshot", "view", "seen", "again:latest")
    run("snapshot", "mount", "seen", "m")
    assert (command.target / "etc/config").read_text() == "third"
    run("snapshot", "umount", "m")


def test_lists(run: Run, app: Path) -> None:
    run("image", "import", "app.tar")
    run("image", "import", "l2", "plain")
    table = run("image", "ls").stdout.splitlines()
    assert table[0].split() == ["REPOSITORY", "TAG", "ID", "CREATED", "SIZE"]
    assert table[1].split()[:2] == ["example.org/app", "v1"]
    assert table[1].split()[3] == "2020-01-02T03:04:05"
    assert table[2].split()[:2] == ["plain", "latest"]
    assert run("image", "ls", "-q").stdout == "example.org/app:v1\nplain:latest\n"
    first, second = json.loads(run("image", "ls", "--json").stdout)
    assert (first["name"], second["name"]) == ("example.org/app:v1", "plain:latest")
    assert len(first["layers"]) == 2
    steps = run("image", "history", "example.org/app:v1").stdout.splitlines()
    assert steps[0].split() == ["LAYER", "CREATED", "SIZE", "CREATED", "BY", "COMMENT"]
    assert "RUN change" in steps[1]
    assert steps[2].split() == ["-", "-", "0", "B", "ENV", "A=b", "-"]
    assert "ADD base" in steps[3]
    told = json.loads(run("image", "history", "example.org/app:v1", "--json").stdout)
    assert [one["created_by"] for one in told] == ["RUN change", "ENV A=b", "ADD base"]
    assert told[2]["layer"] == digest(BASE)
    (about,) = json.loads(run("image", "inspect", "example.org/app:v1").stdout)
    assert about["config"]["User"] == "12:34"
    assert about["diff_ids"] == [digest(BASE), digest(CHANGE)]
    gone = json.loads(run("image", "rm", "example.org/app:v1", "--json").stdout)
    assert len(gone["example.org/app:v1"]) == 2
    run("image", "rm", "plain")
    assert run("image", "ls").stdout == run("snapshot", "ls").stdout == ""


def test_through_pipes(command: Command, app: Path) -> None:
    environment = {**os.environ, "UNIONFS_ROOT": str(command.base / "store")}

    def piped(*arguments: str, data: bytes = b"", status: int = 0) -> bytes:
        done = subprocess.run(
            [sys.executable, "-m", "unionfs", "image", *arguments],
            input=data,
            env=environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout or done.stderr

    assert piped("import", "-", data=app.read_bytes()) == b"example.org/app:v1\n"
    out = piped("export", "example.org/app:v1", "-")
    assert digest(bundles.config(BASE, CHANGE))[7:] in str(sorted(bundles.tar_files(out)))
    nameless = archive(member("file"))
    assert b"give a NAME" in piped("import", "-", data=nameless, status=1)
    assert piped("import", "-", "named", data=nameless) == b"named:latest\n"


def test_what_is_refused_is_told_in_one_line(
    command: Command, run: Run, refused: Callable[..., str], app: Path
) -> None:
    evil = archive(directory("dir"), member("../../etc/passwd"))
    (command.base / "evil.tar").write_bytes(evil)
    assert refused("import", "evil.tar") == (
        "evil.tar: member ../../etc/passwd: ../../etc/passwd leads out of the tree"
    )
    assert refused("import", "nowhere") == "nowhere: no such file or directory"
    (command.base / "..tar").write_bytes(archive(member("file")))
    assert refused("import", "..tar").endswith("/..tar: gives the image no name; give a NAME")
    (command.base / "..tar").unlink()
    bundles.write_tar(command.base / "Big.TAR", bundles.docker_files("Big"))
    assert refused("import", "Big.TAR").endswith("; give a NAME")
    bundles.write_tar(command.base / "Big.TAR", bundles.docker_files())
    assert run("image", "import", "Big.TAR").stdout == "big:latest\n"
    run("image", "rm", "big")
    (command.base / "Big.TAR").unlink()
    assert "no name for an image" in refused("import", "app.tar", "Not A Name")
    assert refused("export", "nowhere", "out") == "nowhere: neither an image nor a snapshot"
    assert "it is oci-archive or docker-archive" in refused(
        "export", "nowhere", "out", "--format", "zip"
    )
    run("image", "import", "app.tar", "app")
    assert "it is gzip, zstd or none" in refused("export", "app", "out", "--compression", "lz")
    assert "there is another image of that name" in refused("import", "l2", "app")
    assert refused("rm", "nowhere") == "nowhere: no such image"
    assert refused("frob") == (
        "image frob: unknown; there are import, export, ls, rm, history, inspect, cleanup"
    )
    assert sorted(os.listdir(command.base)) == sorted(
        ["app.tar", "evil.tar", "l1", "l2", "m", "store", "u", "w"]
    )


def test_an_export_that_fails_leaves_the_file_that_was_there(
    command: Command, run: Run, refused: Callable[..., str], app: Path
) -> None:
    run("image", "import", "app.tar", "app")
    (command.base / "out.tar").write_text("precious")
    (file,) = (command.base / "store/overlay/snapshots").glob("*/fs/bin/tool")
    file.write_text("changed")
    assert "shorter than it was" in refused("export", "app", "out.tar")
    assert (command.base / "out.tar").read_text() == "precious"


def test_a_full_disk_is_told(command: Command, refused: Callable[..., str], app: Path) -> None:
    target = command.base / "m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(target)], check=True)
    try:
        large = archive(*(member(f"file-{n}", data=os.urandom(500_000)) for n in range(10)))
        (command.base / "large.tar").write_bytes(large)
        told = refused("import", "large.tar", env={"UNIONFS_ROOT": str(target / "store")}, status=2)
        assert re.fullmatch(r"file-\d: No space left on device", told)
        assert os.listdir(target / "store/overlay/snapshots") == []
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_a_terminal_sees_how_far_it_is(command: Command) -> None:
    (command.base / "large.tar").write_bytes(archive(member("file", data=bytes(40_000_000))))
    leader, follower = pty.openpty()
    process = command.start(
        "image",
        "import",
        "large.tar",
        stderr=follower,
        env={"UNIONFS_ROOT": str(command.base / "store")},
    )
    os.close(follower)
    assert process.communicate(timeout=60)[0] == b"large:latest\n"
    said = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert re.search(r"large\.tar  [\d.]+ [KM]?i?B  [\d.]+ [KMG]?i?B/s", said)
    assert said.endswith("\r\x1b[K")
