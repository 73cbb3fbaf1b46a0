"""How a union ends on the direct session: synced, aborted, told to while it is in use."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests import system
from tests.cli.conftest import Command, wait_for_end
from tests.mounts import device_minor
from tests.watchdog import abort

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.needs_root

#: Syncing takes its time, and leaves a file when it was done.
SLOW_SYNC = """
import os, time
from unionfs.layer import syscalls
mark = os.path.abspath("synced")
sync = syscalls.syncfs
def slow(fd):
    time.sleep(1)
    sync(fd)
    open(mark, "x").close()
syscalls.syncfs = slow
"""


def in_foreground(command: Command, *extra: str) -> subprocess.Popen[bytes]:
    options = ",".join([command.layers, *extra])
    process = command.start("mount", "-f", "-o", options, "m")
    end = time.monotonic() + 20
    while device_minor(command.target) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    command._guard()
    return process


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    _, err = process.communicate(timeout=20)
    return process.returncode, err


# --- synced


@pytest.mark.parametrize("lazy", [[], ["--lazy"]])
def test_umount_waits_until_all_is_synced(command: Command, lazy: list[str]) -> None:
    command.mount(patch=SLOW_SYNC)
    (command.target / "new").write_text("x")
    pid = command.info()["pid"]
    command.run("umount", *lazy, "m")
    assert (command.base / "synced").exists()
    assert wait_for_end(pid, 0)


def test_a_plain_umount_does_not_wait(command: Command) -> None:
    command.mount(patch=SLOW_SYNC)
    pid = command.info()["pid"]
    system.umount(command.target)
    assert not (command.base / "synced").exists()
    assert wait_for_end(pid)
    assert (command.base / "synced").exists()


@pytest.mark.parametrize("options", ["volatile", "ro"])
def test_nothing_is_synced_where_nothing_is_promised(command: Command, options: str) -> None:
    command.mount(options, patch=SLOW_SYNC)
    command.run("umount", "m")
    assert not (command.base / "synced").exists()


def test_the_session_on_pyfuse3_does_not_sync(command: Command) -> None:
    command.mount("session=pyfuse3", patch=SLOW_SYNC)
    command.run("umount", "m")
    assert not (command.base / "synced").exists()


def test_a_sync_that_fails_is_told(command: Command) -> None:
    patch = (
        "import errno\nfrom unionfs.layer import syscalls\n"
        "def fail(fd): raise OSError(errno.EIO, 'Input/output error')\n"
        "syscalls.syncfs = fail"
    )
    with command.start("mount", "-f", "-o", command.layers, "m", patch=patch) as process:
        while device_minor(command.target) is None:
            time.sleep(0.01)
        command.info()
        system.umount(command.target)
        assert ended(process) == (2, b"unionfs: Input/output error\n")


def test_a_sync_of_the_union_is_the_kernels_alone(command: Command) -> None:
    """It writes back what is dirty, but does not hand the request on to a FUSE daemon."""
    command.mount(patch=SLOW_SYNC)
    subprocess.run(["sync", "-f", command.target], check=True)
    assert not (command.base / "synced").exists()


# --- the device is lost


def test_an_aborted_connection_ends_the_daemon(command: Command) -> None:
    with in_foreground(command) as process, open(command.target / "file", "rb") as file:
        minor = device_minor(command.target)
        assert minor is not None
        abort(minor)
        assert ended(process) == (0, b"")
        with pytest.raises(OSError, match="not connected") as caught:
            os.listdir(command.target)
        assert caught.value.errno == errno.ENOTCONN
        assert command.info()["state"] == "dead"
        file.close()
    command.run("umount", "m")
    command.mount()
    assert (command.target / "file").read_text() == "one"


def test_umount_by_force_while_in_use(command: Command) -> None:
    with in_foreground(command) as process:
        file = os.open(command.target / "file", os.O_RDONLY)
        subprocess.run(["umount", "-f", "m"], cwd=command.base, check=False, capture_output=True)
        assert ended(process) == (0, b"")
        os.close(file)
    if device_minor(command.target) is not None:
        command.run("umount", "m")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_in_use(command: Command, number: signal.Signals) -> None:
    with in_foreground(command) as process:
        file = os.open(command.target / "file", os.O_RDWR)
        os.write(file, b"two")
        process.send_signal(number)
        assert ended(process) == (0, b"")
        # What the kernel has of a file it may still show; nothing can be changed.
        assert system.attempt(os.write, file, b"x").error in ("ENOTCONN", "ECONNABORTED")
        os.close(file)
    assert device_minor(command.target) is None
    assert (command.base / "u/file").read_bytes() == b"two"
    assert os.listdir(command.base / "w/work") == []


@pytest.fixture
def writers(command: Command) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended with the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def _writer(command: Command, script: str, number: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sh", "-c", script, f"f{number}"],
        cwd=command.base,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_signal_while_many_requests_are_under_way(
    command: Command, writers: list[subprocess.Popen[bytes]]
) -> None:
    script = "while :; do echo x > m/$0; cat m/file m/$0; mv m/$0 m/$0-b; rm m/$0-b; done"
    with in_foreground(command) as process:
        writers += [_writer(command, script, number) for number in range(4)]
        time.sleep(0.5)
        process.terminate()
        assert ended(process) == (0, b"")
    assert device_minor(command.target) is None
    assert os.listdir(command.base / "w/work") == []
