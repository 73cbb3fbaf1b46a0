"""``unionfs volume``, as a person who knows Docker types it."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import system
from tests.cli.conftest import Command, Run, in_store

pytestmark = pytest.mark.needs_root


@pytest.fixture
def run(command: Command) -> Run:
    """Runs ``unionfs volume`` on a store of the test's own."""

    return in_store(command, "volume")


def test_a_volume_from_beginning_to_end(command: Command, run: Run) -> None:
    assert run("create", "data").stdout == "data\n"
    assert run("create", "data").stdout == "data\n"
    run("mount", "data", "m", "--id", "web")
    (command.target / "file").write_text("kept")
    done = run("rm", "data", status=1)
    assert done.stderr == "unionfs: remove data: volume is in use - [web]\n"
    run("umount", "m")
    assert os.listdir(command.target) == []
    run("mount", "data", "m", "-o", "ro")
    assert (command.target / "file").read_text() == "kept"
    run("umount", "m")
    assert run("rm", "data").stdout == "data\n"
    assert run("ls", "-q").stdout == ""
    assert command.mounted() == []


def test_the_list_is_dockers(run: Run) -> None:
    assert run("ls").stdout == "DRIVER    VOLUME NAME\n"
    run("create", "one", "--label", "a=1", "--label", "empty")
    run("create", "-d", "local", "--name", "two")
    assert run("ls").stdout.splitlines() == [
        "DRIVER    VOLUME NAME",
        "overlay   one",
        "overlay   two",
    ]
    assert run("ls", "-q").stdout == "one\ntwo\n"
    assert run("ls", "--format", "{{.Name}}: {{.Labels}}").stdout == "one: a=1,empty=\ntwo: \n"
    assert run("ls", "--format", r"table {{.Name}}\t{{.Scope}}").stdout.splitlines() == [
        "VOLUME NAME   SCOPE",
        "one           local",
        "two           local",
    ]
    first = json.loads(run("ls", "--format", "json").stdout.splitlines()[0])
    assert first == {
        "Availability": "N/A",
        "CreatedAt": first["CreatedAt"],
        "Driver": "overlay",
        "Group": "N/A",
        "Labels": "a=1,empty=",
        "Links": "N/A",
        "Mountpoint": first["Mountpoint"],
        "Name": "one",
        "Options": "",
        "Scope": "local",
        "Size": "N/A",
        "Status": "N/A",
    }
    assert [row["Name"] for row in json.loads(run("ls", "--json").stdout)] == ["one", "two"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], ["data1", "data2", "logs"]),
        (["name=data"], ["data1", "data2"]),
        (["name=a1", "name=logs"], ["data1", "logs"]),
        (["name=^lo"], ["logs"]),
        (["name=("], []),
        (["label=env"], ["data1", "data2"]),
        (["label=env=prod"], ["data1"]),
        (["label=env", "label=env=test"], ["data2"]),
        (["label!=env"], ["logs"]),
        (["driver=overlay", "driver=other"], ["data1", "data2", "logs"]),
        (["driver=other"], []),
        (["dangling=true"], ["data2", "logs"]),
        (["dangling=0"], ["data1"]),
        (["dangling=true", "dangling=false"], ["data1", "data2", "logs"]),
        (["dangling=true", "name=logs"], ["logs"]),
    ],
)
def test_filters(command: Command, run: Run, filters: list[str], expected: list[str]) -> None:
    run("create", "data1", "--label", "env=prod")
    run("create", "data2", "--label", "env=test")
    run("create", "logs")
    run("mount", "data1", "m")
    words = [word for text in filters for word in ("--filter", text)]
    assert run("ls", "-q", *words).stdout.split() == expected


def test_what_inspect_tells(command: Command, run: Run) -> None:
    run("create", "data", "--label", "a=1")
    run("mount", "data", "m", "--id", "web")
    (told,) = json.loads(run("inspect", "data").stdout)
    mountpoint = f"{command.base}/store/volumes/data/_data"
    assert told == {
        "CreatedAt": told["CreatedAt"],
        "Driver": "overlay",
        "Labels": {"a": "1"},
        "Mountpoint": mountpoint,
        "Name": "data",
        "Options": None,
        "Scope": "local",
        "Snapshot": told["Snapshot"],
        "UsageData": {"RefCount": 1, "Size": 4096},
        "Users": [{"ID": "web", "Target": str(command.target)}],
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["CreatedAt"])
    assert run("inspect", "-f", "{{.Mountpoint}}", "data").stdout == f"{mountpoint}\n"
    (command.target / "file").write_text("x")
    assert (Path(mountpoint) / "file").read_text() == "x"
    done = run("inspect", "data", "nope", status=1)
    assert len(json.loads(done.stdout)) == 1
    assert done.stderr == "unionfs: get nope: no such volume\n"
    assert run("inspect", "nope", status=1).stdout == "[]\n"


def test_removing_several(run: Run) -> None:
    run("create", "one")
    run("create", "two")
    done = run("rm", "one", "nope", "two", status=1)
    assert (done.stdout, done.stderr) == ("one\ntwo\n", "unionfs: get nope: no such volume\n")
    assert run("rm", "-f", "nope").stdout == "nope\n"


def _answered(command: Command, answer: bytes, *words: str) -> tuple[int, str]:
    """Run ``prune`` and answer what it asks."""
    reader, writer = os.pipe()
    os.write(writer, answer)
    os.close(writer)
    program = command.start(
        "volume",
        "prune",
        *words,
        env={"UNIONFS_ROOT": str(command.base / "store")},
        patch=f"import os; os.dup2({reader}, 0)",
        pass_fds=[reader],
    )
    os.close(reader)
    out, _ = program.communicate(timeout=30)
    return program.returncode, out.decode()


def test_prune_asks(command: Command, run: Run) -> None:
    run("create", "named")
    name = run("create").stdout.strip()
    run("create", "used")
    run("mount", "used", "m")
    for answer in (b"n\n", b"", b"\n"):
        status, out = _answered(command, answer)
        assert status == 1
        assert out.startswith("WARNING! This will remove all volumes that nobody uses:\n")
        assert sorted(out.splitlines()[1:3]) == sorted([f"  {name}", "  named"])
        assert "[y/N]" in out
    assert len(run("ls", "-q").stdout.split()) == 3
    status, out = _answered(command, b"y\n", "-a")
    assert status == 0
    assert "Deleted Volumes:\n" in out
    assert re.search(r"\nTotal reclaimed space: 8\.192kB\n\Z", out)
    assert run("ls", "-q").stdout == "used\n"
    assert run("prune").stdout == "Total reclaimed space: 0B\n"


def test_prune_by_force_and_filter(run: Run) -> None:
    run("create", "one", "--label", "tmp")
    run("create", "two")
    done = run("prune", "-f", "--filter", "label=tmp")
    assert done.stdout == "Deleted Volumes:\none\n\nTotal reclaimed space: 4.096kB\n"
    assert json.loads(run("prune", "-f", "--json").stdout) == {
        "VolumesDeleted": ["two"],
        "SpaceReclaimed": 4096,
    }


@pytest.mark.parametrize(
    "options",
    [
        ["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m"],
        ["-o", "type=tmpfs", "-o", "o=size=1m"],
        ["--opt", "type=tmpfs,o=size=1m"],
    ],
)
def test_in_memory_as_docker_spells_it(command: Command, run: Run, options: list[str]) -> None:
    run("create", "--driver", "local", *options, "mem")
    run("mount", "mem", "m")
    with pytest.raises(OSError, match="No space left"):
        (command.target / "file").write_bytes(bytes((1 << 20) + 1))
    run("umount", "m")


def test_a_directory_as_docker_spells_it(command: Command, run: Run) -> None:
    run("create", "--opt", f"type=none,o=bind,device={command.base}/l1", "host")
    run("mount", "host", "m")
    assert (command.target / "file").read_text() == "one"
    run("umount", "m")


def test_a_view(command: Command, run: Run) -> None:
    """Of a directory, by a path from here; the command line makes it whole."""
    run("create", "--opt", "from=./l2", "view")
    run("mount", "view", "m")
    (command.target / "file").write_text("changed")
    (command.target / "d/deep").unlink()
    run("umount", "m")
    assert (command.base / "l2/file").read_text() == "two"
    assert (command.base / "l2/d/deep").exists()
    (told,) = json.loads(run("inspect", "view").stdout)
    assert told["Options"] == {"from": f"{command.base}/l2"}
    assert run("clone", "view", "copy").stdout == "copy\n"
    run("mount", "copy", "m")
    assert (command.target / "file").read_text() == "changed"
    run("umount", "m")


def test_a_view_of_an_image(command: Command, run: Run) -> None:
    environment = {"UNIONFS_ROOT": str(command.base / "store")}
    command.run("image", "import", "l2", "tool:1", env=environment)
    for name in ("one", "two"):
        run("create", "--opt", "from=tool:1", name)
    run("mount", "one", "m")
    (command.target / "file").write_text("changed")
    run("umount", "m")
    run("mount", "two", "m")
    assert (command.target / "file").read_text() == "two"
    assert (command.target / "d/deep").read_text() == "deep"
    run("umount", "m")


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.zst", "zst"])
def test_backup_and_restore(command: Command, run: Run, ending: str) -> None:
    run("create", "data")
    run("mount", "data", "m")
    (command.target / "file").write_text("kept")
    run("umount", "m")
    path = command.base / f"backup.{ending}"
    done = run("backup", "data", str(path))
    assert (done.stdout, done.stderr) == ("", "")
    magic = {"tar": b"PaxHeaders/./", "gz": b"\x1f\x8b", "tgz": b"\x1f\x8b"}.get(
        ending.rpartition(".")[2], b"\x28\xb5\x2f\xfd"
    )
    assert path.read_bytes().startswith(magic)
    listed = subprocess.run(["tar", "-tf", str(path)], check=True, capture_output=True, text=True)
    assert listed.stdout == "./\nfile\n"
    run("restore", str(path), "again")
    run("mount", "again", "m")
    assert (command.target / "file").read_text() == "kept"
    run("umount", "m")


def test_through_pipes(command: Command, run: Run) -> None:
    run("create", "data")
    with (command.base / "out").open("wb") as out:
        run("backup", "data", "-", "--compression", "zstd", stdout=out)
    with (command.base / "out").open("rb") as file:
        patch = f"import os; os.dup2({file.fileno()}, 0)"
        run("restore", "-", "again", patch=patch, pass_fds=[file.fileno()])
    assert run("ls", "-q").stdout == "again\ndata\n"


def test_a_backup_that_fails_leaves_the_last_one(command: Command, run: Run) -> None:
    path = command.base / "backup.tar"
    path.write_text("the last one")
    for words in (["nope", str(path)], ["data", str(command.base / "nowhere/x.tar")]):
        run("backup", *words, status=2 if "data" in words and "nope" not in words else 1)
        run("create", "data")
    assert path.read_text() == "the last one"
    assert sorted(name for name in os.listdir(command.base) if "backup" in name) == ["backup.tar"]


@pytest.mark.parametrize("nameless", [True, False])
@pytest.mark.parametrize(
    ("number", "status"), [("SIGTERM", 8), ("SIGHUP", 8), ("SIGINT", 8), ("SIGKILL", -9)]
)
def test_a_backup_that_is_ended_leaves_the_last_one(
    command: Command, run: Run, number: str, status: int, *, nameless: bool
) -> None:
    run("create", "data")
    path = command.base / "backup.tar"
    path.write_text("the last one")
    patch = (
        "import os, signal, unionfs.store.backup as backup\n"
        "def half(_volumes, _name, write, **_):\n"
        f"    write(b'half'); os.kill(os.getpid(), signal.{number}); write(b'more')\n"
        "backup.backup = half\n"
    )
    if not nameless:
        patch += f"os.O_TMPFILE = {os.O_CREAT}\n"  # of a directory: EISDIR
    done = run("backup", "data", str(path), patch=patch, status=status)
    assert done.stderr == ("unionfs: interrupted\n" if status == 8 else "")
    assert path.read_text() == "the last one"
    if nameless or status == 8:
        found = [name for name in os.listdir(command.base) if "backup" in name]
        assert found == ["backup.tar"]


def test_ended_twice_tidies_up_all_the_same(command: Command, run: Run) -> None:
    run("create", "data")
    patch = (
        "import os, signal, unionfs.store.backup as backup\n"
        "def half(*_, **__):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally: os.kill(os.getpid(), signal.SIGTERM); print('tidied up')\n"
        "backup.backup = half\n"
    )
    assert run("backup", "data", "backup.tar", patch=patch, status=8).stdout == "tidied up\n"


def test_nohup_holds(command: Command, run: Run) -> None:
    patch = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from unionfs.store.volumes import Volumes\n"
        "Volumes.all = lambda *_, **__: os.kill(os.getpid(), signal.SIGHUP) or []"
    )
    assert run("ls", "-q", patch=patch).stdout == ""


def test_one_in_use_is_told_of(command: Command, run: Run) -> None:
    run("create", "data")
    run("mount", "data", "m", "--id", "web")
    done = run("backup", "data", "backup.tar")
    assert done.stderr == (
        "unionfs: data: was in use by web while it was read: what changed meanwhile may be of"
        " different moments\n"
    )
    run("umount", "m")


def test_progress_on_a_terminal(command: Command, run: Run) -> None:
    """Bytes and their rate; and nothing of it in a file."""
    run("create", "data")
    run("mount", "data", "m")
    for number in range(40):
        (command.target / f"file{number}").write_bytes(os.urandom(1 << 20))
    run("umount", "m")
    ours, theirs = pty.openpty()
    program = command.start(
        "volume",
        "backup",
        "data",
        "backup.tar.gz",
        env={"UNIONFS_ROOT": str(command.base / "store")},
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 4096):
            shown += data
    except OSError:
        pass  # the end of a terminal
    os.close(ours)
    program.communicate(timeout=30)
    assert program.returncode == 0
    assert re.search(rb"data  [\d.]+ MiB  [\d.]+ MiB/s", shown)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["create", "a"], "create a: volume name is too short"),
        (["create", "é"], 'create é: "é" includes invalid characters'),
        (["create", "a/b"], 'includes invalid characters for a local volume name, only "[a-zA-Z'),
        (["create", "one", "two"], "see unionfs volume --help"),
        (["create", "--opt", "size"], "--opt size: not KEY=VALUE"),
        (["create", "--opt", "size=1g", "vol"], "the driver overlay cannot limit a volume"),
        (["create", "--opt", "sise=1g", "vol"], 'invalid option: "sise"'),
        (["create", "--driver", "zfs", "vol"], "zfs: no such driver; there are overlay"),
        (["create", "--label", "=x", "vol"], "--label =x: has no name"),
        (["ls", "--filter", "colour=red"], "invalid filter 'colour'"),
        (["ls", "--filter", "dangling"], "bad format of filter (expected name=value)"),
        (["ls", "--filter", "dangling=maybe"], "invalid filter 'dangling=maybe'"),
        (["ls", "nope"], "see unionfs volume --help"),
        (["mount", "nope", "m"], "get nope: no such volume"),
        (["umount", "m"], "m: no volume of"),
        (["clone", "nope", "new"], "get nope: no such volume"),
        (["snapshot", "nope"], "get nope: no such volume"),
        (["restore", "l1/file", "vol"], "l1/file: no tar archive"),
        (["list"], "volume list: unknown; there are create, inspect"),
    ],
)
def test_bad_input(refused: Callable[..., str], arguments: list[str], told: str) -> None:
    assert told in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["ls", "--format", "{{.Nope}}"], 1, "can't evaluate field Nope"),
        (["create", "vol", "--opt", "type=tmpfs"], 1, "there is one with other options: none"),
        (["backup", "vol", "file.zip"], 1, "end the name in one of .tar, .gz, .tgz"),
        (["backup", "vol", "/dev/null", "--compression", "none"], 1, "not a regular file"),
        (["backup", "vol", "x.tar", "--compression", "lz4"], 1, "it is gzip, zstd or none"),
        (["clone", "vol", "vol"], 1, "volume name must be unique"),
        (["restore", "nowhere.tar", "vol"], 2, "nowhere.tar: No such file or directory"),
        (["mount", "vol", "nowhere"], 32, "nowhere: not a directory"),
    ],
)
def test_bad_input_about_one(
    run: Run, refused: Callable[..., str], arguments: list[str], status: int, told: str
) -> None:
    run("create", "vol")
    assert told in refused(*arguments, status=status)


def test_a_bad_archive(command: Command, run: Run, refused: Callable[..., str]) -> None:
    run("create", "vol")
    with tarfile.open(command.base / "bad.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("fine"))
        archive.addfile(tarfile.TarInfo("../out"), io.BytesIO())
    told = refused("restore", "bad.tar", "vol")
    assert told == "bad.tar: member ../out: ../out leads out of the tree"


def test_what_a_crash_left(command: Command, run: Run) -> None:
    """A restore is killed; what it had made is nobody's."""
    run("create", "vol")
    with tarfile.open(command.base / "good.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    patch = (
        "import os; from unionfs.store.volumes import Volumes\n"
        "Volumes.replace = lambda *_: os.kill(os.getpid(), 9)"
    )
    run("restore", "good.tar", "vol", status=-9, patch=patch)
    (left,) = run("cleanup").stdout.splitlines()
    assert left.startswith("volume/vol/")
    assert run("cleanup").stdout == ""


def test_unmounted_by_hand_and_another_mount(command: Command, run: Run) -> None:
    run("create", "vol")
    run("mount", "vol", "m")
    system.umount(command.target)
    run("rm", "vol")
