"""What people do all day, done in a union: packages, git, Python, databases."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import system, tree
from tests.mounts import REPOSITORY, Layers
from tests.real import debian

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

Mount = Callable[..., Any]
SECONDS = 500.0


def run(*command: str | Path, **options: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        **options,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def debian_layers(scratch: Path) -> Layers:
    if shutil.which("debootstrap") is None:
        pytest.skip("needs debootstrap")
    layers = Layers(scratch / "debian", lowers=0)
    layers.lowers = [debian.root()]
    return layers


@pytest.mark.kernel_overlay
def test_packages_are_installed_in_a_chroot(
    debian_layers: Layers, union: Mount, kernel: Mount
) -> None:
    mounted = union(layers=debian_layers, seconds=SECONDS)
    root = mounted.root
    debian.share_apt_settings(root)
    system.mount("proc", root / "proc", "proc")
    try:
        run("chroot", root, "apt-get", "-q", "update")
        install = ("apt-get", "-qy", "install", "--no-install-recommends", "sqlite3", "file")
        run("chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", *install)
        assert "ELF" in run("chroot", root, "file", "/usr/bin/sqlite3")
        assert run("chroot", root, "dpkg", "--audit") == ""
        run("chroot", root, "dpkg", "--verify", "sqlite3", "file", "libc6", "dpkg")
        run("chroot", root, "apt-get", "-qy", "remove", "file")
        assert not (root / "usr/bin/file").exists()
    finally:
        system.umount(root / "proc", system.MNT_DETACH)
    installed = tree.snapshot(root)
    mounted.unmount()
    theirs = kernel(layers=debian_layers)
    tree.assert_same(installed, tree.snapshot(theirs.root), ignore=("nlink", "group"))


def test_git_clones_and_packs(layers: Layers, union: Mount) -> None:
    origin = layers.lowers[0] / "project"
    run("git", "clone", "-q", "--bare", "--no-hardlinks", REPOSITORY, origin)
    root = union(seconds=SECONDS).root
    git = ("git", "-c", "safe.directory=*", "-c", "user.name=T", "-c", "user.email=t@localhost")
    clone = root / "clone"
    run(*git, "clone", "-q", root / "project", clone)
    (clone / "new").write_text("new")
    run(*git, "-C", clone, "add", "new")
    run(*git, "-C", clone, "commit", "-qm", "new")
    run(*git, "-C", clone, "push", "-q", "origin", "HEAD:refs/heads/changed")
    for repository in (root / "project", clone):
        run(*git, "-C", repository, "gc", "-q", "--aggressive", "--prune=now")
        run(*git, "-C", repository, "fsck", "--strict")
    assert run(*git, "-C", clone, "status", "--porcelain") == ""
    changed = run(*git, "-C", root / "project", "rev-parse", "changed")
    assert changed == run(*git, "-C", clone, "rev-parse", "HEAD")


def test_python_environment_is_made_and_used(union: Mount) -> None:
    root = union(seconds=SECONDS).root
    environment = root / "environment"
    run(sys.executable, "-m", "venv", environment)
    package = root / "greeter"
    package.mkdir()
    (package / "greeter.py").write_text("def greet():\n    return 'hello'\n")
    site = run(
        environment / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
    )
    shutil.copy(package / "greeter.py", site.strip())
    run(environment / "bin/pip", "--version")
    caching = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    program = "import greeter, ssl; print(greeter.greet())"
    said = run(environment / "bin/python", "-c", program, env=caching)
    assert said == "hello\n"
    assert list(Path(site.strip()).glob("__pycache__/greeter*.pyc"))


def _rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
        count: int = database.execute("select count(*) from facts").fetchone()[0]
        return count


def _fill(path: Path, mode: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute(f"pragma journal_mode={mode}")
        database.execute("create table facts (number integer primary key, fact text)")
        database.executemany(
            "insert into facts (fact) values (?)", [(f"fact {n} " * 20,) for n in range(5000)]
        )
    database.close()


def _keep_reading(path: Path, stop: threading.Event, seen: list[int]) -> None:
    database = sqlite3.connect(path, timeout=60)
    while not stop.is_set():
        seen.append(database.execute("select count(*), max(number) from facts").fetchone()[0])
    database.close()


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite_over_a_lower_database(layers: Layers, union: Mount, mode: str) -> None:
    """Readers have the lower database open while the first transaction copies it up."""
    _fill(layers.lowers[0] / "facts.db", mode)
    mounted = union(seconds=SECONDS)
    path = mounted.root / "facts.db"
    stop, seen = threading.Event(), list[int]()
    readers = [threading.Thread(target=_keep_reading, args=(path, stop, seen)) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        _write(path, range(200))
    finally:
        stop.set()
        for reader in readers:
            reader.join(60)
    assert _rows(path) == 5200
    assert seen == sorted(seen) or set(seen) <= set(range(5000, 5201))
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
    mounted.unmount()
    again = union(seconds=SECONDS)
    assert _rows(again.root / "facts.db") == 5200


def _write(path: Path, numbers: Sequence[int]) -> None:
    database = sqlite3.connect(path, timeout=60)
    database.execute("pragma synchronous=full")
    for number in numbers:
        with database:
            database.execute("insert into facts (fact) values (?)", (f"new {number}",))
            database.execute("update facts set fact = fact || '.' where number % 500 = 0")
    database.close()
