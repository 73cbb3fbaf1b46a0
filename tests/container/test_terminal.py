"""A command with a terminal of its own, run from one: through a pseudo-terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.container.runner import Runner, wait_for

pytestmark = pytest.mark.needs_root


class Screen:
    """A terminal that a person sits at: what is typed, what is shown."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(24, 80)
        self.shown = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def expect(self, pattern: bytes, seconds: float = 15.0) -> re.Match[bytes]:
        """Wait until *pattern* is shown, and forget what is shown up to it."""
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self.shown)) is None:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, self.shown
            self.shown += os.read(self.master, 1 << 16)
        self.shown = self.shown[found.end() :]
        return found

    def start(self, runner: Runner, *arguments: str) -> subprocess.Popen[str]:
        """Run it in a session with this terminal, as a shell would in the foreground."""

        def sit_down() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        runner._before_exec = sit_down
        at = self.slave
        return runner.start(*arguments, stdin=at, stdout=at, stderr=at)


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Screen()
    yield made
    for end in (made.master, made.slave):
        with contextlib.suppress(OSError):
            os.close(end)


def test_a_session(runner: Runner, screen: Screen) -> None:
    before = screen.settings()
    process = screen.start(runner, "--rm", "-it", "base", "sh", "-c", "tty; stty size; cat; exit 3")
    screen.expect(rb"/dev/pts/0\r\n24 80\r\n")
    assert screen.settings() != before
    screen.type(b"typed\n")
    screen.expect(rb"typed\r\ntyped\r\n")
    screen.type(b"\x04")
    assert process.wait(20) == 3
    assert screen.settings() == before


def test_a_shell_with_job_control(runner: Runner, screen: Screen) -> None:
    process = screen.start(runner, "--rm", "-it", "-e", "PS1=> ", "base", "sh", "-i")
    screen.expect(rb"> ")
    screen.type(b"sleep 100\n")
    time.sleep(0.3)
    screen.type(b"\x1a")
    screen.expect(rb"Stopped")
    screen.type(b"fg\n")
    screen.expect(rb"fg\r\nsleep 100\r\n")
    time.sleep(0.3)
    screen.type(b"\x03")
    screen.expect(rb"> ")
    screen.type(b"test -t 0 && echo is $((40 + 2))\n")
    screen.expect(rb"is 42")
    screen.type(b"echo x >/dev/console\n")
    screen.expect(rb"x\r\n> ")
    screen.type(b"exit 4\n")
    assert process.wait(20) == 4


def test_interrupt_reaches_the_command(runner: Runner, screen: Screen) -> None:
    before = screen.settings()
    process = screen.start(runner, "--rm", "-it", "base", "sh", "-c", "echo on; exec sleep 100")
    screen.expect(rb"on\r\n")
    screen.type(b"\x03")
    assert process.wait(20) == 128 + signal.SIGINT
    assert screen.settings() == before


def test_interrupt_reaches_it_without_a_terminal_too(runner: Runner, screen: Screen) -> None:
    process = screen.start(runner, "--rm", "base", "sh", "-c", "echo on; exec sleep 100")
    screen.expect(rb"on\r\n")
    screen.type(b"\x03")
    assert process.wait(20) == 128 + signal.SIGINT


def test_its_size_follows(runner: Runner, screen: Screen) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    process = screen.start(runner, "--rm", "-it", "base", "sh", "-c", script)
    screen.expect(rb"ready")
    screen.resize(50, 132)
    screen.expect(rb"50 132\r\n")
    screen.type(b"\x03")
    process.wait(20)


@pytest.mark.parametrize("kind", ["killed", "terminated"])
def test_the_terminal_is_put_right_after_a_crash(runner: Runner, screen: Screen, kind: str) -> None:
    before = screen.settings()
    process = screen.start(runner, "--rm", "-it", "base", "sh", "-c", "echo on; exec sleep 100")
    screen.expect(rb"on\r\n")
    assert screen.settings() != before
    process.send_signal(signal.SIGKILL if kind == "killed" else signal.SIGTERM)
    process.wait(20)
    wait_for(lambda: screen.settings() == before)


def test_much_output_arrives_whole(runner: Runner, screen: Screen) -> None:
    process = screen.start(runner, "--rm", "-t", "base", "seq", "1", "50000")
    shown = b""
    while not shown.endswith(b"50000\r\n"):
        assert select.select([screen.master], [], [], 20)[0]
        shown += os.read(screen.master, 1 << 16)
    assert process.wait(20) == 0
    assert shown.split() == [str(number).encode() for number in range(1, 50001)]


def test_much_typing_arrives_whole(runner: Runner, screen: Screen) -> None:
    script = "stty raw -echo; echo ready; head -c 300000 | md5sum"
    process = screen.start(runner, "--rm", "-it", "base", "sh", "-c", script)
    screen.expect(rb"ready")
    os.set_blocking(screen.master, False)
    rest = memoryview(b"x" * 300_000)
    while rest:
        select.select([], [screen.master], [], 20)
        with contextlib.suppress(BlockingIOError):
            rest = rest[os.write(screen.master, rest) :]
    screen.expect(rb"[0-9a-f]{32}")
    assert process.wait(20) == 0


def test_a_terminal_for_one_that_has_none(runner: Runner) -> None:
    assert runner.run("--rm", "-t", "base", "sh", "-c", "tty") == "/dev/pts/0\n"
