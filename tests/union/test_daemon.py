"""The daemon as a process: what it holds, how it ends, what it survives."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import build, tree
from tests.mounts import Layers, device_minor
from tests.system import attempt

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

Mount = Callable[..., Any]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def forget() -> None:
    """Make the kernel forget all names and inodes that nobody uses."""
    gc.collect()
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")


def test_descriptors_are_given_back(layers: Layers, union: Mount) -> None:
    for index in range(200):
        build.write(layers.lowers[index % 2] / f"d{index % 20}" / f"f{index}", "x")
    mounted = union()
    pid = mounted.process.pid
    (mounted.root / "warm").touch()
    forget()
    time.sleep(0.3)
    before = descriptors(pid)
    tree.snapshot(mounted.root)
    for path in sorted(mounted.root.rglob("f*")):
        path.write_text("changed")
        path.rename(path.parent / f"{path.name}-moved")
    for path in sorted(mounted.root.glob("d1*")):
        path.rename(mounted.root / f"{path.name}-moved")
    tree.snapshot(mounted.root)
    end = time.monotonic() + 10
    while descriptors(pid) > before + 4 and time.monotonic() < end:
        forget()
        time.sleep(0.2)
    assert descriptors(pid) <= before + 4


def test_files_stay_right_after_being_forgotten(layers: Layers, union: Mount) -> None:
    for index in range(50):
        build.write(layers.lowers[0] / "d" / f"{index}", str(index))
    root = union().root
    numbers = {}
    for index in range(50):
        (root / "d" / f"{index}").rename(root / f"moved-{index}")
        numbers[index] = (root / f"moved-{index}").stat().st_ino
    forget()
    for index in range(50):
        assert (root / f"moved-{index}").read_text() == str(index)
        assert (root / f"moved-{index}").stat().st_ino == numbers[index]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_unmount(layers: Layers, union: Mount, number: signal.Signals) -> None:
    mounted = union()
    (mounted.root / "file").write_text("x")
    mounted.process.send_signal(number)
    assert mounted.process.wait(5) == 0
    assert device_minor(mounted.root) is None
    mounted.unmount()


def test_signal_while_a_file_is_open(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "file", "x")
    mounted = union()
    fd = os.open(mounted.root / "file", os.O_RDONLY)
    mounted.process.send_signal(signal.SIGTERM)
    assert mounted.process.wait(5) == 0
    assert device_minor(mounted.root) is None
    attempt(os.close, fd)
    mounted.unmount()


def test_lazy_unmount_ends_the_daemon_after_the_last_use(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "file", "content")
    mounted = union()
    with open(mounted.root / "file", "rb") as file:
        subprocess.run(["umount", "-l", mounted.root], check=True)
        assert file.read() == b"content"
        assert mounted.process.poll() is None
    assert mounted.process.wait(2) == 0
    mounted.unmount()


def test_umount_is_refused_while_in_use(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "file", "content")
    mounted = union()
    with open(mounted.root / "file", "rb") as file:
        assert subprocess.run(["umount", mounted.root], check=False, capture_output=True).returncode
        assert file.read() == b"content"
    subprocess.run(["umount", mounted.root], check=True)
    assert mounted.process.wait(2) == 0
    mounted.unmount()


def test_killed_daemon_leaves_an_upper_that_mounts(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "file", "content")
    mounted = union()
    (mounted.root / "file").write_text("new")
    mounted.kill()
    assert (union().root / "file").read_text() == "new"


def test_aborted_connection_ends_the_daemon(layers: Layers, union: Mount) -> None:
    mounted = union()
    Path(f"/sys/fs/fuse/connections/{mounted.minor}/abort").write_text("1")
    assert attempt(os.listdir, mounted.root).error in ("ENOTCONN", "ECONNABORTED")
    mounted.process.wait(5)
    mounted.bury()


def test_daemon_keeps_nothing_of_its_caller(layers: Layers, union: Mount) -> None:
    mounted = union()
    assert os.readlink(f"/proc/{mounted.process.pid}/fd/0").startswith("/dev/null")
    assert Path(f"/proc/{mounted.process.pid}/cwd").resolve() != mounted.root


def test_many_requests_at_once(layers: Layers, union: Mount) -> None:
    """Eight clients, each with its own directory, and all of them in one."""
    for index in range(100):
        build.write(layers.lowers[0] / "shared" / f"{index}", str(index))
    root = union().root
    children = []
    for client in range(8):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _client(root, client)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 8
    names = os.listdir(root / "shared")
    assert len(names) == len(set(names)) == 100 + 8 * 20


def _client(root: Path, client: int) -> None:
    mine = root / f"client-{client}"
    mine.mkdir()
    for index in range(100):
        build.write(mine / f"{index}", "x" * index)
        with open(root / "shared" / f"{index}", "a") as file:
            file.write(f"{client}")
        if index % 5 == 0:
            (mine / f"{index}").rename(root / "shared" / f"{client}-{index}")
        assert len(os.listdir(root / "shared")) >= 100


def test_bug_is_an_error_of_one_request(layers: Layers, union: Mount) -> None:
    """It is answered EIO and logged, and the mount lives on."""
    (layers.lowers[0] / "link").symlink_to("file")
    build.write(layers.lowers[0] / "file", "content")
    mounted = union(program=("-m", "tests.union.faulty"))
    for _ in range(3):
        assert attempt(os.readlink, mounted.root / "link").error == "EIO"
        assert (mounted.root / "file").read_text() == "content"
    (mounted.root / "new").write_text("new")
    assert mounted.end() == 0
    assert "ZeroDivisionError: a bug" in mounted.log
    assert "readlink failed" in mounted.log.lower()
