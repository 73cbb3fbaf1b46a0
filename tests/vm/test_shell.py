"""`scripts/vm --shell` on a terminal, as a person at a keyboard has it."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

from tests.vm.conftest import ENVIRONMENT, PATIENCE, WORDS, Run

pytestmark = [pytest.mark.needs_root, pytest.mark.vm]

PROMPT = b"/unionfs# "


class Keyboard:
    """A terminal of 33 rows and 101 columns, and who sits there."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        self._shown = b""

    def shell(self) -> subprocess.Popen[bytes]:
        """Start one in a machine."""
        return subprocess.Popen(
            [*WORDS, "--timeout", str(PATIENCE), "--shell"],
            env={**ENVIRONMENT, "TERM": "xterm"},
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
        )

    def types(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def sees(self, text: bytes) -> bytes:
        """Wait for *text*; return what was shown until its end."""
        end = time.monotonic() + PATIENCE
        while text not in self._shown:
            ready, _, _ = select.select([self.ours], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} was never shown: {self._shown!r}"
            self._shown += os.read(self.ours, 65536)
        before, _, self._shown = self._shown.partition(text)
        return before + text


@pytest.fixture
def keyboard() -> Iterator[Keyboard]:
    made = Keyboard()
    yield made
    os.close(made.ours)
    os.close(made.theirs)


def test_a_shell(vm: Run, keyboard: Keyboard) -> None:
    before = termios.tcgetattr(keyboard.theirs)
    with keyboard.shell() as shell:
        try:
            keyboard.sees(PROMPT)
            keyboard.types(b"stty size; tty; echo $TERM; unionfs --version\n")
            shown = keyboard.sees(b"unionfs: version")
            assert b"33 101\r\n/dev/hvc0\r\nxterm\r\n" in shown
            keyboard.sees(PROMPT)
            keyboard.types(b"echo 'be'gun; sleep 1000\n")
            keyboard.sees(b"begun\r\n")
            keyboard.types(b"\x03")
            keyboard.sees(PROMPT)
            keyboard.types(b"echo status $?\n")
            keyboard.sees(b"status 130\r\n")
            keyboard.types(b"exit 7\n")
            assert shell.wait(PATIENCE) == 7
        finally:
            shell.terminate()
    assert termios.tcgetattr(keyboard.theirs) == before
    for fd in (keyboard.theirs, keyboard.ours):
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK


@pytest.mark.slow
def test_a_terminal_is_had_back_from_a_machine_that_is_killed(vm: Run, keyboard: Keyboard) -> None:
    before = termios.tcgetattr(keyboard.theirs)
    with keyboard.shell() as shell:
        keyboard.sees(PROMPT)
        assert termios.tcgetattr(keyboard.theirs) != before
        shell.terminate()
        assert shell.wait(30) == 130
    assert termios.tcgetattr(keyboard.theirs) == before
