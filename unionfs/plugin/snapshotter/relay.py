"""Connections to one Unix socket, passed on to another.

The library that speaks gRPC opens its sockets by itself. Ours is made, or given by systemd, as for
every plugin (`unionfs.plugin.socket`), so what connects there is passed on to one of the library's,
which is for our user alone.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from typing import Final

from unionfs.log import Log
from unionfs.plugin.supervisor import Supervisor

log = Log("unionfs.plugin")

_CHUNK: Final = 1 << 16
#: What every connection of HTTP/2, and so of gRPC, begins with: RFC 9113, 3.4.
_PREFACE: Final = b"PRI * HTTP/2.0"
#: For those who speak something else, a person with curl(1) most likely.
_REFUSAL: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This is containerd's snapshots API, over gRPC: see unionfs-plugin(1).\n"
)
#: Seconds until the next try where no connection can be accepted: too many files are open.
_PAUSE: Final = 0.5


def relay(listener: socket.socket, inner: str, *, until: Supervisor) -> None:
    """Pass what connects to *listener* on to the socket at *inner*, *until* we are to end."""
    listener.setblocking(False)  # who has connected may be gone when we accept
    told = until.fileno()
    while told not in select.select([listener.fileno(), told], [], [])[0]:
        try:
            outside, _ = listener.accept()
        except BlockingIOError:
            continue
        except OSError as error:
            log.warning("a connection could not be accepted: %s", error.strerror)
            time.sleep(_PAUSE)
            continue
        outside.setblocking(True)
        try:
            threading.Thread(target=_pass_on, args=(outside, inner), daemon=True).start()
        except RuntimeError as error:  # as many as there may be
            log.warning("a connection could not be served: %s", error)
            outside.close()
            time.sleep(_PAUSE)


def _pass_on(outside: socket.socket, inner: str) -> None:
    if not _begins_as_grpc(outside):
        with outside, contextlib.suppress(OSError):
            outside.sendall(_REFUSAL)
        return
    with outside, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as inside:
        try:
            inside.connect(inner)
        except OSError:
            return  # we are ending
        replies = threading.Thread(target=_copy, args=(inside, outside), daemon=True)
        replies.start()
        _copy(outside, inside)
        replies.join()


def _begins_as_grpc(outside: socket.socket) -> bool:
    """Say whether what comes first is what HTTP/2 begins with; wait for it."""
    try:
        first = outside.recv(len(_PREFACE), socket.MSG_PEEK | socket.MSG_WAITALL)
    except OSError:
        return False
    return first == _PREFACE


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy all that comes from *source* to *target*, the end of it too."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
