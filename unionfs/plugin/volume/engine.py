"""The engine at the other end of a connection: whether it sees what we mount."""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import Final, NamedTuple, Self

from unionfs import registry
from unionfs.errors import FailedPreconditionError

#: ``struct ucred`` of unix(7): process, user, group.
_CREDENTIALS: Final = struct.Struct("3i")


class Engine(NamedTuple):
    """The process that asks."""

    pid: int
    """0 where its number means nothing here."""

    @classmethod
    def of(cls, connection: socket.socket) -> Self:
        """Return who has connected."""
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return cls(_CREDENTIALS.unpack(found)[0])

    def began(self) -> int:
        """Return when the process was started, in nanoseconds since 1970; 0 if not known."""
        ticks = registry.start_time(self.pid) if self.pid else None
        if ticks is None:
            return 0
        age = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * 10**9 // os.sysconf("SC_CLK_TCK")
        return time.time_ns() - age

    def require_sees(self, path: str) -> None:
        """Raise `FailedPreconditionError` unless the engine finds at *path* what we find there.

        In a mount namespace of its own it may find an empty directory, and a container that
        writes there would write to nowhere. What cannot be looked at is taken to be well.
        """
        ours = os.stat(path)
        try:
            its = os.stat(f"/proc/{self.pid}/root/{path}")
        except FileNotFoundError:
            if not os.path.exists(f"/proc/{self.pid}/root"):
                return
            its = None
        except OSError:
            return
        if its is None or not os.path.samestat(ours, its):
            raise FailedPreconditionError(
                f"{path}: the engine (process {self.pid}) does not see it, being in another mount"
                " namespace; start the plugin in the engine's, without PrivateMounts= and the like"
            )
