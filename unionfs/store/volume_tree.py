"""Where the files of a volume are to be seen while somebody uses it.

That is ``ROOT/volumes/NAME/_data``, as Docker has it, however many users there are: each
gets a bind of it. So what is mounted there is mounted once, and what is in memory lives from
the first use to the last. Files that are a directory of the storage driver's are seen there at
all times: then it is a symbolic link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Final

from unionfs import ondisk
from unionfs.driver.api import Driver, Mount, plain_directory
from unionfs.driver.attach import attach, detach
from unionfs.errors import FailedPreconditionError, MountError, NotFoundError, StoreError
from unionfs.fuse import mounting
from unionfs.layer.attributes import copy_attributes
from unionfs.layer.stack import may_use_trusted
from unionfs.layer.xattrs import Marks
from unionfs.store.store import Store
from unionfs.store.volume import Volume, foreign_mount, view_of

_DATA: Final = "_data"
#: Where upper and work directory of a view are seen, if they must be mounted.
_LAYERS: Final = "_layers"
#: What mount(8) calls for some types, and the packages of Debian that have it.
_HELPERS: Final = {"nfs": "nfs-common", "nfs4": "nfs-common", "cifs": "cifs-utils"}
#: What a union answers when its daemon has died.
_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)
_HELPERS_PATH: Final = "/sbin:/usr/sbin"


def directory_of(store: Store, name: str) -> str:
    """Return the directory in which places for the volume *name* are made."""
    return os.path.join(os.path.realpath(store.root), "volumes", name)


def place_of(store: Store, key: str) -> str:
    """Return where the snapshot *key* of a volume is mounted to be written or read as a whole."""
    _, name, number = key.split("/")
    return os.path.join(directory_of(store, name), number)


@contextlib.contextmanager
def shown(store: Store, driver: Driver, key: str) -> Iterator[str]:
    """Give a directory with the files of *key*, a snapshot that nobody else mounts."""
    mounts = driver.mounts(key)
    if (directory := plain_directory(mounts)) is not None:
        yield directory
        return
    place = place_of(store, key)
    os.makedirs(place, mode=0o711, exist_ok=True)
    try:
        attach(mounts, place)
        yield place
    finally:
        clear_place(store, key)
        with contextlib.suppress(StoreError):
            driver.release(key)


def clear_place(store: Store, key: str) -> None:
    """Unmount the snapshot *key* from its place, and remove that."""
    place = place_of(store, key)
    unmount_all(place)
    with contextlib.suppress(OSError):
        os.rmdir(place)
        os.rmdir(os.path.dirname(place))


class VolumeTree:
    """The files of one volume. Who calls keeps others from using it meanwhile."""

    def __init__(self, store: Store, volume: Volume) -> None:
        self._store = store
        self._volume = volume
        self._directory = directory_of(store, volume.name)
        #: Where the files are, while they are to be seen.
        self.mountpoint = os.path.join(self._directory, _DATA)

    def link(self) -> None:
        """Let the files be seen at all times, if no mount is needed for that.

        Drivers that serve what is mounted are not asked, since that would start them.
        """
        volume = self._volume
        if not volume.data or volume.base is not None:
            return
        driver = self._store.driver_called(volume.driver)
        if not driver.capabilities.live_snapshot:
            self._link(plain_directory(driver.mounts(volume.data)))

    def _link(self, directory: str | None) -> None:
        self.unlink()
        if directory is not None:
            os.makedirs(self._directory, mode=0o711, exist_ok=True)
            os.symlink(directory, self.mountpoint)

    def unlink(self) -> None:
        """Undo `link`: before the files come to be somewhere else, or are gone.

        It is so after a power cut, too: no link leads to what is nobody's any more.
        """
        if os.path.islink(self.mountpoint):
            os.unlink(self.mountpoint)
            ondisk.sync(self._directory)

    def show(self, users: Sequence[str]) -> str:
        """Let the files be seen in a directory, and return it; *users* use them already.

        Raises `MountError`, and what the driver's ``mounts`` raises.
        """
        if os.path.islink(self.mountpoint):
            return os.path.realpath(self.mountpoint)
        if not users:
            self.hide()  # what a crash left; in memory nothing outlasts its users
            try:
                return self._mount()
            except BaseException:
                self.hide()
                raise
        foreign = foreign_mount(self._volume.options)
        if foreign is not None and (directory := plain_directory([foreign])) is not None:
            return directory
        if mounting.mount_at(os.fsencode(self.mountpoint)) is None:
            raise FailedPreconditionError(
                f"{self._volume.name}: in use by {users[0]}, but {self.mountpoint} is not mounted"
                " in this mount namespace; use it in that one, or end that use first"
            )
        return self._mounted()

    def _mounted(self) -> str:
        """Return where the files are seen, mounted anew if what served them is dead.

        Its users have lost that one for good, and what they had written to it is there.
        """
        try:
            # Other than stat(2), this is never answered by what the kernel remembers.
            os.statvfs(self.mountpoint)
        except OSError as error:
            if error.errno not in _DEAD:
                raise FailedPreconditionError(
                    f"{self._volume.name}: {self.mountpoint}: {error.strerror}"
                ) from error
            self.hide()
            return self._mount()
        return self.mountpoint

    def _mount(self) -> str:
        mounts = self._mounts()
        directory = plain_directory(mounts)
        if directory is not None:
            if self._volume.data:
                self._link(directory)
            elif not os.path.isdir(directory):
                raise NotFoundError(f"{self._volume.name}: device={directory}: no such directory")
            return directory
        self._attach(mounts, self.mountpoint)
        return self.mountpoint

    def _mounts(self) -> Sequence[Mount]:
        foreign = foreign_mount(self._volume.options)
        if foreign is not None:
            return [foreign]
        mounts = self._store.driver_called(self._volume.driver).mounts(self._volume.data)
        base = self._volume.base
        if base is None:
            return mounts
        if not os.path.isdir(base):
            raise NotFoundError(f"{self._volume.name}: from={base}: no such directory")
        inside = plain_directory(mounts)
        if inside is None:
            inside = os.path.join(self._directory, _LAYERS)
            self._attach(mounts, inside)
        return [_view(base, inside)]

    def _attach(self, mounts: Sequence[Mount], place: str) -> None:
        os.makedirs(place, mode=0o711, exist_ok=True)
        try:
            attach(mounts, place)
        except MountError as error:
            kind = mounts[-1].type
            hint = ""
            if kind in _HELPERS and shutil.which(f"mount.{kind}", path=_HELPERS_PATH) is None:
                hint = f"; mount.{kind} is missing: install the package {_HELPERS[kind]}"
            raise MountError(f"{self._volume.name}: {error}{hint}") from error

    def hide(self) -> None:
        """Unmount what `show` mounted, and give back what the driver took."""
        for name in (_DATA, _LAYERS):
            place = os.path.join(self._directory, name)
            unmount_all(place)
            if not os.path.islink(place):
                with contextlib.suppress(FileNotFoundError):
                    # Who writes here while nothing is mounted would never see it again.
                    os.rmdir(place)
        if self._volume.data:
            with contextlib.suppress(StoreError):  # gone, or mounted by others
                self._store.driver_called(self._volume.driver).release(self._volume.data)

    def remove(self) -> None:
        """Remove the places, when the volume is gone."""
        self.unlink()
        with contextlib.suppress(OSError):
            os.rmdir(self._directory)


def unmount_all(place: str) -> None:
    """Unmount all that is mounted on *place*, also what somebody is still in."""
    while mounting.mount_at(os.fsencode(place)) is not None:
        try:
            detach(place)
        except MountError:
            # Not because its daemon serves a copy of the mount in another namespace.
            if mounting.mount_at(os.fsencode(place)) is not None:
                mounting.unmount(os.fsencode(place), lazy=True)


def _view(base: str, inside: str) -> Mount:
    """Return what shows the directory *base*, with its changes below the directory *inside*."""
    upper, work = (os.path.join(inside, name) for name in ("upper", "work"))
    if not os.path.isdir(upper):
        os.makedirs(work, exist_ok=True)
        # The root of a union is the upper directory's. It comes last: then all is there.
        new = f"{upper}.new"
        os.makedirs(new, exist_ok=True)
        source = os.fsencode(base)
        marks = Marks(user=not may_use_trusted())
        copy_attributes(source, os.fsencode(new), os.stat(source), marks)
        os.rename(new, upper)
    return view_of(base, upper, work)
