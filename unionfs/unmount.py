"""The end of a mount, as `unionfs.mount` is its beginning."""

from __future__ import annotations

import os

from unionfs import registry
from unionfs.errors import MountError
from unionfs.fuse import mounting

#: For the last writes to reach the disk, in seconds.
_PATIENCE = 60.0
#: A detached mount may be in use for ever; one that is not ends within this.
_LAZY_PATIENCE = 2.0


def unmount(target: str, *, lazy: bool = False) -> int | None:
    """Unmount the union on *target*, and wait until its daemon has brought all to an end.

    With *lazy* it is detached though it is in use; then the process that goes on serving it
    is returned, ``None`` when there is none. Raises `MountError`.
    """
    try:
        place = mounting.resolve(os.fsencode(target))
    except OSError as error:
        raise MountError(f"{target}: {error.strerror}") from error
    entry = mounting.mount_at(place)
    if entry is None or entry.kind != mounting.FSTYPE:
        raise MountError(f"{target}: no union is mounted here")
    record = registry.find(entry)
    mounting.unmount(place, lazy=lazy)
    if record is None:
        return None
    if not lazy and (other := _also_at(entry.device)) is not None:
        raise MountError(f"{target}: unmounted here, but the union is mounted on {other} too")
    if registry.wait_for_end(record, _LAZY_PATIENCE if lazy else _PATIENCE):
        # One that was killed could not remove it.
        registry.remove(record)
        return None
    if not lazy:
        raise MountError(
            f"{target}: unmounted here, but process {record.pid} still serves it elsewhere"
        )
    return record.pid


def _also_at(device: str) -> str | None:
    """Return where else the mount *device* is in this namespace, as binds show it."""
    places = (entry.target for entry in mounting.unions() if entry.device == device)
    return next((os.fsdecode(place) for place in places), None)
