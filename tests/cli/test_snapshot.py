"""``unionfs snapshot``, as a person types it."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import system
from tests.cli.conftest import Command, Run, in_store
from tests.ordinary import as_user
from unionfs.errors import UnsupportedError
from unionfs.store.store import Store

pytestmark = pytest.mark.needs_root


@pytest.fixture
def run(command: Command) -> Run:
    """Runs ``unionfs snapshot`` on a store of the test's own."""

    return in_store(command, "snapshot")


@pytest.mark.parametrize("driver", [[], ["--storage-opt", "mounter=kernel"]])
def test_three_from_one_base(command: Command, run: Run, driver: list[str]) -> None:
    """What one changes the others do not see; the base is on the disk once."""
    target = command.target
    run("prepare", "making", *driver)
    run("mount", "making", "m", *driver)
    (target / "big").write_bytes(bytes(1_000_000) + os.urandom(1_000_000))
    (target / "file").write_text("base")
    run("umount", "m", *driver)
    run("commit", "base", "making", *driver)
    for key in ("C1", "C2", "C3"):
        run("prepare", key, "base", *driver)
    run("mount", "C1", "m", *driver)
    (target / "file").write_text("changed")
    (target / "new").write_text("")
    (target / "big").unlink()
    run("umount", "m", *driver)
    run("mount", "C2", "m", *driver)
    assert (target / "file").read_text() == "base"
    assert sorted(os.listdir(target)) == ["big", "file"]
    run("umount", "m", *driver)
    assert run("diff", "C1", *driver).stdout == "D /big\nC /file\nA /new\n"
    assert run("diff", "C2", *driver).stdout == ""
    used = {row["key"]: row["size"] for row in json.loads(run("usage", "--json").stdout)}
    assert used["base"] > 1_900_000
    assert max(used[key] for key in ("C1", "C2", "C3")) < 50_000
    # One is gone, one becomes a base itself.
    run("rm", "C3")
    run("commit", "base2", "C1", "--label", "of=C1")
    (info,) = json.loads(run("info", "base2", "--json").stdout)
    assert (info["kind"], info["parent"], info["labels"]) == ("committed", "base", {"of": "C1"})
    run("view", "look", "base2")
    run("mount", "look", "m", *driver)
    assert (target / "file").read_text() == "changed"
    with pytest.raises(OSError, match="Read-only"):
        (target / "other").write_text("")
    run("umount", "m", *driver)


def test_the_list(run: Run) -> None:
    assert run("ls").stdout == ""
    run("prepare", "one")
    run("commit", "a name", "one")
    run("prepare", "two", "a name")
    lines = run("ls").stdout.splitlines()
    assert [re.split(r"  +", line)[:3] for line in lines] == [
        ["KEY", "PARENT", "KIND"],
        ["a name", "-", "committed"],
        ["two", "a name", "active"],
    ]
    assert [row["key"] for row in json.loads(run("ls", "--json").stdout)] == ["a name", "two"]


def test_who_uses_it(command: Command, run: Run, refused: Callable[..., str]) -> None:
    run("prepare", "key")
    run("mount", "key", "m")
    told = f"key: in use by {command.target}"
    assert refused("rm", "key") == told
    assert refused("commit", "name", "key") == told
    # Unmounted behind our back: nobody uses it any more.
    system.umount(command.target)
    run("rm", "key")


def test_mounting_on_what_is_there(command: Command, run: Run, refused: Callable[..., str]) -> None:
    run("prepare", "key")
    assert refused("mount", "key", "nowhere", status=32) == "nowhere: not a directory"
    assert refused("umount", "m") == f"m: no snapshot of {command.base}/store is mounted here"
    assert refused("mount", "other", "m") == "other: no such snapshot"
    assert command.mounted() == []


def test_what_mounts_prints_can_be_run(command: Command, run: Run) -> None:
    run("prepare", "one")
    run("commit", "base", "one")
    run("prepare", "key", "base")
    line = run("mounts", "key", "m", "--storage-opt", "mounter=kernel").stdout
    subprocess.run(["sh", "-ec", line], cwd=command.base, check=True)
    (command.target / "file").write_text("x")
    system.umount(command.target)
    assert run("diff", "key").stdout == "A /file\n"


def test_labels_and_capture(command: Command, run: Run) -> None:
    run("prepare", "key", "--label", "a=1", "--label", "b=2")
    done = json.loads(run("label", "key", "a=", "c=3", "--json").stdout)
    assert done["labels"] == {"b": "2", "c": "3"}
    run("capture", "state", "key", "--label", "why=test")
    (info,) = json.loads(run("info", "key", "--json").stdout)
    assert (info["kind"], info["parent"]) == ("active", "state")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ls", "--driver", "zfs"], "zfs: no such driver; there are overlay"),
        (["ls", "--storage-opt", "size"], "--storage-opt size: not KEY=VALUE"),
        (
            ["ls", "--storage-opt", "size=1"],
            "overlay: unknown option size; it knows: mounter, nfs_export",
        ),
        (["prepare", "key", "--size", "1g"], "cannot limit the size"),
        (["prepare", "key", "--size", "big"], "--size big: not a size, like 64m or 10g"),
        (["prepare", "key", "nowhere"], "nowhere: no such snapshot"),
        (["prepare", ""], "an empty key"),
        (["commit", "name"], "see unionfs snapshot --help"),
        (["freeze"], "snapshot freeze: unknown; there are prepare, view"),
        (["ls", "--colour"], "--colour: unknown argument"),
    ],
)
def test_bad_input(refused: Callable[..., str], arguments: list[str], told: str) -> None:
    assert told in refused(*arguments)


def test_a_newer_store_stays_untouched(
    command: Command, run: Run, refused: Callable[..., str]
) -> None:
    run("prepare", "key")
    for name in ("store.db", "overlay/metadata.db"):
        path = command.base / "store" / name
        with sqlite3.connect(path) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            database.execute("PRAGMA user_version = 99")
        database.close()
        before = path.read_bytes()
        told = refused("rm", "key")
        assert told.endswith("use the newer one")
        assert told.startswith(f"{path}: version 99 is newer")
        assert path.read_bytes() == before
        with sqlite3.connect(path) as database:
            database.execute(f"PRAGMA user_version = {version}")
        database.close()
    run("rm", "key")


def test_what_is_no_store(command: Command, run: Run, refused: Callable[..., str]) -> None:
    store = command.base / "store"
    store.mkdir()
    (store / "store.db").write_text("this is no database, and long enough to be seen as none")
    assert "file is not a database" in refused("ls")
    (store / "store.db").unlink()
    with sqlite3.connect(store / "store.db") as database:
        database.execute("CREATE TABLE another (program TEXT)")
    database.close()
    assert refused("ls") == f"{store}/store.db: not a database of this program's"
    assert refused("prepare", "key", "--root", "/dev/null").startswith(
        "/dev/null: Not a directory; choose"
    )


@pytest.mark.parametrize("name", ["store.db", "overlay/metadata.db"])
@pytest.mark.parametrize("emptied", [False, True], ids=["gone", "empty"])
def test_a_lost_database_makes_no_garbage_of_the_data(
    command: Command, run: Run, refused: Callable[..., str], name: str, emptied: bool
) -> None:
    run("prepare", "key")
    run("mount", "key", "m")
    (command.target / "file").write_text("precious")
    run("umount", "m")
    for path in (command.base / "store").glob(f"{name}*"):
        path.unlink()
    path = command.base / "store" / name
    if emptied:
        path.touch()
    for verb in ("ls", "cleanup"):
        assert refused(verb).startswith(f"{path}: is gone")
    (data,) = (command.base / "store/overlay/snapshots").glob("*/fs/file")
    assert data.read_text() == "precious"


@pytest.mark.parametrize("block", ["1024", "4096"])
def test_a_full_disk_can_be_emptied(
    command: Command, run: Run, refused: Callable[..., str], block: str
) -> None:
    disk = command.base / "disk"
    disk.mkdir()
    image = command.base / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", block, str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True)
    root = ["--root", str(disk / "store")]
    run("prepare", "a", *root)
    run("commit", "base", "a", *root)
    run("prepare", "key", "base", *root)
    run("mount", "key", "m", *root)
    filling = ["dd", "if=/dev/zero", f"of={command.target}/fill", "bs=4k"]
    assert b"No space" in subprocess.run(filling, capture_output=True, check=False).stderr
    for _ in range(2):
        assert "key" in run("ls", *root).stdout
    run("umount", "m", *root)
    run("rm", "key", *root)
    run("prepare", "again", "base", *root)


def test_a_broken_store(command: Command, run: Run, refused: Callable[..., str]) -> None:
    run("prepare", "key")
    path = command.base / "store/overlay/metadata.db"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(range(256)) * 64)
    told = refused("info", "key")
    assert told.startswith(f"{path}: ")
    assert "malformed" in told


def test_a_file_system_without_xattrs(command: Command, refused: Callable[..., str]) -> None:
    place = command.base / "fat"
    place.mkdir()
    system.mount("none", place, "ramfs")
    told = refused("prepare", "key", "--root", str(place / "store"))
    assert "keeps no extended attributes" in told
    assert "--root" in told


def test_a_store_on_a_read_only_file_system(command: Command, refused: Callable[..., str]) -> None:
    place = command.base / "disk"
    place.mkdir()
    system.mount("none", place, "tmpfs")
    store = place / "store"
    command.run("snapshot", "prepare", "key", "--root", str(store))
    system.mount(None, place, None, system.MS_REMOUNT | system.MS_RDONLY)
    for verb in (["ls"], ["prepare", "other"]):
        told = refused(*verb, "--root", str(store))
        assert told.startswith(f"{store}/store.db: Read-only file system")
    told = refused("prepare", "key", "--root", str(place / "other"))
    assert told.startswith(f"{place}/other: Read-only file system")


@pytest.mark.parametrize(
    "verb", [["snapshot", "ls"], ["volume", "prune", "-f"], ["image", "rm", "app"]]
)
def test_a_mistyped_root_does_not_become_a_store(command: Command, verb: list[str]) -> None:
    for place in ("nowhere", "l1", "l1/file"):
        done = command.run(*verb, "--root", place, status=1)
        assert done.stderr == f"unionfs: {place}: no store is here\n"
    done = command.run("run", "--root", "nowhere", "app", status=125)
    assert done.stderr == "unionfs: nowhere: no store is here\n"
    assert not (command.base / "nowhere").exists()
    assert os.listdir(command.base / "l1") == ["file"]
    command.run("volume", "create", "--root", "nowhere")
    command.run("snapshot", "ls", "--root", "nowhere")


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_store_of_another_user(command: Command, mode: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        store = Path(place, "store")
        command.run("snapshot", "prepare", "key", "--root", str(store))
        store.chmod(mode)

        def told() -> str:
            with pytest.raises(UnsupportedError) as caught:
                Store.open(str(store), "overlay", {})
            return str(caught.value)

        assert as_user(told).startswith(f"{store}/store.db: Permission denied; ")


def test_a_killed_holder_is_forgotten(command: Command, run: Run) -> None:
    run("prepare", "key")
    run("mount", "key", "m")
    system.umount(command.target, system.MNT_DETACH)
    run("commit", "name", "key")


def test_dates_are_of_now(run: Run) -> None:
    run("prepare", "key")
    (info,) = json.loads(run("info", "key", "--json").stdout)
    assert info["created"].startswith(time.strftime("%Y-%m-%dT", time.gmtime()))


def test_ordinary_users_have_their_own(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unionfs.store.store import default_root  # noqa: PLC0415 - after the environment is set

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_root() == f"{tmp_path}/unionfs"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert default_root() == "/home/user/.local/share/unionfs"


@pytest.mark.parametrize("noun", ["snapshot", "volume"])
@pytest.mark.parametrize("target", ["/", "m/..", "store", "store/overlay", "link"])
def test_no_mount_covers_everything_or_the_store(command: Command, noun: str, target: str) -> None:
    (command.base / "link").symlink_to("store/overlay")
    environment = {"UNIONFS_ROOT": str(command.base / "store")}
    make = {"snapshot": "prepare", "volume": "create"}[noun]
    command.run(noun, make, "key", env=environment)
    # Were it not refused, nothing would be mounted or unmounted even so.
    patch = (
        "import unionfs.driver.attach as attach, unionfs.fuse.mounting as mounting\n"
        "def never(*_, **__): raise AssertionError\n"
        "attach.attach = attach.detach = mounting.unmount = never"
    )
    for words in (["mount", "key"], ["umount"]):
        done = command.run(noun, *words, target, env=environment, patch=patch, status=32)
        assert re.fullmatch(
            rf"unionfs: {re.escape(target)}: .*; choose another directory\n", done.stderr
        )
