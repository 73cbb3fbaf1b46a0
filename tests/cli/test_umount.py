"""`unionfs umount`, `ls`, and the other ways in which a union ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests import system
from tests.cli.conftest import Command, wait_for_end

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs_root


def test_the_daemon_is_gone_when_the_command_ends(command: Command) -> None:
    command.mount()
    (command.target / "new").write_text("x")
    pid = command.info()["pid"]
    done = command.run("umount", "m")
    assert (done.stdout, done.stderr) == ("", "")
    assert wait_for_end(pid, 0)
    assert not command.mounted()
    assert os.listdir(command.base / "w/work") == []
    # At once, by whoever: the locks on the layers are free.
    command.mount()
    assert (command.target / "new").read_text() == "x"


@pytest.mark.parametrize("way", ["m", "m/", "./l1/../m", "link", "/absolute"])
def test_targets_are_found_as_the_kernel_finds_them(command: Command, way: str) -> None:
    (command.base / "link").symlink_to("m")
    command.mount()
    command.run("umount", str(command.target) if way == "/absolute" else way)
    assert not command.mounted()


def test_a_union_in_use_is_not_unmounted(command: Command) -> None:
    command.mount()
    with open(command.target / "file", encoding="ascii"):
        done = command.run("umount", "m", status=32)
        assert done.stderr == f"unionfs: {command.target}: Device or resource busy\n"
        assert (command.target / "file").read_text() == "one"
    command.run("umount", "m")


@pytest.mark.parametrize("option", ["--lazy", "-l"])
def test_unless_lazily(command: Command, option: str) -> None:
    command.mount()
    pid = command.info()["pid"]
    with open(command.target / "file", "r+", encoding="ascii") as file:
        done = command.run("umount", option, "m")
        assert done.stderr == f"unionfs: m: still in use, served by process {pid}\n"
        assert not command.mounted()
        assert command.info()["state"] == "detached"
        assert file.read() == "one"
        file.write(" more")
    assert wait_for_end(pid, 2.0)
    assert (command.base / "u/file").read_text() == "one more"


def test_a_lazy_unmount_of_what_is_not_in_use_waits_too(command: Command) -> None:
    command.mount()
    pid = command.info()["pid"]
    assert command.run("umount", "--lazy", "m").stderr == ""
    assert wait_for_end(pid, 0)


@pytest.mark.parametrize(
    "unmount", [["umount", "m"], ["umount", "-l", "m"], ["fusermount3", "-u", "m"]]
)
def test_others_may_unmount_it(command: Command, unmount: list[str]) -> None:
    if shutil.which(unmount[0]) is None:
        pytest.skip(f"{unmount[0]} is not installed")
    command.mount()
    pid = command.info()["pid"]
    subprocess.run(unmount, cwd=command.base, check=True)
    assert wait_for_end(pid, 2.0)
    assert os.listdir(command.base / "w/work") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts(command: Command, number: signal.Signals) -> None:
    command.mount()
    pid = command.info()["pid"]
    os.kill(pid, number)
    assert wait_for_end(pid, 5.0)
    assert not command.mounted()


@pytest.mark.parametrize("lazy", [[], ["--lazy"]])
def test_a_dead_union_is_unmounted(command: Command, lazy: list[str]) -> None:
    command.mount()
    pid = command.info()["pid"]
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid)
    assert command.info()["state"] == "dead"
    said = command.mount(status=32).stderr
    assert said.startswith("unionfs: m: the daemon of what is mounted here has died; unmount that")
    command.run("umount", "m", *lazy)
    assert not command.mounted()
    command.mount()
    assert (command.target / "file").read_text() == "one"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("none", "none: No such file or directory"),
        ("l1", "l1: no union is mounted here"),
        ("m", "m: no union is mounted here"),
        ("/proc", "/proc: no union is mounted here"),
    ],
)
def test_what_is_no_union_is_left_alone(command: Command, target: str, said: str) -> None:
    assert command.refuse("umount", target, status=32) == said


def test_what_is_mounted_on_top_is_left_alone(command: Command) -> None:
    command.mount()
    system.mount("none", command.target, "tmpfs")
    done = command.run("umount", "m", status=32)
    assert done.stderr == "unionfs: m: no union is mounted here\n"
    system.umount(command.target)
    command.run("umount", "m")


@pytest.mark.parametrize("arguments", [[], ["m", "l1"], ["--wibble", "m"]])
def test_wrong_arguments(command: Command, arguments: list[str]) -> None:
    command.refuse("umount", *arguments, status=1)


def test_a_union_that_another_namespace_holds_is_not_waited_for_forever(
    command: Command, tmp_path: Path
) -> None:
    command.mount()
    pid = command.info()["pid"]
    ready = tmp_path / "ready"
    holder = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", f"touch {ready}; exec sleep 60"]
    )
    try:
        while not ready.exists():
            time.sleep(0.01)
        patch = "from unionfs import unmount; unmount._PATIENCE = 0.5"
        done = command.run("umount", "m", status=32, patch=patch)
        assert done.stderr == (
            f"unionfs: m: unmounted here, but process {pid} still serves it elsewhere\n"
        )
        assert command.info()["state"] == "detached"
    finally:
        holder.kill()
        holder.wait()
    assert wait_for_end(pid)


def test_a_union_that_is_mounted_twice_is_not_waited_for(command: Command) -> None:
    """As a volume is, which is bound from its store to where somebody wants it."""
    command.mount()
    pid = command.info()["pid"]
    bound = command.base / "bound"
    bound.mkdir()
    subprocess.run(["mount", "--bind", command.target, bound], check=True)
    try:
        began = time.monotonic()
        done = command.run("umount", "bound", status=32)
        assert time.monotonic() - began < 30  # not the minute that a daemon has for its end
        assert done.stderr == (
            f"unionfs: bound: unmounted here, but the union is mounted on {command.target} too\n"
        )
        assert not os.path.ismount(bound)
        assert command.info()["state"] == "live"
    finally:
        subprocess.run(["umount", bound], check=False, capture_output=True)
    command.run("umount", "m")
    assert wait_for_end(pid, 0)


# --- ls


def test_ls_lists_all_there_is_to_know(command: Command) -> None:
    command.run("mount", "SRC", "m", "-o", f"{command.layers},volatile,redirect_dir=off")
    base = os.fspath(command.base)
    row = command.info()
    assert row.pop("pid") > 1
    options = row.pop("options")
    assert {"volatile", "redirect_dir=off", "fsname=SRC"} <= set(options.split(","))
    device = os.stat(command.target).st_dev
    assert row == {
        "target": f"{base}/m",
        "source": "SRC",
        "state": "live",
        "session": "device",
        "device": f"{os.major(device)}:{os.minor(device)}",
        "lowerdirs": [f"{base}/l1", f"{base}/l2"],
        "upperdir": f"{base}/u",
        "workdir": f"{base}/w",
    }


def test_ls_prints_a_line_for_each(command: Command) -> None:
    name = command.base / "with space\n"
    name.mkdir()
    command.mount()
    command.run("mount", "-o", "lowerdir=l1", os.fspath(name))
    lines = command.run("ls").stdout.splitlines()
    assert lines[0].split() == ["TARGET", "STATE", "PID", "SESSION", "LAYERS"]
    mine = [line for line in lines if line.startswith(os.fspath(command.base))]
    assert len(mine) == 2
    base = command.base
    assert mine[0].split()[1:] == [
        "live",
        str(command.info()["pid"]),
        "device",
        f"{base}/u:{base}/l1:{base}/l2",
    ]
    # Unions of others may be in the list, and widen the columns.
    assert re.match(rf"{base}/with space\\x0a +live +\d+ +device +{base}/l1$", mine[1])


def test_ls_of_nothing(command: Command) -> None:
    assert os.fspath(command.base) not in command.run("ls").stdout
    assert isinstance(json.loads(command.run("ls", "--json").stdout), list)


def test_ls_does_not_ask_unions_that_do_not_answer(command: Command) -> None:
    command.mount()
    pid = command.info()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert command.info()["state"] == "live"
    finally:
        os.kill(pid, signal.SIGCONT)


def test_ls_takes_no_argument(command: Command) -> None:
    command.refuse("ls", "m", status=1)
    command.refuse("ls", "--wibble", status=1)


def test_a_reader_that_leaves_early(command: Command) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with command.start("diff", "--help", stdout=writer) as process:
        os.close(writer)
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b""
