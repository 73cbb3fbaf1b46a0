"""A wire between two guests: what one sends comes out of the other, and goes nowhere else.

Each end is a Unix socket of QEMU's in a directory of the network's own, so the host's network has
no part in it, and an end may be turned off and on again while the other one waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from tests.vm import cache
from tests.vm.errors import CannotError

#: By number: what a guest is in its network. Addresses for documentation (RFC 5737).
ADDRESSES = {1: "192.0.2.1", 2: "192.0.2.2"}


class End(NamedTuple):
    """Where one guest is plugged in."""

    directory: Path
    number: int

    def devices(self) -> Iterator[str]:
        """Yield the words for QEMU: a network card, and the wire to the other end."""
        other = End(self.directory, 3 - self.number)
        sockets = f"local.path={self.socket()},remote.path={other.socket()}"
        types = "local.type=unix,remote.type=unix"
        yield from ("-netdev", f"dgram,id=wire,{types},{sockets}")
        # No boot program of the card's: nothing is booted from the network.
        card = f"virtio-net-pci,netdev=wire,mac=52:54:00:00:00:0{self.number},romfile="
        yield from ("-device", card)

    def socket(self) -> Path:
        """The socket that this end is."""
        return self.directory / f"node{self.number}"


@contextlib.contextmanager
def plugged(name: str) -> Iterator[End]:
    """Give the end that *name*, NETWORK/NUMBER, means. Raises `CannotError`."""
    found = re.fullmatch(r"(\w[\w.-]*)/([12])", name)
    if found is None:
        raise CannotError(f"{name}: an end of a network is NAME/1 or NAME/2")
    end = End(cache.place() / "networks" / found[1], int(found[2]))
    lock = end.directory / f"lock{end.number}"
    with _locked(lock, name):
        try:
            yield end
        finally:
            end.socket().unlink(missing_ok=True)
            lock.unlink()
            with contextlib.suppress(OSError):  # the other one may be there still
                end.directory.rmdir()


def _locked(lock: Path, name: str) -> IO[str]:
    """Hold the file *lock*, of the end *name*, in a directory that goes with its last end."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = lock.open("w")
        except FileNotFoundError:
            continue  # the other end has just gone, and taken the directory along
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise CannotError(f"{name}: another machine is there") from error
        # Who held it before may have removed it meanwhile.
        if lock.exists() and lock.samefile(f"/proc/self/fd/{file.fileno()}"):
            return file
        file.close()
