"""The store: one directory with a driver's snapshots, and what is known of their use.

``ROOT/store.db`` has what is said about names, ``ROOT/DRIVER`` is the home of each driver that
was ever used here. Any number of processes use a store at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Self

from unionfs.database import Database
from unionfs.driver import registry
from unionfs.driver.api import Driver, Info, Kind
from unionfs.errors import (
    FailedPreconditionError,
    FaultyError,
    MountError,
    NotFoundError,
    UnsupportedError,
)
from unionfs.filelocks import lock_byte
from unionfs.store import schema
from unionfs.store.uses import Subject, Use, Uses

DEFAULT_DRIVER: Final = "overlay"

#: What a store has once images, volumes or mounts were in it.
_TRACES: Final = ("lock", "images.lock", "framing", "volumes", "containers")

#: The label of views that a process looks through for a while.
_LOOKING: Final = "unionfs.looking"


def default_root() -> str:
    """Return where this user's store is unless told otherwise."""
    if os.geteuid() == 0:
        return "/var/lib/unionfs"
    data = os.environ.get("XDG_DATA_HOME", "")
    home = data if os.path.isabs(data) else os.path.expanduser("~/.local/share")
    return os.path.join(home, "unionfs")


class Store:
    """A store, opened with one of its drivers."""

    def __init__(self, root: str, driver: Driver, database: Database) -> None:
        self.root = root
        self.driver = driver
        self.database = database
        self.uses = Uses(database)
        self._others: dict[str, Driver] = {}

    @classmethod
    def open(cls, root: str, driver: str, options: Mapping[str, str]) -> Self:
        """Open, and make at the first time, the store in the directory *root*.

        *options* are the driver's. Raises `StoreError`, and ``OSError`` for the directory.
        """
        found = registry.driver_class(driver)
        _make_root(root)
        _require_database(root)
        database = Database(os.path.join(root, "store.db"), schema.APPLICATION, schema.MIGRATIONS)
        try:
            opened = found.open(os.path.join(root, driver), options)
        except BaseException:
            database.close()
            raise
        return cls(root, opened, database)

    def close(self) -> None:
        """Give up what the object holds; twice is fine."""
        for driver in (self.driver, *self._others.values()):
            driver.close()
        self.database.close()

    def driver_called(self, name: str) -> Driver:
        """Return the driver *name* of this store, which need not be the one it was opened with.

        Raises what opening it raises.
        """
        if name == self.driver.name:
            return self.driver
        if name not in self._others:
            found = registry.driver_class(name)
            self._others[name] = found.open(os.path.join(self.root, name), {})
        return self._others[name]

    def subject(self, key: str) -> Subject:
        """Return the snapshot *key* as what is used."""
        return Subject("snapshot", self.driver.name, key)

    def place(self, target: str) -> str:
        """Return the real path of *target*, where a snapshot or a volume is or may be mounted.

        Raises `MountError` for what would cover the root of all files, or this store.
        """
        place, root = os.path.realpath(target), os.path.realpath(self.root)
        if place == "/":
            raise MountError(f"{target}: all files are below it; choose another directory")
        if os.path.commonpath((place, root)) in (place, root):
            raise MountError(
                f"{target}: would cover the store in {self.root}; choose another directory"
            )
        return place

    def mount(self, key: str, target: str, *, extra: Sequence[str] = ()) -> None:
        """Mount the snapshot *key* on the directory *target*, with mount options *extra*.

        Raises what `Driver.mounts` raises, and `MountError`.
        """
        # ruff: noqa: PLC0415 - what mounts is for the verbs that do
        from unionfs.driver.attach import attach, detach
        from unionfs.mount import require_directory

        place = self.place(target)
        require_directory(place, target)
        with self.alone(key):
            self._require_no_volume(key)
            # Who looks meanwhile finds no mount yet, but the process that makes it.
            number = self.uses.add(self.subject(key), place, place, os.getpid())
            try:
                attach(self.driver.mounts(key), place, extra=extra)
                try:
                    self.uses.outlive(number)
                except BaseException:
                    detach(place)  # nobody would know of it
                    raise
            except BaseException:
                self.uses.remove(number)
                self.release_unused(key)
                raise

    def umount(self, target: str, *, lazy: bool = False) -> None:
        """Unmount the snapshot on *target*; the last one gives back what the driver took.

        Raises `MountError`, `NotFoundError` when no snapshot of this store is mounted there.
        """
        from unionfs.driver.attach import detach

        place = self.place(target)
        with self.alone(self._used_on(place, target).subject.name):
            # Somebody else may have unmounted it before we were alone.
            use = self._used_on(place, target)
            detach(place, lazy=lazy)
            self.uses.remove(use.id)
            self.release_unused(use.subject.name)

    def _used_on(self, place: str, target: str) -> Use:
        """Return the topmost use of a snapshot on *place*. Raises `NotFoundError`."""
        wanted = ("snapshot", self.driver.name)
        found = [use for use in self.uses.on(place) if use.subject[:2] == wanted]
        if not found:
            raise NotFoundError(f"{target}: no snapshot of {self.root} is mounted here")
        return found[-1]

    def release_unused(self, key: str) -> None:
        """Give back what the driver took for the snapshot *key*, unless somebody uses it."""
        if self.uses.of(self.subject(key)):
            return
        # It may be mounted by others than the store, or gone.
        with contextlib.suppress(FailedPreconditionError, NotFoundError):
            self.driver.release(key)

    @contextlib.contextmanager
    def viewed(self, name: str) -> Iterator[str]:
        """Give the key of a view of the committed snapshot *name*, until the end of the block.

        Raises what `Driver.view` raises.
        """
        key = f"{name} seen by {os.getpid()}-{os.urandom(4).hex()}"
        # By this `remove_left_views` knows whether we are still there.
        number = self.uses.add(self.subject(key), f"process {os.getpid()}", "", os.getpid())
        try:
            self.driver.view(key, name, labels={_LOOKING: ""})
            try:
                yield key
            finally:
                self.driver.release(key)
                self.driver.remove(key)
        finally:
            self.uses.remove(number)

    def remove_left_views(self) -> list[str]:
        """Remove the views of processes that were killed while they looked; return their keys."""
        gone = []
        for info in list(self.driver.walk()):
            if info.kind is Kind.VIEW and _LOOKING in info.labels:
                with contextlib.suppress(FailedPreconditionError, NotFoundError):
                    self.remove(info.key)
                    gone.append(info.key)
        return gone

    def remove(self, key: str) -> None:
        """Remove the snapshot *key*. Raises `FailedPreconditionError` with who uses it."""
        with self.alone(key):
            self.require_unused(key)
            self._require_no_image(key)
            self._require_no_volume(key)
            self.driver.remove(key)

    def _require_no_image(self, key: str) -> None:
        rows = self.database.rows(
            "SELECT image FROM image_layers WHERE driver = ? AND chain = ?",
            (self.driver.name, key),
        )
        if rows:
            raise FailedPreconditionError(
                f"{key}: a layer of the image {rows[0][0]}; remove that (image rm)"
            )

    def _require_no_volume(self, key: str) -> None:
        rows = self.database.rows(
            "SELECT name FROM volumes WHERE driver = ? AND data = ?", (self.driver.name, key)
        )
        if rows:
            raise FailedPreconditionError(
                f"{key}: has the files of the volume {rows[0][0]}; use the commands for volumes"
            )

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> Info:
        """Commit *key* as *name*. Raises `FailedPreconditionError` with who uses it."""
        with self.alone(key):
            self.require_unused(key)
            self._require_no_volume(key)
            return self.driver.commit(name, key, labels=labels)

    def capture(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> Info:
        """Capture *key* as *name*. Raises `FailedPreconditionError` with who uses it."""
        with self.alone(key):
            if not self.driver.capabilities.live_snapshot:
                self.require_unused(key)
            self._require_no_volume(key)
            return self.driver.capture(name, key, labels=labels)

    def require_unused(self, key: str) -> None:
        """Raise `FailedPreconditionError` while the snapshot *key* is used."""
        if found := self.uses.of(self.subject(key)):
            raise FailedPreconditionError(f"{key}: in use by {found[0].holder}")

    @contextlib.contextmanager
    def alone(self, *keys: str) -> Iterator[None]:
        """Keep other processes and threads from mounting or unmounting *keys* meanwhile."""
        fd = os.open(os.path.join(self.root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # One byte of the file for each key, more or less; it goes with the descriptor.
            for key in keys:
                place = zlib.crc32(key.encode(errors="surrogateescape"))
                lock_byte(fd, place)
            yield
        finally:
            os.close(fd)


def _require_database(root: str) -> None:
    """Raise `FaultyError` if this was a store, and nothing says what of it is whose."""
    path = os.path.join(root, "store.db")
    # In this order: whoever makes one of these has made the database before.
    was_used = any(os.path.lexists(os.path.join(root, name)) for name in _TRACES)
    if was_used and not (os.path.exists(path) and os.path.getsize(path)):
        raise FaultyError(
            f"{path}: is gone, and this was a store; restore it from a backup, or move {root} away"
        )


def _make_root(root: str) -> None:
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST):
            raise
        # What is there already, and is no directory.
        why = os.strerror(errno.ENOTDIR if error.errno == errno.EEXIST else error.errno)
        raise UnsupportedError(f"{root}: {why}; choose another directory with --root") from error
