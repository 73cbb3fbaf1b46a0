"""The caller's terminal, as the terminal of a guest's shell."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import termios
import threading
import tty
from collections.abc import Iterator


def described() -> str:
    """The kind of the terminal, its rows and columns, as ``guest/start`` reads them."""
    size = os.get_terminal_size(sys.stdin.fileno())
    return f"{os.environ.get('TERM', 'dumb')} {size.lines or 24} {size.columns or 80}\n"


@contextlib.contextmanager
def lent() -> Iterator[socket.socket]:
    """Give an end that is the terminal: what is typed comes out of it, also Ctrl-C.

    QEMU could have the terminal itself, but would change what it is told to show, and leave
    it raw when it is killed.
    """
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    ours, guests = socket.socketpair()
    with ours, guests:
        shown = threading.Thread(target=_relay, args=(fd, ours), daemon=True)
        tty.setraw(fd)
        try:
            shown.start()
            yield guests
        finally:
            guests.close()
            shown.join()
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _relay(fd: int, ours: socket.socket) -> None:
    """Copy between the terminal *fd* and *ours* until the other end is closed."""
    with contextlib.suppress(OSError):  # either is gone
        waited_for: list[int | socket.socket] = [fd, ours]
        while True:
            ready, _, _ = select.select(waited_for, [], [])
            if ours in ready:
                shown = ours.recv(65536)
                if not shown:
                    return
                os.write(fd, shown)
            if fd in ready:
                typed = os.read(fd, 65536)
                if not typed:
                    waited_for.remove(fd)
                ours.sendall(typed)
