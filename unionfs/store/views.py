"""A volume as it is at one moment: kept as a snapshot, cloned, and what views are made of.

All of these share the files: what is there becomes a committed snapshot of the storage driver,
on which the volume goes on, and so does whatever else is to begin like it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from unionfs.driver.api import STACKED, Driver, Info, Kind
from unionfs.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StoreError,
)
from unionfs.layer import xattrs
from unionfs.optwords import parse_options
from unionfs.store.volume import ANONYMOUS, LABEL, Volume, check_name
from unionfs.store.volume_tree import shown

if TYPE_CHECKING:
    from unionfs.store.volumes import Volumes

#: The label of snapshots that a person has taken: of which volume.
OF_VOLUME: Final = "unionfs.snapshot-of"
_PATHS: Final = ("/", "./", "../")
#: What makes two roots the same, beside their xattrs.
_FIELDS: Final = ("st_mode", "st_uid", "st_gid", "st_mtime_ns")


def meant(source: str) -> str:
    """Return what the option ``from`` is remembered as: of a directory, its absolute path."""
    return os.path.realpath(source) if _is_path(source) else source


def _is_path(source: str) -> bool:
    return source.startswith(_PATHS) or source in (".", "..")


@contextlib.contextmanager
def source_of(volumes: Volumes, source: str, driver: str) -> Iterator[tuple[str, str]]:
    """Tell what ``from=SOURCE`` means: a directory or a name, and the snapshot to begin with.

    That is empty for a directory, and stays to the end of the block. Raises `NotFoundError`,
    `InvalidArgumentError`, `FailedPreconditionError` for a volume in use.
    """
    if _is_path(source):
        yield _directory(volumes, source), ""
        return
    try:
        volume = volumes.find(source)
    except NotFoundError:
        yield source, _committed(volumes, source, driver)
        return
    if volume.driver != driver:
        raise InvalidArgumentError(
            f"from={source}: a volume of the driver {volume.driver}; give --driver {volume.driver}"
        )
    with captured(volumes, volume) as parent:
        yield source, parent


def _directory(volumes: Volumes, source: str) -> str:
    path = os.path.realpath(source)
    if not os.path.isdir(path):
        raise NotFoundError(f"from={source}: no such directory")
    if f"{os.path.realpath(volumes.store.root)}/".startswith(f"{path.rstrip('/')}/"):
        raise InvalidArgumentError(f"from={source}: has the store itself in it")
    return path


def _committed(volumes: Volumes, source: str, driver: str) -> str:
    """Return the snapshot of *driver* that is the top of the image *source*, or has that name."""
    # ruff: noqa: PLC0415 - all that is about images is for this alone
    from unionfs.store.images import Images

    name = Images(volumes.store).parent(source) if driver == volumes.store.driver.name else source
    with contextlib.suppress(NotFoundError):
        if volumes.store.driver_called(driver).stat(name).kind is Kind.COMMITTED:
            return name
        raise InvalidArgumentError(f"from={source}: a snapshot that is not committed")
    raise NotFoundError(f"from={source}: no volume, image or directory (that starts with / or ./)")


@contextlib.contextmanager
def captured(volumes: Volumes, volume: Volume) -> Iterator[str]:
    """Give a committed snapshot with the files that *volume* has now.

    Whatever is made on top of it in the block keeps it. Raises `FailedPreconditionError` for one
    in use, where its driver cannot capture that.
    """
    _require_files(volume)
    driver = volumes.store.driver_called(volume.driver)
    with volumes.naming(volume) as key:
        with volumes.alone(volume.name):
            volume = volumes.find(volume.name)
            name = _unchanged(driver, volume.data)
            if name is None:
                name = key
                _capture(volumes, volume, key, {LABEL: volume.name})
        yield name


def _require_files(volume: Volume) -> None:
    """Raise `FailedPreconditionError` unless the store has all files of *volume*."""
    if volume.base is not None:
        raise FailedPreconditionError(
            f"{volume.name}: a view of the directory {volume.base}, of which the store has the"
            " changes alone; clone it, or back it up"
        )
    if not volume.data:
        where = volume.options.get("device", volume.options.get("type", ""))
        raise FailedPreconditionError(
            f"{volume.name}: its files are not in the store but in {where}"
        )


def _capture(volumes: Volumes, volume: Volume, name: str, labels: Mapping[str, str]) -> Info:
    """Commit the files of *volume* as *name*; it goes on on top of that.

    The caller keeps others from it.
    """
    driver = volumes.store.driver_called(volume.driver)
    users = volumes.uses(volume)
    if users and not driver.capabilities.live_snapshot:
        raise FailedPreconditionError(
            f"{volume.name}: volume is in use by {users[0].holder}; the driver {driver.name} can"
            " capture one only while nobody uses it (the driver block also then)"
        )
    tree = volumes.tree(volume)
    if not users:
        tree.hide()
    # Its directory is about to become the snapshot's, which nobody may write to.
    tree.unlink()
    try:
        return driver.capture(name, volume.data, labels=labels)
    finally:
        tree.link()


def _unchanged(driver: Driver, key: str) -> str | None:
    """Return the parent of *key* if *key* changes nothing of it, as far as that can be seen."""
    parent = driver.stat(key).parent
    if not parent or driver.capabilities.live_snapshot:
        return None
    for mount in driver.mounts(key):
        if mount.type not in STACKED:
            return None
        options = parse_options([",".join(mount.options)], tolerant=True).options
        upper, lowers = options.upperdir, options.lowerdirs
        if upper and lowers and not os.listdir(upper) and _root(upper) == _root(lowers[0]):
            return parent
    return None


def _root(directory: bytes) -> tuple[object, ...]:
    status = os.lstat(directory)
    attributes = {name: xattrs.read(directory, name) for name in xattrs.names(directory)}
    return *(getattr(status, field) for field in _FIELDS), attributes


def snapshot(volumes: Volumes, name: str, key: str | None = None) -> Info:
    """Take a snapshot of the volume *name*, called *key* or after the volume and the time.

    It is the driver's: others can be prepared on it, and it outlives the volume. Raises as
    `captured`, `AlreadyExistsError` for *key*.
    """
    moment = datetime.fromtimestamp(time.time_ns() / 1e9, UTC)
    key = key or f"{name}@{moment.isoformat(timespec='microseconds').replace('+00:00', 'Z')}"
    with volumes.alone(name):
        volume = volumes.find(name)
        _require_files(volume)
        return _capture(volumes, volume, key, {OF_VOLUME: name})


def clone(volumes: Volumes, name: str, new: str) -> Volume:
    """Make the volume *new* with the files, the options and the labels that *name* has.

    Raises `AlreadyExistsError` for *new*, and as `captured`.
    """
    check_name(new)
    volumes.require_free(new)
    volume = volumes.find(name)
    labels = {key: text for key, text in volume.labels.items() if key != ANONYMOUS}
    wanted = volume._replace(name=new, labels=labels, created=time.time_ns(), data="", holds=0)
    if volume.base is not None:
        return _clone_view(volumes, volume, wanted)
    with captured(volumes, volume) as parent, volumes.making(wanted, parent) as key:
        made = wanted._replace(data=key)
        volumes.adopt(made)
        return made


def _clone_view(volumes: Volumes, volume: Volume, wanted: Volume) -> Volume:
    """Copy what a view changes: of its directory nothing is in the store."""
    store = volumes.store
    driver = store.driver_called(volume.driver)
    with volumes.making(wanted) as key:
        with volumes.alone(volume.name):
            volume = volumes.find(volume.name)
            volumes.require_unused(volume)
            volumes.tree(volume).hide()
            with shown(store, driver, volume.data) as source, shown(store, driver, key) as target:
                _copy(source, target)
        made = wanted._replace(data=key)
        volumes.adopt(made)
        return made


def _copy(source: str, target: str) -> None:
    """Copy all in *source* to *target* with every attribute, marks of layers included."""
    done = subprocess.run(
        ["cp", "-a", "--reflink=auto", "--", f"{source}/.", target],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"cp: exit status {done.returncode}"]
        raise StoreError(said[0])
