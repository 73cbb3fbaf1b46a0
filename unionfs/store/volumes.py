"""The volumes of a store: made, found, used, removed.

A volume exists when its row does. Its files are an active snapshot of its storage driver, under a
key that only the row leads to, or elsewhere (see `unionfs.store.volume`). A snapshot in the
making is used by the process that makes it; one of a volume that neither a row nor such a
process knows was left by a crash (see `unionfs.store.volume_garbage`).

Who uses a volume says so by an id of his own, as often as he likes. `Volumes.mount` counts
until the mount is gone, `Volumes.hold` until the process is gone or `Volumes.release` is called.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from unionfs.driver.api import Mount
from unionfs.driver.attach import attach
from unionfs.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from unionfs.fuse import mounting
from unionfs.mount import require_directory
from unionfs.store import views
from unionfs.store.store import Store
from unionfs.store.uses import Subject, Use
from unionfs.store.volume import ANONYMOUS, LABEL, Volume, check_name, check_options, size_limit
from unionfs.store.volume_garbage import drop
from unionfs.store.volume_table import VolumeTable
from unionfs.store.volume_tree import VolumeTree


class Held(NamedTuple):
    """A volume in use."""

    id: int
    """For `Volumes.release`."""
    path: str
    """The directory that shows its files."""


class Volumes:
    """The volumes of a store, whichever of its drivers keeps them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._table = VolumeTable(store.database)
        self._uses = store.uses

    # Which there are

    def all(self) -> list[Volume]:
        """Return all volumes, by name."""
        return self._table.all()

    def find(self, name: str) -> Volume:
        """Return the volume *name*. Raises `NotFoundError`."""
        return self._table.find(name)

    def uses(self, volume: Volume) -> list[Use]:
        """Return the living uses of *volume*, the oldest first."""
        return self._uses.of(_subject(volume))

    def in_use(self) -> set[str]:
        """Return the names of the volumes that somebody uses."""
        return {use.subject.name for use in self._uses.all() if use.subject.kind == "volume"}

    def size(self, volume: Volume) -> int:
        """Return the bytes that the files of *volume* take of the disk, -1 if not the store's."""
        if not volume.data:
            return -1
        return self.store.driver_called(volume.driver).usage(volume.data).size

    def tree(self, volume: Volume) -> VolumeTree:
        """Return where the files of *volume* are to be seen."""
        return VolumeTree(self.store, volume)

    # Made

    def create(
        self,
        name: str | None = None,
        *,
        driver: str | None = None,
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Volume:
        """Return the volume *name*, which is made if there is none; without a name a new one.

        *driver* keeps its files, by default the store's. One that is there must have been
        made with the same *options*; its labels stay.

        Raises `AlreadyExistsError` for one with other options or another driver,
        `InvalidArgumentError` for names and options, `NotFoundError` for what ``from`` names,
        `UnsupportedError` for a ``size`` that cannot be kept.
        """
        options, labels = dict(options or {}), dict(labels or {})
        if name is None:
            name = secrets.token_hex(32)
            labels.setdefault(ANONYMOUS, "")
        check_name(name)
        check_options(options)
        with contextlib.ExitStack() as held:
            if (there := self._there(name, driver, options)) is not None:
                return there
            keeper = driver or self.store.driver.name
            self._require_limit(keeper, options)
            parent = ""
            if "from" in options:
                options["from"], parent = held.enter_context(
                    views.source_of(self, options["from"], keeper)
                )
            new = Volume(name, keeper, options, labels, time.time_ns(), "", 0)
            return self._add(new, parent)

    def obtain(self, name: str) -> Volume:
        """Return the volume *name*, whatever it is; made without options if there is none.

        That is what ``run -v NAME:/PATH`` means. Raises as `create`.
        """
        with contextlib.suppress(NotFoundError):
            return self.find(name)
        return self.create(name)

    def _require_limit(self, driver: str, options: Mapping[str, str]) -> None:
        """Raise `UnsupportedError` for a size that would not be kept."""
        if "size" not in options or "type" in options:
            return
        if not self.store.driver_called(driver).capabilities.quota:
            raise UnsupportedError(
                f"size={options['size']}: the driver {driver} cannot limit a volume; use --driver"
                " block, or --opt type=tmpfs for one in memory"
            )

    def _there(self, name: str, driver: str | None, options: Mapping[str, str]) -> Volume | None:
        """Return the volume *name* if it is as wanted. Raises `AlreadyExistsError` if not."""
        try:
            found = self.find(name)
        except NotFoundError:
            return None
        if driver not in (None, found.driver):
            raise AlreadyExistsError(
                f"create {name}: conflict: volume name must be unique: there is one with the"
                f" driver {found.driver}"
            )
        wanted = dict(options)
        if "from" in wanted:
            wanted["from"] = views.meant(wanted["from"])
        if wanted != found.options:
            shown = ", ".join(f"{key}={text}" for key, text in found.options.items()) or "none"
            raise AlreadyExistsError(
                f"create {name}: conflict: volume name must be unique: there is one with other"
                f" options: {shown}"
            )
        return found

    def _add(self, new: Volume, parent: str) -> Volume:
        """Add *new*, unless such a one was made meanwhile. Raises as `create`."""
        with self.alone(new.name):
            if (there := self._there(new.name, new.driver, new.options)) is not None:
                return there
            if "type" in new.options:
                self._table.insert(new)
                return new
            with self.making(new, parent) as key:
                made = new._replace(data=key)
                self._table.insert(made)
            self.tree(made).link()
            return made

    def adopt(self, new: Volume) -> None:
        """Add *new*, whose files are there. Raises `AlreadyExistsError` for one of its name."""
        with self.alone(new.name):
            self.require_free(new.name)
            self._table.insert(new)
            self.tree(new).link()

    def require_free(self, name: str) -> None:
        """Raise `AlreadyExistsError` if there is a volume *name*."""
        with contextlib.suppress(NotFoundError):
            self.find(name)
            raise AlreadyExistsError(f"create {name}: conflict: volume name must be unique")

    @contextlib.contextmanager
    def making(self, volume: Volume, parent: str = "") -> Iterator[str]:
        """Make a snapshot that is to have the files of *volume*, on top of *parent*; give its key.

        It is this process's own until the end of the block. If that raises, it is removed,
        unless it has become a volume's by then.
        """
        driver = self.store.driver_called(volume.driver)
        with self.naming(volume) as key:
            driver.prepare(
                key, parent, labels={LABEL: volume.name}, size=size_limit(volume.options)
            )
            try:
                yield key
            except BaseException:
                if not self._table.has_data(volume.driver, key):
                    with contextlib.suppress(StoreError):
                        driver.remove(key)
                raise

    @contextlib.contextmanager
    def naming(self, volume: Volume) -> Iterator[str]:
        """Give a key for a snapshot of *volume* that is this process's own to the block's end."""
        key = f"volume/{volume.name}/{secrets.token_hex(4)}"
        subject = Subject("snapshot", volume.driver, key)
        number = self._uses.add(subject, f"process {os.getpid()}", "", os.getpid())
        try:
            yield key
        finally:
            self._uses.remove(number)

    def replace(self, volume: Volume, data: str) -> None:
        """Let the files of *volume* be those of the snapshot *data*, and remove the old ones.

        Raises `FailedPreconditionError` while it is in use, or was replaced meanwhile.
        """
        with self.alone(volume.name):
            if self.find(volume.name).data != volume.data:
                raise FailedPreconditionError(f"{volume.name}: was changed meanwhile; try again")
            self.require_unused(volume)
            tree = self.tree(volume)
            tree.hide()
            tree.unlink()
            self._table.set_data(volume.name, data)
            self.tree(volume._replace(data=data)).link()
            drop(self.store, self.store.driver_called(volume.driver), volume.data)

    # Removed

    def remove(self, name: str) -> int:
        """Remove the volume *name*; return the bytes that came free.

        Raises `NotFoundError`, `FailedPreconditionError` with who uses it.
        """
        with self.alone(name):
            volume = self.find(name)
            if users := self.uses(volume):
                shown = ", ".join(use.holder for use in users)
                raise FailedPreconditionError(f"remove {name}: volume is in use - [{shown}]")
            tree = self.tree(volume)
            tree.hide()
            tree.unlink()
            self._table.delete(name)
            tree.remove()
            if not volume.data:
                return 0
            return drop(self.store, self.store.driver_called(volume.driver), volume.data)

    # Used

    def hold(self, name: str, holder: str, pid: int | None = None) -> Held:
        """Let *holder* use the volume *name*, until `release` or the end of the process *pid*.

        Its files are at the path returned as long as that lasts. Raises `NotFoundError`, and
        what mounting raises.
        """
        with self.alone(name):
            volume = self.find(name)
            with self._used(volume, holder, "", pid) as (number, path):
                return Held(number, path)

    def release(self, number: int) -> None:
        """End the use *number*, which `hold` began; one that is over is none to end."""
        found = [use for use in self._uses.all() if use.id == number]
        for use in found:
            with self.alone(use.subject.name):
                self._uses.remove(number)
                self._hide_unused(use.subject.name)

    def release_held(self, name: str, holder: str) -> None:
        """End one use of the volume *name* that `hold` began for *holder*, and no process ends.

        It is no error if there is none. Raises `NotFoundError` for the volume.
        """
        with self.alone(name):
            for use in reversed(self.uses(self.find(name))):
                if use.holder == holder and not use.target and use.pid is None:
                    self._uses.remove(use.id)
                    break
            self._hide_unused(name)

    def mount(
        self,
        name: str,
        target: str,
        holder: str | None = None,
        pid: int | None = None,
        *,
        extra: Sequence[str] = (),
    ) -> None:
        """Mount the volume *name* on the directory *target* for *holder*, by default the path.

        The use ends with `unmount`, and with the mount, or the process *pid* if one is given.
        *extra* are mount options, as ``ro``. Raises `NotFoundError`, and what mounting raises.
        """
        place = self.store.place(target)
        require_directory(place, target)
        with self.alone(name):
            volume = self.find(name)
            # Who looks meanwhile finds no mount yet, but the process that makes it.
            with self._used(volume, holder or place, place, pid or os.getpid()) as (number, path):
                bind = "rbind" if "rbind" in volume.options.get("o", "").split(",") else "bind"
                attach([Mount("bind", path, (bind, *extra))], place)
                if pid is None:
                    try:
                        self._uses.outlive(number)
                    except BaseException:
                        mounting.unmount(os.fsencode(place))  # nobody would know of it
                        raise

    @contextlib.contextmanager
    def _used(
        self, volume: Volume, holder: str, target: str, pid: int | None
    ) -> Iterator[tuple[int, str]]:
        """Begin a use, which comes to nothing if the block raises; give number and directory."""
        users = [use.holder for use in self.uses(volume)]
        number = self._uses.add(_subject(volume), holder, target, pid)
        try:
            path = self.tree(volume).show(users)
            self._table.count_hold(volume.name)
            yield number, path
        except BaseException:
            self._uses.remove(number)
            self._hide_unused(volume.name)
            raise

    def unmount(self, target: str, *, lazy: bool = False) -> None:
        """Unmount the volume on *target*; after its last use it is not to be seen any more.

        Raises `NotFoundError` where no volume of this store is mounted, `MountError`.
        """
        place = self.store.place(target)
        found = [use for use in self._uses.on(place) if use.subject.kind == "volume"]
        if not found or mounting.mount_at(os.fsencode(place)) is None:
            raise NotFoundError(f"{target}: no volume of {self.store.root} is mounted here")
        use = found[-1]
        with self.alone(use.subject.name):
            # A bind of what others see, too: there is no daemon to wait for.
            mounting.unmount(os.fsencode(place), lazy=lazy)
            self._uses.remove(use.id)
            self._hide_unused(use.subject.name)

    def settle(self, name: str) -> None:
        """Unmount what a killed user of the volume *name* has left, if nobody uses it now."""
        with self.alone(name):
            self._hide_unused(name)

    def _hide_unused(self, name: str) -> None:
        with contextlib.suppress(NotFoundError):
            volume = self.find(name)
            if not self.uses(volume):
                self.tree(volume).hide()

    def require_unused(self, volume: Volume) -> None:
        """Raise `FailedPreconditionError` while *volume* is used, with by whom."""
        if users := self.uses(volume):
            raise FailedPreconditionError(f"{volume.name}: volume is in use by {users[0].holder}")

    def alone(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Keep other processes and threads from changing or using *name* meanwhile."""
        return self.store.alone(f"volume {name}")


def _subject(volume: Volume) -> Subject:
    return Subject("volume", volume.driver, volume.name)
