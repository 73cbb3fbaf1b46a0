"""A pool of dm-thin: its devices by number, and what dmsetup(8) says of them.

See Documentation/admin-guide/device-mapper/thin-provisioning.rst. Each change of what devices
there are is a step, and the pool counts these (its transaction id). What the next count is
to be is written to a file before the step: so a pool that somebody else changes is told from
ours, and is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from typing import Final, NamedTuple

from unionfs import ondisk
from unionfs.driver import programs
from unionfs.driver.block import blockdev
from unionfs.driver.block.locks import Locks
from unionfs.errors import FailedPreconditionError, FaultyError, StoreError, UnsupportedError

_SECTOR: Final = 512
#: With less than this part of its data or metadata free, nothing new is made in a pool.
_LEAST_FREE: Final = 0.05
#: The lock of the whole pool; the devices' own are of others.
_LOCK: Final = 0
#: How a pool says that its metadata are not written any more.
_READ_ONLY: Final = "ro"


class Status(NamedTuple):
    """What the pool says of itself, in blocks."""

    transaction: int
    metadata: tuple[int, int]
    """Used, and all there are."""
    data: tuple[int, int]
    words: tuple[str, ...]
    """Mode and flags."""


class Active(NamedTuple):
    """A device that has a path."""

    name: str
    number: int

    @property
    def path(self) -> str:
        """The path in /dev."""
        return f"/dev/mapper/{self.name}"


class Pool:
    """The pool at *path* (``/dev/mapper/NAME``); *home* has what is written down of it."""

    def __init__(self, path: str, home: str) -> None:
        self.path = path
        self._name = os.path.basename(path)
        self._counted = os.path.join(home, "transaction")
        self._locks = Locks(os.path.join(home, "pool.lock"))
        if self._table("thin-pool") is None:
            raise UnsupportedError(f"{path}: is no pool of dm-thin; dmsetup(8) makes one")
        number = os.stat(path).st_rdev
        self._number = f"{os.major(number)}:{os.minor(number)}"

    # What there is

    def status(self) -> Status:
        """Return what the pool says. Raises ``OSError`` (EIO) when it has failed."""
        words = _dmsetup("status", self._name).split()[2:]
        if words[1] in {"Fail", "Error"}:
            raise OSError(errno.EIO, "the pool has failed; see thin_check(8)", self.path)
        used = [tuple(map(int, pair.split("/"))) for pair in words[2:4]]
        (metadata_used, metadata), (data_used, data) = used
        return Status(int(words[1]), (metadata_used, metadata), (data_used, data), tuple(words[5:]))

    def require_changeable(self) -> Status:
        """Return what the pool says. Raises ``OSError`` (EIO) if its devices cannot be changed.

        That is so after an error of its metadata: it then is read-only until it was checked.
        """
        status = self.status()
        if _READ_ONLY in status.words:
            why = "the pool is read-only since an error of its metadata; see thin_check(8)"
            raise OSError(errno.EIO, why, self.path)
        return status

    def require_room(self) -> None:
        """Raise ``OSError`` (ENOSPC) where too little is free to make anything new."""
        status = self.require_changeable()
        for what, (used, there) in (("data", status.data), ("metadata", status.metadata)):
            if there - used < there * _LEAST_FREE:
                raise OSError(
                    errno.ENOSPC,
                    f"the pool's {what} is nearly full: {used} of {there} blocks are used",
                    self.path,
                )

    def active(self, number: int) -> Active | None:
        """Return what shows the device *number*, going on with what a killed process held up."""
        with self._locks.hold(_LOCK):
            found = self._active(number)
            if found is not None:
                return found
            # What is suspended goes on with the table that was loaded into it.
            for name in self._suspended():
                _dmsetup("resume", name)
            return self._active(number)

    def _active(self, number: int) -> Active | None:
        for name, device in self._shown():
            if device == str(number) and name not in self._held_up():
                return Active(name, number)
        return None

    def _suspended(self) -> list[str]:
        held_up = self._held_up()
        return [name for name, _ in self._shown() if name in held_up]

    def _shown(self) -> Iterator[tuple[str, str]]:
        """Yield what shows devices of the pool, each with the number of its device.

        Raises ``OSError`` (EIO) where the pool has failed: then nobody tells the numbers.
        """
        for line in _dmsetup("table", "--target", "thin").splitlines():
            name, _, table = line.partition(": ")
            words = table.split()
            if words[2:] == ["thin", "Fail"] and name.startswith(f"{self._name}-"):
                self.status()
            if words[2:4] == ["thin", self._number]:
                yield name, words[4]

    def _held_up(self) -> set[str]:
        """Return the names of all that is suspended, whatever it is."""
        columns = ("--noheadings", "--separator", " ", "-o", "suspended,name")
        said = (line.split(maxsplit=1) for line in _dmsetup("info", "-c", *columns).splitlines())
        return {name for state, name in said if state == "Suspended"}

    def _table(self, target: str) -> list[str] | None:
        try:
            words = _dmsetup("table", self._name).split()
        except StoreError:
            return None
        return words if words[2:3] == [target] else None

    # What devices there are

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Count what is done in the block as one change.

        Raises `FaultyError` for a pool that is not ours alone, ``OSError`` (EIO) for one that
        cannot be changed, or fails at it.
        """
        with self._locks.hold(_LOCK):
            before = self.require_changeable().transaction
            counted = self._read_count()
            if before not in {counted, counted - 1}:
                raise FaultyError(
                    f"{self.path}: its transaction is {before}, and here {counted} was the last:"
                    " the pool is another store's, or was changed by others"
                )
            self._write_count(before + 1)
            try:
                yield
                self.message(f"set_transaction_id {before} {before + 1}")
            except programs.ProgramError:
                self.require_changeable()  # the better reason, if that is one
                raise

    def message(self, text: str) -> None:
        """Tell the pool to do something; it is on its disk afterwards."""
        _dmsetup("message", self.path, "0", text)

    def _read_count(self) -> int:
        try:
            with open(self._counted, encoding="ascii") as file:
                return int(file.read())
        except FileNotFoundError:
            return 0

    def _write_count(self, count: int) -> None:
        write(self._counted, str(count))

    # Their paths

    def activate(self, number: int, size: int, *, read_only: bool) -> str:
        """Give the device *number*, of *size* bytes, a path, and return it."""
        found = Active(f"{self._name}-{secrets.token_hex(8)}", number)
        words = ["--readonly"] if read_only else []
        _dmsetup("create", found.name, *words, "--table", self._thin(number, size))
        return found.path

    def deactivate(self, found: Active, *, force: bool) -> None:
        """Take a path away; see `Engine.detach`."""
        if force:
            # What is mounted meets errors from now on, and goes when it is unmounted.
            _dmsetup("remove", "--force", "--deferred", found.name)
            return
        with blockdev.opened(found.path, exclusive=True) as device:
            os.fsync(device)
        try:
            _dmsetup("remove", "--retry", found.name)
        except programs.ProgramError as error:
            raise FailedPreconditionError(f"{found.path}: is in use: {error}") from error

    @contextlib.contextmanager
    def held(self, found: Active) -> Iterator[None]:
        """Let nothing be written to a device; its file system is frozen already."""
        with self._locks.hold(_LOCK):
            _dmsetup("suspend", "--nolockfs", found.name)
            try:
                yield
            finally:
                _dmsetup("resume", found.name)

    def redirect(self, found: Active, number: int, size: int) -> None:
        """Let what is held go on as the device *number*."""
        _dmsetup("load", found.name, "--table", self._thin(number, size))

    def _thin(self, number: int, size: int) -> str:
        return f"0 {size // _SECTOR} thin {self._number} {number}"

    # What they take

    def differing(self, number: int, origin: int) -> int:
        """Return the bytes that the device *number* has, and that *origin* has not."""
        with self._locks.hold(_LOCK):
            words = self._table("thin-pool")
            assert words is not None
            # One that a killed process left is of no use to anybody.
            with contextlib.suppress(programs.ProgramError):
                self.message("release_metadata_snap")
            self.message("reserve_metadata_snap")
            try:
                between = ("--snap1", str(origin), "--snap2", str(number))
                said = programs.run(["thin_delta", "-m", *between, _device(words[3])])
            finally:
                self.message("release_metadata_snap")
        return _mapped(said) * int(words[5]) * _SECTOR


def _mapped(delta: str) -> int:
    """Add up the blocks that only the right side has, of what thin_delta(8) prints."""
    blocks = 0
    for line in delta.splitlines():
        kind, _, rest = line.strip().removeprefix("<").partition(" ")
        if kind in {"right_only", "different"}:
            blocks += int(rest.partition('length="')[2].partition('"')[0])
    return blocks


def _device(number: str) -> str:
    with open(f"/sys/dev/block/{number}/uevent", encoding="utf-8") as file:
        for line in file:
            name, _, value = line.strip().partition("=")
            if name == "DEVNAME":
                return f"/dev/{value}"
    raise FaultyError(f"{number}: has no name in /dev")


def _dmsetup(*words: str) -> str:
    return programs.run(["dmsetup", *words])


def write(path: str, text: str) -> None:
    """Put *text* into the file *path*, on the disk, whole or not at all."""
    with open(path + ".new", "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
    ondisk.sync(os.path.dirname(path))
