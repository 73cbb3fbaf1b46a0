"""The life of snapshots that have a directory each: every verb of the API, for most drivers.

``HOME/metadata.db`` says which snapshots there are, ``HOME/snapshots/ID`` has their data. A
driver derives from `SnapshotDriver` and says what such a directory holds: how it is begun,
what is mounted of it, what it takes.

A directory is made as ``new.XXXX``, outside of any transaction and for as long as it takes;
in the transaction that adds its row it is renamed to the row's number. The data of a removed
snapshot go after the transaction. So a process killed at any point leaves directories
without a row, never a row without a directory; `cleanup` tells them from those in the
making, which are locked by whoever makes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final, Self

from unionfs import ondisk
from unionfs.driver.api import Driver, Info, Kind, Mount, Usage
from unionfs.driver.metadata import Metadata, Snapshot, check_key, check_labels
from unionfs.driver.usage import disk_usage, kept_from_writing, mounted_from
from unionfs.errors import (
    FailedPreconditionError,
    FaultyError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from unionfs.layer import syscalls
from unionfs.layer.walk import remove_tree

_NEW: Final = "new."
_OLD: Final = "old."


class SnapshotDriver(Driver):
    """A driver whose snapshots have a directory each."""

    #: Migrations of tables that a driver has beside that of its snapshots.
    schema: ClassVar[tuple[str, ...]] = ()

    def __init__(self, home: str, metadata: Metadata) -> None:
        self.home = home
        self.metadata = metadata
        self._snapshots = os.path.join(home, "snapshots")

    # What a driver says of its data

    @classmethod
    def configure(cls, home: str, metadata: Metadata, options: Mapping[str, str]) -> Self:
        """Return the driver; *options* have no name that is not in `options`."""
        return cls(home, metadata)

    @abstractmethod
    def begin(self, directory: str, kind: Kind, parent: Snapshot | None, size: int | None) -> None:
        """Fill the new, empty *directory* of an active snapshot or a view of *parent*.

        *size* is the limit of its tree, already checked, ``None`` for none.
        """

    @abstractmethod
    def tell_mounts(self, chain: Sequence[Snapshot]) -> Sequence[Mount]:
        """Return the mounts of ``chain[0]``, active or a view; the rest are those below it."""

    def seal(self, snapshot: Snapshot) -> None:
        """Bring all of *snapshot* to the disk, before it is committed."""
        fd = os.open(self.directory(snapshot), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)

    def measure(self, snapshot: Snapshot) -> Usage:
        """Return what *snapshot* takes of the disk."""
        return disk_usage(self.directory(snapshot))

    def detach(self, snapshot: Snapshot) -> None:
        """Give back what `tell_mounts` took for *snapshot*, which is not mounted."""

    def discard(self, directory: str) -> None:
        """Remove *directory*, of a snapshot that is gone or was never there, or what is left."""
        remove_tree(syscalls.AT_FDCWD, os.fsencode(directory))

    # The API

    @classmethod
    def open(cls, home: str, options: Mapping[str, str]) -> Self:
        for name in options:
            if name not in cls.options:
                known = ", ".join(cls.options) or "none"
                raise UsageError(f"{cls.name}: unknown option {name}; it knows: {known}")
        if cls.capabilities.needs_root and os.geteuid() != 0:
            raise UnsupportedError(f"the driver {cls.name} needs root; the overlay driver does not")
        os.makedirs(home, mode=0o711, exist_ok=True)
        os.makedirs(os.path.join(home, "snapshots"), mode=0o711, exist_ok=True)
        _require_metadata(home)
        metadata = Metadata(os.path.join(home, "metadata.db"), cls.schema)
        try:
            return cls.configure(os.path.realpath(home), metadata, options)
        except BaseException:
            metadata.close()
            raise

    def prepare(
        self,
        key: str,
        parent: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        size: int | None = None,
    ) -> Info:
        return self._make(Kind.ACTIVE, key, parent, labels or {}, size)

    def view(self, key: str, parent: str, *, labels: Mapping[str, str] | None = None) -> Info:
        return self._make(Kind.VIEW, key, parent, labels or {}, None)

    def _make(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str], size: int | None
    ) -> Info:
        check_key(key)
        check_labels(labels)
        self.metadata.require_free(key)
        below = self.metadata.parent_of_new(parent) if parent or kind is Kind.VIEW else None
        limit = self._limit(size, below)
        with self._new_directory() as directory:
            self.begin(directory, kind, below, limit)
            with self.metadata.write():
                if below is not None and self.metadata.parent_of_new(parent).id != below.id:
                    raise NotFoundError(f"{parent}: was replaced meanwhile; try again")
                made = self.metadata.insert(key, kind, below, labels, limit)
                self._put_in_place(directory, made)
        return made.info()

    def _limit(self, size: int | None, parent: Snapshot | None) -> int | None:
        inherited = None if parent is None else parent.size_limit
        if size is None:
            return inherited
        if not self.capabilities.quota:
            raise UnsupportedError(f"the driver {self.name} cannot limit the size of a snapshot")
        if size <= 0 or size < (inherited or 0):
            raise InvalidArgumentError(
                f"size {size}: below that of the parent, {inherited or 'which has none'}"
            )
        return size

    def mounts(self, key: str) -> Sequence[Mount]:
        found = self.metadata.find(key)
        if found.kind is Kind.COMMITTED:
            raise FailedPreconditionError(f"{key}: committed; mount a view of it")
        return self.tell_mounts(self.metadata.chain(found))

    def release(self, key: str) -> None:
        found = self.metadata.find(key)
        self.require_unmounted(found)
        self.detach(found)

    def commit(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> Info:
        check_key(name)
        check_labels(labels or {})
        found = self._active(key)
        if name != key:
            self.metadata.require_free(name)
        self.require_unwritten(found)
        self.seal(found)
        usage = self.measure(found)
        with self.metadata.write():
            if self._active(key).id != found.id:
                raise NotFoundError(f"{key}: was replaced meanwhile; try again")
            self.require_unwritten(found)
            kept = found.labels if labels is None else labels
            return self.metadata.commit(found, name, kept, usage).info()

    def _active(self, key: str) -> Snapshot:
        found = self.metadata.find(key)
        if found.kind is not Kind.ACTIVE:
            raise FailedPreconditionError(f"{key}: {found.kind.value}, not active")
        return found

    def capture(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> Info:
        """See `Driver.capture`. The data go to *name*, and *key* begins anew on top of it."""
        check_key(name)
        check_labels(labels or {})
        found = self._active(key)
        self.metadata.require_free(name)
        self.require_unmounted(found)
        self.seal(found)
        usage = self.measure(found)
        with self._new_directory() as directory:
            # It will be the parent; its directory and its number stay what they are.
            self.begin(directory, Kind.ACTIVE, found, found.size_limit)
            with self.metadata.write():
                if self._active(key).id != found.id:
                    raise NotFoundError(f"{key}: was replaced meanwhile; try again")
                self.require_unmounted(found)
                kept = found.labels if labels is None else labels
                taken = self.metadata.commit(found, name, kept, usage)
                made = self.metadata.insert(key, Kind.ACTIVE, taken, found.labels, found.size_limit)
                self._put_in_place(directory, made)
        return taken.info()

    def remove(self, key: str) -> None:
        found = self.metadata.find(key)
        self.require_unmounted(found)
        self.detach(found)
        with self.metadata.write():
            if self.metadata.find(key).id != found.id:
                raise NotFoundError(f"{key}: was replaced meanwhile; try again")
            self.metadata.remove(found)
        # Another process's cleanup may be at it, too: what is missing is no error.
        self.discard(self.directory(found))

    def stat(self, key: str) -> Info:
        return self.metadata.find(key).info()

    def update(self, key: str, labels: Mapping[str, str | None], *, replace: bool = False) -> Info:
        check_labels(labels)
        with self.metadata.write():
            found = self.metadata.find(key)
            merged = labels if replace else {**found.labels, **labels}
            kept = {name: value for name, value in merged.items() if value is not None}
            return self.metadata.label(found, kept).info()

    def usage(self, key: str) -> Usage:
        found = self.metadata.find(key)
        return self.measure(found) if found.usage is None else found.usage

    def walk(self) -> Iterator[Info]:
        return iter(self.metadata.infos())

    def cleanup(self) -> Sequence[str]:
        with self.metadata.write():
            # Nobody renames a new one to its number meanwhile.
            known = {str(number) for number in self.metadata.ids()}
            for name in set(os.listdir(self._snapshots)) - known:
                if not name.startswith((_NEW, _OLD)):
                    os.rename(self._path(name), self._path(_OLD + name))
        left = [name for name in os.listdir(self._snapshots) if name.startswith((_NEW, _OLD))]
        return [self._path(name) for name in left if self._clear(name)]

    def close(self) -> None:
        self.metadata.close()

    # Directories

    def directory(self, snapshot: Snapshot) -> str:
        """Return the directory that has the data of *snapshot*."""
        return self._path(str(snapshot.id))

    def _path(self, name: str) -> str:
        return os.path.join(self._snapshots, name)

    def require_unmounted(self, snapshot: Snapshot) -> None:
        """Raise `FailedPreconditionError` if *snapshot* is mounted, as far as we can see."""
        if target := mounted_from(self.directory(snapshot)):
            raise FailedPreconditionError(f"{snapshot.key}: mounted on {target}; unmount it first")

    def require_unwritten(self, snapshot: Snapshot) -> None:
        """Let nobody write to *snapshot* any more: what is bound of it becomes read-only.

        Raises `FailedPreconditionError` where that cannot be, as far as we can see.
        """
        if target := kept_from_writing(self.directory(snapshot)):
            raise FailedPreconditionError(f"{snapshot.key}: mounted on {target}; unmount it first")

    @contextlib.contextmanager
    def _new_directory(self) -> Iterator[str]:
        """Make a directory that nobody takes for garbage; it is gone unless put in place."""
        while True:
            directory = self._path(_NEW + _unlikely())
            os.mkdir(directory, 0o700)
            # Someone's cleanup may be faster, and have it removed by the time that we lock it.
            with contextlib.suppress(FileNotFoundError):
                fd = _lock(directory, fcntl.LOCK_SH)
                if os.path.lexists(directory):
                    break
                os.close(fd)
        try:
            yield directory
        finally:
            os.close(fd)
            if os.path.lexists(directory):
                self.discard(directory)

    def _put_in_place(self, directory: str, snapshot: Snapshot) -> None:
        place = self.directory(snapshot)
        if os.path.lexists(place):
            # Of a transaction that came to nothing, just before its end.
            os.rename(place, self._path(_OLD + _unlikely()))
        os.rename(directory, place)
        # Before the row: after a power cut there is no name without its directory.
        ondisk.sync(self._snapshots)

    def _clear(self, name: str) -> bool:
        """Remove the left-over directory *name*, unless its maker is still at it."""
        directory = self._path(name)
        try:
            fd = _lock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            return False
        try:
            self.discard(directory)
        finally:
            os.close(fd)
        return True


def _require_metadata(home: str) -> None:
    """Raise `FaultyError` if there are data, and nothing says whose: they are no garbage."""
    path = os.path.join(home, "metadata.db")
    # In this order: whoever makes the first snapshot has made the database before.
    has_data = any(name.isdigit() for name in os.listdir(os.path.join(home, "snapshots")))
    if has_data and not (os.path.exists(path) and os.path.getsize(path)):
        raise FaultyError(
            f"{path}: is gone, and there are snapshots in {home}/snapshots; restore it from a"
            " backup, or move them away"
        )


def _unlikely() -> str:
    """Return a name that nobody else comes up with."""
    return os.urandom(12).hex()


def _lock(directory: str, operation: int) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, operation)
    except BaseException:
        os.close(fd)
        raise
    return fd
