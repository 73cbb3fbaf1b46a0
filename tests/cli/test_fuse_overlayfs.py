"""`unionfs` by the name of fuse-overlayfs: its options, its answers, its exit status.

The program of the distribution says what these are, where it is installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.conftest import PATIENCE, Command, wait_for_end
from tests.system import in_child
from unionfs import __version__
from unionfs.cli import usage
from unionfs.fuse import mounting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.needs_root

Run = "Callable[..., subprocess.CompletedProcess[str]]"
FUSE_SUPER_MAGIC = "65735546"


@pytest.fixture
def run(command: Command) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the program by that name, with its path before it as engines have it."""
    return partial(command.run, name="/usr/bin/fuse-overlayfs")


def peer(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the distribution's program, which must not mount."""
    program = shutil.which("fuse-overlayfs")
    if program is None:
        pytest.skip("fuse-overlayfs is not installed")
    return subprocess.run(
        [program, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=30
    )


def test_the_call_of_an_engine(command: Command, run: Any) -> None:
    """One `-o` with an empty option and words of podman's, one argument, status 0, silence."""
    done = run("-o", f'{command.layers},,volatile,private,context="a:b:c0,c1",', "m")
    assert (done.stdout, done.stderr) == ("", "")
    kind = subprocess.run(
        ["stat", "-f", "-c", "%t", command.target],
        capture_output=True,
        check=True,
        text=True,
    )
    assert kind.stdout.strip() == FUSE_SUPER_MAGIC, "engines count their mounts by it"
    (command.target / "new").write_text("x")
    assert (command.base / "u/new").read_text() == "x"
    entry = mounting.mount_at(os.fsencode(command.target))
    assert entry is not None
    assert entry.source == b"fuse-overlayfs"
    assert "allow_other" in entry.super_options
    assert "default_permissions" in entry.super_options


def test_a_layer_of_an_engine_is_read_only_without_upper(command: Command, run: Any) -> None:
    (command.base / "link").symlink_to("l1")
    run("-o", "lowerdir=link/../l1:link/../l2,workdir=w", "m")
    assert (command.target / "d/deep").read_text() == "deep"
    with pytest.raises(OSError, match="Read-only"):
        (command.target / "new").touch()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("private", []),
        ("rshared,slave,unbindable", []),
        ("wibble", ["wibble"]),
        ("wibble=5,upperdri=/u", ["wibble=5", "upperdri=/u"]),
        ("plugins=/a.so", ["plugins=/a.so"]),
        ("metacopy=on,volatile=1", ["metacopy=on", "volatile=1"]),
        ("clone_fd,max_idle_threads=3,threaded=1,fast_ino=1,writeback=0,xino=off,ino32_t", []),
        ("static_nlink,noacl,noxattrs=1,redirect_dir=off,timeout=7,fsync=0", []),
    ],
)
def test_what_is_unknown_is_named_and_ignored(
    command: Command, run: Any, words: str, named: list[str]
) -> None:
    done = run("-o", f"{command.layers},{words}", "m")
    assert done.stderr.splitlines() == [f"unknown argument ignored: {word}" for word in named]
    assert (command.target / "file").read_text() == "one"


def test_unknown_arguments_too(command: Command, run: Any) -> None:
    done = run("--wibble", "-o", command.layers, "-x", "m")
    assert done.stderr.splitlines() == [
        "unknown argument ignored: --wibble",
        "unknown argument ignored: -x",
    ]


def test_options_add_up_and_the_last_counts(command: Command, run: Any) -> None:
    run("-olowerdir=none", "-o", "lowerdir=l1:l2", "-o", "upperdir=u,workdir=w", "m")
    assert command.info()["upperdir"] == os.fspath(command.base / "u")


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(command: Command, run: Any, flag: str) -> None:
    said = run(flag).stdout
    assert said == f"fuse-overlayfs: version 2.0.0 (unionfs {__version__})\n"
    line = next(
        line
        for line in peer(flag, cwd=command.base).stdout.splitlines()
        if line.startswith("fuse-overlayfs")
    )
    assert said.split()[:2] == line.split()[:2]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(run: Any, flag: str) -> None:
    assert run(flag).stdout.strip() == usage.FUSE_OVERLAYFS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no mountpoint specified"),
        (["-o", "lowerdir=l1"], "no mountpoint specified"),
        (["-o"], "-o needs a value"),
        (["m"], "lowerdir= is missing"),
        (["-o", "lowerdir=none", "m"], "lowerdir=none: No such file or directory"),
        (["-o", "lowerdir=l1,upperdir=none,workdir=w", "m"], "upperdir=none: No such file"),
        (["-o", "lowerdir=l1,upperdir=u", "m"], "upperdir=u: workdir= is missing"),
        (["-o", "lowerdir=l1,upperdir=u,workdir=none", "m"], "workdir=none: No such file"),
        (["-o", "lowerdir=l1,uidmapping=0:1000", "m"], "uidmapping=0:1000: not triples"),
        (["-o", "lowerdir=l1,timeout=x", "m"], "timeout=x: "),
        (["-o", "lowerdir=l1", "none"], "none: No such file or directory"),
    ],
)
def test_what_fails_ends_with_1_and_one_line(
    command: Command, run: Any, arguments: list[str], said: str
) -> None:
    """Engines paste the line into their own; the peer's status is the same."""
    done = run(*arguments, status=1)
    assert done.stdout == ""
    assert done.stderr.startswith(f"fuse-overlayfs: {said}")
    assert done.stderr.count("\n") == 1
    assert not command.mounted()
    if arguments[-1:] != ["timeout=x"] and not any("timeout" in word for word in arguments):
        assert peer(*arguments, cwd=command.base).returncode == 1


@pytest.mark.parametrize("arguments", [["-f"], ["-d"], ["--debug"], ["-o", "debug"]])
def test_the_foreground(command: Command, arguments: list[str]) -> None:
    process = command.start(*arguments, "-o", command.layers, "m", name="fuse-overlayfs")
    try:
        _wait(lambda: command.mounted() != [])
        command._guard()
        assert (command.target / "file").read_text() == "one"
        assert process.poll() is None
        assert subprocess.run(["umount", str(command.target)], check=False).returncode == 0
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0
    assert (b"DEBUG" in said) == (arguments != ["-f"])


def _wait(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end, "never came"
        time.sleep(0.01)


def test_a_reader_of_both_streams_sees_their_end(command: Command) -> None:
    """Engines wait for it, with the daemon running on."""
    reader, writer = os.pipe()
    process = command.start(
        "-o", command.layers, "m", name="fuse-overlayfs", stdout=writer, stderr=writer
    )
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b""
    assert process.wait(PATIENCE) == 0
    command._guard()
    assert command.info()["state"] == "live"


@pytest.mark.parametrize("unmount", [["fusermount3", "-u"], ["umount"], ["umount", "-l"]])
def test_every_way_to_unmount_ends_the_daemon(
    command: Command, run: Any, unmount: list[str]
) -> None:
    run("-o", command.layers, "m")
    (command.target / "new").write_text("kept")
    pid = command.info()["pid"]
    subprocess.run([*unmount, str(command.target)], check=True)
    # Podman renames another directory over it at once.
    (command.base / "m.1").mkdir()
    (command.base / "m.1").rename(command.target)
    assert wait_for_end(pid)
    assert (command.base / "u/new").read_text() == "kept"


def test_the_environment_can_forbid_passthrough(command: Command, run: Any) -> None:
    run("-o", command.layers, "m", env={"FUSE_OVERLAYFS_NO_PASSTHROUGH": "1"})
    assert "passthrough=off" in command.info()["options"]


@pytest.mark.parametrize("options", ["", ",noacl"])
def test_the_kernel_asks_for_acls_only_where_there_may_be_some(
    command: Command, options: str
) -> None:
    process = command.start("-f", "-o", command.layers + options, "m", name="fuse-overlayfs")
    try:
        _wait(lambda: command.mounted() != [])
        command._guard()
        in_child((command.target / "d/deep").read_text, uid=5)
        process.send_signal(signal.SIGUSR1)
        os.stat(command.target / "d/deep")
        subprocess.run(["umount", str(command.target)], check=True)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert (b"GETXATTR=" in said) == (options == "")


def test_statistics_by_signal(command: Command) -> None:
    """SIGUSR1, as of the peer: what it counts goes to its log, and it lives on."""
    process = command.start("-f", "-o", command.layers, "m", name="fuse-overlayfs")
    try:
        _wait(lambda: command.mounted() != [])
        command._guard()
        os.stat(command.target / "file")
        process.send_signal(signal.SIGUSR1)
        os.stat(command.target / "d/deep")
        subprocess.run(["umount", str(command.target)], check=True)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0
    (line,) = said.decode().splitlines()
    assert "nodes" in line
    assert "LOOKUP=" in line
