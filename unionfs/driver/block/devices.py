"""The devices of one home: what each is, and what is just being tried with it.

Every operation is written down twice: what is tried before it, what is done after it. Who
tries holds the device's lock (one byte of ``devices.lock``), which goes with its process. So
a device that is being tried with and that nobody holds was left in the middle by a process
that is gone: it is looked at (`Devices.settled`), and brought to a known state, or marked
faulty and never used again. Nor is the number of one.

Locks are taken in the order of numbers: an origin before its snaps.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from unionfs.database import Database
from unionfs.driver.block import blockdev
from unionfs.driver.block.engine import Engine
from unionfs.driver.block.filesystem import FileSystem
from unionfs.driver.block.locks import Locks
from unionfs.errors import FailedPreconditionError, FaultyError, StoreError

#: Added to the schema of the snapshots.
SCHEMA: Final = """
    CREATE TABLE devices (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        origin INTEGER,
        size INTEGER NOT NULL,
        filesystem TEXT NOT NULL,
        read_only INTEGER NOT NULL,
        state TEXT NOT NULL,
        clean INTEGER NOT NULL,
        base TEXT UNIQUE
    ) STRICT;
    CREATE INDEX devices_of_origin ON devices (origin);
"""

_FIND: Final = (
    "SELECT id, origin, size, filesystem, read_only, state, clean FROM devices WHERE id = ?"
)


class State(enum.Enum):
    """What was done last with a device (``-ED``, ``READY``, …), or is being tried (``-ING``)."""

    CREATING = "creating"
    READY = "ready"
    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"
    #: Its origin is attached, and is to go on as this one.
    CAPTURING = "capturing"
    DISCARDING = "discarding"
    FAULTY = "faulty"


class Device(NamedTuple):
    """A row."""

    id: int
    origin: int | None
    size: int
    filesystem: str
    read_only: bool
    state: State
    clean: bool
    """Nothing is left in the journal of its file system."""


class Devices:
    """The devices in *home*, written down in *database*, made by *engine*."""

    def __init__(
        self,
        home: str,
        database: Database,
        engine: Engine,
        filesystems: Mapping[str, FileSystem],
    ) -> None:
        self._database = database
        self._engine = engine
        self._filesystems = filesystems
        self._locks = Locks(os.path.join(home, "devices.lock"))

    # Making them

    def base(self, size: int, filesystem: str) -> int:
        """Return the device with an empty file system of *size* bytes; make it the first time."""
        base = f"{filesystem} {size}"
        with self.hold(0):
            for number, state in self._database.rows(
                "SELECT id, state FROM devices WHERE base = ?", (base,)
            ):
                if State(state) is State.READY:
                    return int(number)
                self.discard(number)  # its maker died, and nobody uses it
            with self._reserved(None, size, filesystem, base=base) as device:
                self._engine.create(device.id, size)
                path = self._engine.attach(device.id, read_only=False)
                try:
                    self._filesystems[filesystem].make(path, size)
                finally:
                    self._engine.detach(device.id)
                self._engine.seal(device.id)
            return device.id

    def snap(self, origin: int, size: int, *, read_only: bool, named: Callable[[int], None]) -> int:
        """Make a device with the content of *origin* and a file system of *size* bytes.

        *named* is told its number before there is anything of it.
        """
        below = self.settled(origin)
        with self._reserved(origin, size, below.filesystem, read_only=read_only) as device:
            named(device.id)
            self._engine.snap(device.id, origin, size)
            if size > below.size:
                path = self._engine.attach(device.id, read_only=False)
                try:
                    self._filesystems[below.filesystem].grow(path)
                finally:
                    self._engine.detach(device.id)
        return device.id

    @contextlib.contextmanager
    def _reserved(
        self,
        origin: int | None,
        size: int,
        filesystem: str,
        *,
        read_only: bool = False,
        base: str | None = None,
    ) -> Iterator[Device]:
        """Write down that a device is being made, and after the block that it is."""
        with contextlib.ExitStack() as held:
            with self._database.write():
                number = self._database.run(
                    "INSERT INTO devices (origin, size, filesystem, read_only, state, clean, base)"
                    " VALUES (?, ?, ?, ?, ?, 1, ?)",
                    (origin, size, filesystem, int(read_only), State.CREATING.value, base),
                ).lastrowid
                assert number is not None
                held.enter_context(self.hold(number))  # before anybody sees it
            try:
                yield self._find(number)
            except Exception:
                self.discard(number)
                raise
            self._write(number, State.READY)

    # Using them

    def attach(self, number: int) -> str:
        """Return the path of a device, which is attached if it is not; see `Engine.attach`."""
        with self.use(number):
            device = self.settled(number)
            if device.state is State.ATTACHED:
                path = self._engine.attached(number)
                if path is not None:
                    return path
                device = self._found_dead(device)
            if not device.clean:
                self._check(device)
            with self._trying(device, State.ATTACHING, State.ATTACHED, clean=device.read_only):
                path = self._engine.attach(number, read_only=device.read_only)
                if not device.clean:
                    self._repair_or_detach(device, path)
            return path

    def _repair_or_detach(self, device: Device, path: str) -> None:
        try:
            self._filesystems[device.filesystem].repair(path)
        except BaseException:
            self._engine.detach(device.id)
            raise

    def attached(self, number: int) -> str | None:
        """Return the path of a device that is attached and works, else ``None``."""
        return self._engine.attached(number)

    def detach(self, number: int) -> None:
        """Take the path of a device away, with all in its place on the disk.

        Raises `FailedPreconditionError` while it is mounted, ``OSError`` where something was
        not written: the path is gone then, too.
        """
        with self.use(number):
            try:
                device = self.settled(number)
            except FaultyError:
                self._engine.detach(number, force=True)
                return
            if device.state is not State.ATTACHED:
                return
            path = self._engine.attached(number)
            if path is None:
                self._found_dead(device)
                return
            blockdev.require_unmounted(path)
            with self._trying(device, State.DETACHING, State.READY, clean=False):
                try:
                    clean = device.read_only or self._left_clean(device, path)
                    self._engine.detach(number)
                except OSError:
                    # What the disk does not take now is lost, and the rest is to be repaired.
                    self._engine.detach(number, force=True)
                    raise
            if clean:
                self._write(number, State.READY, clean=True)

    def _left_clean(self, device: Device, path: str) -> bool:
        filesystem = self._filesystems[device.filesystem]
        if not filesystem.is_clean(path):
            # What cannot be repaired now (a full disk) is tried again when it is attached.
            with contextlib.suppress(StoreError):
                filesystem.repair(path)
                return True
            return False
        return True

    def seal(self, number: int) -> None:
        """Make a device one that can be an origin. Raises as `attach` and `detach`."""
        with self.use(number):
            self.detach(number)
            if not self.settled(number).clean:
                self.attach(number)
                self.detach(number)
            if not self.settled(number).clean:
                raise FailedPreconditionError(
                    f"device {number}: its file system cannot be brought in order;"
                    " is the disk full?"
                )
            self._engine.seal(number)

    def filesystem(self, number: int) -> str:
        """Return the kind of the file system in a device."""
        return self._find(number).filesystem

    def usage(self, number: int) -> int:
        """Return the bytes that a device takes of the disk."""
        return self._engine.usage(number)

    # Capturing them while they are mounted

    def begin_capture(self, successor: int) -> None:
        """Write down, in a transaction of the caller's, that the origin goes on as *successor*."""
        self._set(successor, State.CAPTURING, clean=False)

    def end_capture(self, successor: int) -> None:
        """Let the origin of *successor* go on as that; the origin is sealed afterwards.

        Both are held. Does what is left of it after a crash, too.
        """
        device = self._find(successor)
        origin = device.origin
        assert origin is not None
        filesystem = self._filesystems[device.filesystem]
        path = self._engine.attached(origin)
        gone_on = None if path else self._engine.attached(successor)
        live = path or gone_on
        if live is None:
            # Both are dead: what is in the origin is all that there is.
            self._write(origin, State.READY, clean=False)
            self.seal(origin)
            self._write(successor, State.READY, clean=True)
            return
        if gone_on:
            filesystem.thaw(live)
        with filesystem.frozen(live):
            self._engine.divert(origin, successor)
        with self._database.write():
            self._set(origin, State.READY, clean=True)
            self._set(successor, State.ATTACHED, clean=False)
        self._engine.seal(origin)

    # After a crash

    def settled(self, number: int) -> Device:
        """Return a device in a state that is known; bring it there if its last user was killed.

        Raises `FaultyError` where that cannot be.
        """
        for (successor,) in self._database.rows(
            "SELECT id FROM devices WHERE origin = ? AND state = ?",
            (number, State.CAPTURING.value),
        ):
            with self.hold(number), self.hold(successor):
                if self._state(successor) is State.CAPTURING:
                    self.end_capture(successor)
        with self.hold(number):
            device = self._find(number)
            if device.state in {State.ATTACHING, State.DETACHING}:
                if self._engine.attached(number) is None:
                    return self._found_dead(device)
                return self._write(number, State.ATTACHED)
            if device.state in {State.READY, State.ATTACHED, State.CAPTURING}:
                return device
        raise FaultyError(f"device {number}: {device.state.value}; remove what is made of it")

    def _found_dead(self, device: Device) -> Device:
        """Clear away what is left of a device that is attached no more."""
        self._engine.detach(device.id, force=True)
        return self._write(device.id, State.READY, clean=device.read_only)

    def _check(self, device: Device) -> None:
        try:
            self._engine.check(device.id)
        except FaultyError:
            self._write(device.id, State.FAULTY)
            raise

    def discard(self, number: int) -> None:
        """Remove a device in whatever state, or what is left of it."""
        with self.hold(number):
            with self._database.write():
                self._set(number, State.DISCARDING)
            self._engine.detach(number, force=True)
            self._engine.discard(number)
            with self._database.write():
                self._database.run("DELETE FROM devices WHERE id = ?", (number,))

    def cleanup(self) -> list[int]:
        """Discard the devices whose maker was killed, or that have no row; return their numbers."""
        gone = []
        left = self._database.rows(
            "SELECT id FROM devices WHERE base IS NULL AND state IN (?, ?)",
            (State.CREATING.value, State.DISCARDING.value),
        )
        for (number,) in left:
            with self.hold(number):  # its maker may be at it
                if self._state(number) in {State.CREATING, State.DISCARDING}:
                    self.discard(number)
                    gone.append(number)
        known = {row[0] for row in self._database.rows("SELECT id FROM devices")}
        for number in self._engine.leftovers(known):
            with self.hold(number):
                if self._state(number) is None:  # one that was made just now has a row
                    self._engine.detach(number, force=True)
                    self._engine.discard(number)
                    gone.append(number)
        return gone

    @contextlib.contextmanager
    def use(self, number: int) -> Iterator[None]:
        """Keep others from the device *number*, whose capture is brought to its end first."""
        device = self._find(number)
        if device.state is State.CAPTURING and not self._locks.holds(number):
            assert device.origin is not None
            self.settled(device.origin)
        with self.hold(number):
            yield

    # Rows and locks

    def _find(self, number: int) -> Device:
        rows = self._database.rows(_FIND, (number,))
        if not rows:
            raise FaultyError(f"device {number}: there is none of that number")
        number, origin, size, filesystem, read_only, state, clean = rows[0]
        return Device(number, origin, size, filesystem, bool(read_only), State(state), bool(clean))

    def _state(self, number: int) -> State | None:
        rows = self._database.rows("SELECT state FROM devices WHERE id = ?", (number,))
        return State(rows[0][0]) if rows else None

    def _set(self, number: int, state: State, *, clean: bool | None = None) -> None:
        self._database.run(
            "UPDATE devices SET state = ?, clean = coalesce(?, clean) WHERE id = ?",
            (state.value, None if clean is None else int(clean), number),
        )

    def _write(self, number: int, state: State, *, clean: bool | None = None) -> Device:
        with self._database.write():
            self._set(number, state, clean=clean)
        return self._find(number)

    @contextlib.contextmanager
    def _trying(self, device: Device, trying: State, done: State, *, clean: bool) -> Iterator[None]:
        """Write down what is tried, and that it is done; an error leaves all as it was."""
        self._write(device.id, trying)
        try:
            yield
        except Exception:
            self._write(device.id, device.state)
            raise
        self._write(device.id, done, clean=clean)

    def hold(self, number: int) -> contextlib.AbstractContextManager[None]:
        """Keep others, threads and processes, from the device *number*. May be nested."""
        return self._locks.hold(number)
