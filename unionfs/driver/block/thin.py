"""The engine of dm-thin: each device one of a pool, by its number.

    thin/N            size, origin, and whether device N is still to be made of that
    thin/transaction  how often we changed what the pool has, see `unionfs.driver.block.pool`

What is written down of a device comes before it, and goes after it. The snap of an origin
that is attached is made at the moment at which that goes on as its snap.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from unionfs.driver import programs
from unionfs.driver.block import pooldevices
from unionfs.driver.block.engine import Engine
from unionfs.driver.block.pool import Pool, write
from unionfs.errors import FaultyError, StoreError, UsageError

_NONE: Final = "-"
#: The options that name a pool: itself, or its devices.
_POOL: Final = "thinpool"
_DEVICES: Final = ("datadev", "metadatadev")


class _Record(NamedTuple):
    """What is written down of a device."""

    size: int
    origin: int | None
    pending: bool
    """It is still to be made."""


class ThinEngine(Engine):
    """Devices of a pool; *home* has a directory with what is known of them.

    The pool is that of ``thinpool``, or one of the devices ``datadev`` and ``metadatadev``.
    """

    def __init__(self, home: str, options: Mapping[str, str]) -> None:
        programs.require("dmsetup", "thin_delta")
        self._home = os.path.join(home, "thin")
        os.makedirs(self._home, mode=0o700, exist_ok=True)
        if (path := options.get(_POOL)) is None:
            data, metadata = (options[name] for name in _DEVICES)
            path = pooldevices.pool_of(data, metadata, self._home)
        self._pool = Pool(path, self._home)

    @classmethod
    def check_options(cls, options: Mapping[str, str]) -> None:
        """Raise `UsageError` unless *options* name a pool, in one way."""
        given = [name for name in _DEVICES if name in options]
        if _POOL in options:
            if given:
                raise UsageError(f"{given[0]}: not with {_POOL}=")
        elif len(given) < len(_DEVICES):
            raise UsageError(f"engine=thin: needs {_POOL}=, or {'= and '.join(_DEVICES)}=")

    def create(self, device: int, size: int) -> None:
        self._pool.require_room()
        self._make(device, _Record(size, None, pending=False))

    def snap(self, device: int, origin: int, size: int) -> None:
        self._pool.require_room()
        self._find(origin)
        record = _Record(size, origin, pending=self._pool.active(origin) is not None)
        if record.pending:
            self._write(device, record)
        else:
            self._make(device, record)

    def _make(self, device: int, record: _Record) -> None:
        self._write(device, record)
        made = "thin" if record.origin is None else "snap"
        words = [f"create_{made}", str(device)]
        words += [] if record.origin is None else [str(record.origin)]
        begun = False
        try:
            with self._pool.step():
                begun = True
                self._pool.message(" ".join(words))
        except BaseException:
            if not begun:
                os.unlink(self._path(device))
                raise
            # It may have been made. What cannot be removed now stays written down.
            with contextlib.suppress(StoreError, OSError):
                self.discard(device)
            raise

    def _make_pending(self, device: int, record: _Record) -> None:
        """Make what is still to be made, where that may have been done without being noted."""
        assert record.origin is not None
        with self._pool.step():
            with contextlib.suppress(programs.ProgramError):
                self._pool.message(f"delete {device}")
            self._pool.message(f"create_snap {device} {record.origin}")
        self._write(device, record._replace(pending=False))

    def attach(self, device: int, *, read_only: bool) -> str:
        record = self._find(device)
        if record.pending:
            self._make_pending(device, record)
        return self._pool.activate(device, record.size, read_only=read_only)

    def attached(self, device: int) -> str | None:
        found = self._pool.active(device)
        return None if found is None else found.path

    def detach(self, device: int, *, force: bool = False) -> None:
        found = self._pool.active(device)
        if found is not None:
            self._pool.deactivate(found, force=force)

    def divert(self, device: int, successor: int) -> None:
        found = self._pool.active(device)
        if found is None:
            return  # it has gone on already
        record = self._find(successor)
        with self._pool.held(found):
            if record.pending:
                self._make_pending(successor, record)
            self._pool.redirect(found, successor, record.size)

    def seal(self, device: int) -> None:
        self._find(device)  # the pool has it on its disk since it was detached or diverted

    def check(self, device: int) -> None:
        self._pool.status()
        self._find(device)

    def discard(self, device: int) -> None:
        try:
            record = self._find(device)
        except FaultyError:
            return  # nothing was ever made
        try:
            with self._pool.step():
                self._pool.message(f"delete {device}")
        except programs.ProgramError:
            # It was to be made, or is gone; else it must not be forgotten.
            if not record.pending and self._is_there(device, record):
                raise
        os.unlink(self._path(device))

    def _is_there(self, device: int, record: _Record) -> bool:
        """Say whether the pool has *device*: only what it has can be shown."""
        try:
            self._pool.activate(device, record.size, read_only=True)
        except programs.ProgramError:
            return False
        self.detach(device, force=True)
        return True

    def usage(self, device: int) -> int:
        record = self._find(device)
        if record.origin is None or record.pending:
            return 0
        return self._pool.differing(device, record.origin)

    def leftovers(self, known: set[int]) -> Sequence[int]:
        return sorted({int(name) for name in os.listdir(self._home) if name.isdigit()} - known)

    # What is written down of them

    def _path(self, device: int) -> str:
        return os.path.join(self._home, str(device))

    def _find(self, device: int) -> _Record:
        try:
            with open(self._path(device), encoding="ascii") as file:
                size, origin, state = file.read().split()
        except FileNotFoundError:
            raise FaultyError(f"{self._path(device)}: is missing") from None
        return _Record(int(size), None if origin == _NONE else int(origin), state == "pending")

    def _write(self, device: int, record: _Record) -> None:
        origin = _NONE if record.origin is None else str(record.origin)
        state = "pending" if record.pending else "made"
        write(self._path(device), f"{record.size} {origin} {state}\n")
