"""The caller's terminal, made one with that of the command: keys in, output out, size kept."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

_PIECE: Final = 64 << 10
#: Bytes typed or pasted that wait for the command; then the caller waits.
_BACKLOG: Final = 64 << 10


class Settings(NamedTuple):
    """How a terminal was when it was looked at."""

    descriptor: int
    attributes: list[Any]

    def restore(self) -> None:
        """Put the terminal right; it may be gone."""
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self.descriptor, termios.TCSANOW, self.attributes)


def settings(descriptor: int) -> Settings | None:
    """Return the settings of the terminal *descriptor*, ``None`` if it is none."""
    try:
        return Settings(descriptor, termios.tcgetattr(descriptor))
    except termios.error:
        return None


def window(descriptors: tuple[int, ...]) -> bytes:
    """Return the size of the first terminal of *descriptors*, empty if there is none."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            return fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    return b""


@contextlib.contextmanager
def passing(before: Settings, *, keys: bool) -> Iterator[None]:
    """Let what the command's terminal shows through as it is, and put ours right at the end.

    With *keys* every key goes through to it, too; else ours sees to Ctrl-C and the like.
    """
    try:
        if keys:
            tty.setraw(before.descriptor, termios.TCSANOW)
        else:
            changed = termios.tcgetattr(before.descriptor)
            changed[1] &= ~termios.OPOST
            termios.tcsetattr(before.descriptor, termios.TCSANOW, changed)
        yield
    finally:
        before.restore()


class Relay:
    """Carries bytes between the caller's descriptors and a terminal's *master* end."""

    def __init__(self, master: int, source: int | None, sink: int) -> None:
        self._master = master
        self._source = source
        self._sink: int | None = sink
        self._typed = b""
        os.set_blocking(master, False)

    @contextlib.contextmanager
    def follow_window(self, descriptors: tuple[int, ...]) -> Iterator[None]:
        """Give the terminal the size of the caller's, whenever that changes."""

        def changed(_number: int, _frame: object) -> None:
            if size := window(descriptors):
                with contextlib.suppress(OSError):
                    fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

        before = signal.signal(signal.SIGWINCH, changed)
        changed(0, None)
        try:
            yield
        finally:
            signal.signal(signal.SIGWINCH, before)

    def run(self, until: int) -> None:
        """Carry until the descriptor *until* can be read, and all output before that is out."""
        while True:
            ready = self._wait(until)
            if ready.get(self._master, 0) & ~select.POLLOUT:
                self._show()
            if self._source is not None and self._source in ready:
                self._read_source(self._source)
            if self._typed:
                self._type()
            if until in ready:
                break
        while self._show():
            pass

    def _wait(self, until: int) -> dict[int, int]:
        poll = select.poll()
        poll.register(until, select.POLLIN)
        poll.register(self._master, select.POLLIN | (select.POLLOUT if self._typed else 0))
        if self._source is not None and len(self._typed) < _BACKLOG:
            poll.register(self._source, select.POLLIN)
        ready = dict(poll.poll())
        if ready.get(self._master, 0) == select.POLLHUP:
            # Nobody has it open at the moment, which poll would tell again and again.
            select.select([until], [], [], 0.05)
        return ready

    def _show(self) -> bool:
        """Pass output on; say whether there was any."""
        try:
            piece = os.read(self._master, _PIECE)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        self._write_out(piece)
        return bool(piece)

    def _write_out(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while self._sink is not None and rest:
            try:
                rest = rest[os.write(self._sink, rest) :]
            except BlockingIOError:
                select.select([], [self._sink], [])
            except OSError:
                # Whoever read it has gone; the command lives on, as with a closed window.
                self._sink = None

    def _read_source(self, source: int) -> None:
        try:
            piece = os.read(source, _PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._source = None
        self._typed += piece

    def _type(self) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                self._typed = self._typed[os.write(self._master, self._typed) :]
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self._typed = b""
