"""Connections of engines, each with a process of its own.

What a request wants may take long (a server of NFS that does not answer) or start daemons,
which are forked and so must be by a process of one thread. A process for each connection keeps
one from holding up the others, and does what the command would: opens the store, locks
what it changes. A plugin that is killed leaves those running, and they answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterable
from typing import Final, NoReturn

from unionfs.errors import UnionError, exit_status
from unionfs.log import Log
from unionfs.plugin.supervisor import ENDING, Supervisor
from unionfs.plugin.volume.calls import Opened, Service
from unionfs.plugin.volume.connection import Connection
from unionfs.plugin.volume.engine import Engine
from unionfs.store.volumes import Volumes

#: Connections at once; others wait for one of these to end.
_LIMIT: Final = 64
#: Seconds after which it is looked whether one has ended, while there are any.
_LOOK: Final = 1.0
#: The same, while as many are there as may be.
_LOOK_SOON: Final = 0.05
#: Seconds for requests that were begun, when the plugin is to end. What takes longer goes on.
_PATIENCE: Final = 10.0

log = Log("unionfs.plugin")


def serve(listener: socket.socket, supervisor: Supervisor, opened: Opened, owned: Opened) -> None:
    """Answer what comes in on *listener* until *supervisor* is told to end.

    *opened* and *owned* are what `Service` has.
    """
    _settle(opened)
    children = _Children()
    supervisor.ready()
    while not supervisor.wait(0):
        children.reap()
        full = len(children) >= _LIMIT
        wanted = [supervisor.fileno()] if full else [supervisor.fileno(), listener.fileno()]
        patience = _LOOK_SOON if full else _LOOK if children else None
        if listener.fileno() in select.select(wanted, [], [], patience)[0]:
            _accept(listener, children, opened, owned)
    supervisor.stopping()
    listener.close()
    children.end(_PATIENCE)


def _settle(opened: Opened) -> None:
    """Unmount what nobody uses any more, since the engine or a plugin was killed."""
    with opened() as store:
        volumes = Volumes(store)
        used = volumes.in_use()
        for volume in volumes.all():
            if volume.name in used:
                continue
            try:
                volumes.settle(volume.name)
            except (UnionError, OSError) as error:
                log.warning("%s: could not be unmounted: %s", volume.name, exit_status(error)[1])


def _accept(listener: socket.socket, children: _Children, opened: Opened, owned: Opened) -> None:
    """Take a connection, and give it a process; who gets none is hung up on, to try again."""
    try:
        connection, _ = listener.accept()
    except OSError as error:
        log.warning("a connection was lost: %s", error.strerror)
        time.sleep(_LOOK_SOON)  # descriptors may have run out
        return
    with connection:
        # One that comes before the child is ready to be told would tell us instead.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            pid = os.fork()
            if pid == 0:
                _answer(listener, connection, opened, owned, unblocked)
            children.add(pid)
        except OSError as error:
            log.warning("no process for a connection: %s", error.strerror)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _answer(
    listener: socket.socket,
    connection: socket.socket,
    opened: Opened,
    owned: Opened,
    unblocked: Iterable[signal.Signals | int],
) -> NoReturn:
    """Answer all requests of *connection*, as the child of the fork."""
    status = 1
    try:
        listener.close()
        service = Service(opened, owned, Engine.of(connection))
        # A signal to us lets a request that was begun come to its end.
        with Supervisor({}) as told:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            Connection(connection, told, service).answer()
        status = 0
    except BaseException as error:  # noqa: BLE001 - of a fork nothing may escape upwards
        text = f"a connection failed: {exit_status(error)[1]}"
        log.critical(text, error)
    finally:
        os._exit(status)


class _Children:
    """The processes of connections."""

    def __init__(self) -> None:
        self._pids: set[int] = set()

    def __len__(self) -> int:
        return len(self._pids)

    def add(self, pid: int) -> None:
        """Take note of a child."""
        self._pids.add(pid)

    def reap(self) -> None:
        """Collect those that have ended."""
        for pid in list(self._pids):
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                self._pids.discard(pid)

    def end(self, seconds: float) -> None:
        """Tell all to end, and wait for them, at most that many *seconds*."""
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while self._pids and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.01)
