"""The block driver: which device a snapshot has, and what of it is mounted.

``snapshots/ID/device`` is a link whose text is the number of the snapshot's device; all else
is the engine's. See `unionfs.driver.block` for who does what.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Final, Self

from unionfs import sizes
from unionfs.driver.api import Capabilities, Info, Kind, Mount, Usage
from unionfs.driver.block import blockdev, devices, filesystem
from unionfs.driver.block.devices import Devices
from unionfs.driver.block.engine import Engine
from unionfs.driver.block.qcow2 import Qcow2Engine
from unionfs.driver.block.thin import ThinEngine
from unionfs.driver.lifecycle import SnapshotDriver
from unionfs.driver.metadata import Metadata, Snapshot, check_key, check_labels
from unionfs.errors import FaultyError, InvalidArgumentError, NotFoundError, UsageError
from unionfs.reserve import Reserve

#: By name: the engine, and the options that are its own.
_ENGINES: Final[dict[str, tuple[type[Qcow2Engine | ThinEngine], frozenset[str]]]] = {
    "qcow2": (Qcow2Engine, frozenset()),
    "thin": (ThinEngine, frozenset({"thinpool", "datadev", "metadatadev"})),
}
_DEFAULT_SIZE: Final = "10G"
_LINK: Final = "device"
_SECTOR: Final = 4096


class BlockDriver(SnapshotDriver):
    """See the module."""

    name: ClassVar[str] = "block"
    capabilities: ClassVar[Capabilities] = Capabilities(
        quota=True, live_snapshot=True, needs_root=True
    )
    options: ClassVar[Mapping[str, str]] = {
        "engine": "qcow2 (the default) or thin: what makes the devices",
        "fs": "ext4 (the default) or xfs: the file system in new devices",
        "size": f"the limit of a snapshot that is told none, {_DEFAULT_SIZE} by default",
        "thinpool": "the pool of engine=thin: /dev/mapper/NAME",
        "datadev": "instead of thinpool: the device that a pool is made of",
        "metadatadev": "with datadev: the device for the metadata of that pool",
    }
    schema: ClassVar[tuple[str, ...]] = (devices.SCHEMA,)

    def __init__(
        self, home: str, metadata: Metadata, *, engine: Engine, fs: str, size: int
    ) -> None:
        super().__init__(home, metadata)
        mountpoint = os.path.join(home, "mountpoint")
        os.makedirs(mountpoint, mode=0o700, exist_ok=True)
        self._kinds = {name: kind(mountpoint) for name, kind in filesystem.KINDS.items()}
        self._kinds[fs].require_programs()
        self._fs = fs
        self._size = size
        self.devices = Devices(home, metadata, engine, self._kinds)
        self._reserve = Reserve(os.path.join(home, "reserve"))
        self._reserve.fill()

    @classmethod
    def configure(cls, home: str, metadata: Metadata, options: Mapping[str, str]) -> Self:
        engine = cls._engine(home, options)
        fs = options.get("fs", "ext4")
        if fs not in filesystem.KINDS:
            raise UsageError(f"fs={fs}: it is {' or '.join(filesystem.KINDS)}")
        size = sizes.parse(options.get("size", _DEFAULT_SIZE))
        if size is None:
            raise UsageError(f"size={options['size']}: {sizes.NOT_A_SIZE}")
        smallest = filesystem.KINDS[fs].minimum
        if size < smallest:
            raise UsageError(f"size={options['size']}: {fs} has {smallest >> 20}M at least")
        return cls(home, metadata, engine=engine(), fs=fs, size=size)

    @staticmethod
    def _engine(home: str, options: Mapping[str, str]) -> Callable[[], Engine]:
        """Return what makes the engine that *options* name, with all that it needs."""
        name = options.get("engine", "qcow2")
        if name not in _ENGINES:
            raise UsageError(f"engine={name}: it is {' or '.join(_ENGINES)}")
        engine, known = _ENGINES[name]
        for other, (_, own) in _ENGINES.items():
            for option in sorted(own & options.keys() - known):
                raise UsageError(f"{option}: only with engine={other}")
        engine.check_options(options)
        return lambda: engine(home, options)

    def _limit(self, size: int | None, parent: Snapshot | None) -> int | None:
        limit = super()._limit(size, parent) or self._size
        smallest = filesystem.KINDS[self._fs].minimum
        if limit < smallest:
            raise InvalidArgumentError(
                f"size {limit}: {self._fs} has {smallest} bytes ({smallest >> 20}M) at least"
            )
        return limit

    def begin(self, directory: str, kind: Kind, parent: Snapshot | None, size: int | None) -> None:
        assert size is not None
        size -= size % _SECTOR
        origin = self.devices.base(size, self._fs) if parent is None else self.device(parent)

        def named(number: int) -> None:
            os.symlink(str(number), os.path.join(directory, _LINK))

        self.devices.snap(origin, size, read_only=kind is Kind.VIEW, named=named)

    def device(self, snapshot: Snapshot) -> int:
        """Return the number of the device of *snapshot*."""
        number = self._device_in(self.directory(snapshot))
        if number is None:
            raise FaultyError(f"{snapshot.key}: {self.directory(snapshot)} names no device")
        return number

    def _device_in(self, directory: str) -> int | None:
        try:
            return int(os.readlink(os.path.join(directory, _LINK)))
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _faulty_by_key(self, snapshot: Snapshot) -> Iterator[None]:
        """Say of which snapshot a faulty device is."""
        try:
            yield
        except FaultyError as error:
            raise FaultyError(f"{snapshot.key}: {error}") from error

    def tell_mounts(self, chain: Sequence[Snapshot]) -> Sequence[Mount]:
        snapshot = chain[0]
        with self._faulty_by_key(snapshot):
            path = self.devices.attach(self.device(snapshot))
            kind = self._kinds[self.devices.filesystem(self.device(snapshot))]
        read_only = snapshot.kind is Kind.VIEW
        return [Mount(kind.name, path, kind.mount_options(read_only=read_only))]

    def detach(self, snapshot: Snapshot) -> None:
        number = self._device_in(self.directory(snapshot))
        if number is not None:
            self.devices.detach(number)

    def require_unmounted(self, snapshot: Snapshot) -> None:
        number = self._device_in(self.directory(snapshot))
        path = None if number is None else self.devices.attached(number)
        if path is not None:
            blockdev.require_unmounted(path)

    def require_unwritten(self, snapshot: Snapshot) -> None:
        self.require_unmounted(snapshot)

    def seal(self, snapshot: Snapshot) -> None:
        with self._faulty_by_key(snapshot):
            self.devices.seal(self.device(snapshot))

    def measure(self, snapshot: Snapshot) -> Usage:
        return Usage(self.devices.usage(self.device(snapshot)), 0)

    def discard(self, directory: str) -> None:
        number = self._device_in(directory)
        if number is not None:
            self.devices.discard(number)
        super().discard(directory)

    def cleanup(self) -> Sequence[str]:
        gone = super().cleanup()
        return [*gone, *(f"device {number}" for number in self.devices.cleanup())]

    # What must not change while it is looked at

    def commit(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> Info:
        with self.devices.use(self.device(self.metadata.find(key))):
            return super().commit(name, key, labels=labels)

    def release(self, key: str) -> None:
        self._reserve.spend_for(lambda: SnapshotDriver.release(self, key))

    def remove(self, key: str) -> None:
        self._reserve.spend_for(lambda: self._remove(key))

    def _remove(self, key: str) -> None:
        found = self.metadata.find(key)
        with contextlib.ExitStack() as held:
            # What is faulty can be removed, too.
            with contextlib.suppress(FaultyError):
                held.enter_context(self.devices.use(self.device(found)))
            super().remove(key)

    def capture(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> Info:
        device = self.device(self.metadata.find(key))
        with self.devices.use(device):
            if self.devices.attached(device) is None:
                return super().capture(name, key, labels=labels)
            return self._capture_live(name, key, device, labels)

    def _capture_live(
        self, name: str, key: str, device: int, labels: Mapping[str, str] | None
    ) -> Info:
        """Capture a snapshot that may be mounted: what serves it goes on on a new device.

        The transaction comes first. Whoever meets the two before the device has gone on
        brings that to its end: see `Devices.end_capture`.
        """
        check_key(name)
        check_labels(labels or {})
        found = self._active(key)
        self.metadata.require_free(name)
        with self._new_directory() as directory:
            self.begin(directory, Kind.ACTIVE, found, found.size_limit)
            successor = self._device_in(directory)
            assert successor is not None
            with self.devices.hold(successor):
                with self.metadata.write():
                    if self._active(key).id != found.id:
                        raise NotFoundError(f"{key}: was replaced meanwhile; try again")
                    kept = found.labels if labels is None else labels
                    taken = self.metadata.commit(found, name, kept, None)
                    made = self.metadata.insert(
                        key, Kind.ACTIVE, taken, found.labels, found.size_limit
                    )
                    self._put_in_place(directory, made)
                    self.devices.begin_capture(successor)
                try:
                    self.devices.end_capture(successor)
                except Exception:
                    if self.devices.attached(device) is not None:
                        self._undo_capture(found, made)
                    raise
        return taken.info()

    def _undo_capture(self, found: Snapshot, made: Snapshot) -> None:
        with self.metadata.write():
            self.metadata.remove(made)
            self.metadata.uncommit(found)
        self.discard(self.directory(made))
