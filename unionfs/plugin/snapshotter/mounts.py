"""What containerd is to mount of a snapshot, and what is mounted here because it cannot.

containerd mounts by itself: binds, overlays, and unions, for which it calls ``mount.fuse3``.
Of what else a driver tells (a directory inside of a file system) it makes nothing: that is
mounted here, on ``ROOT/mounted/NAME``, for as long as the snapshot is neither committed nor
removed, and containerd is told to bind it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from typing import Final

from unionfs.driver.api import STACKED, UNION, Info, Kind, Mount
from unionfs.driver.attach import attach, detach
from unionfs.errors import InvalidArgumentError, MountError, UnsupportedError
from unionfs.fuse import mounting
from unionfs.store.store import Store

#: Labels that say how ids are shown, by our option: ``CONTAINER:HOST:SIZE``, several by commas.
_MAPPINGS: Final = {
    "containerd.io/snapshot/uidmapping": "uidmapping",
    "containerd.io/snapshot/gidmapping": "gidmapping",
}
_MAPPING: Final = re.compile(r"\d+:\d+:\d+(,\d+:\d+:\d+)*")
_CONTAINERDS: Final = ("bind", *STACKED)


class Mounts:
    """The mounts of the snapshots of *store*."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held = os.path.join(os.path.realpath(store.root), "mounted")
        os.makedirs(self._held, mode=0o700, exist_ok=True)

    def of(self, info: Info) -> list[Mount]:
        """Return what containerd is to mount, in this order, to see the snapshot *info*.

        Raises what `Driver.mounts` raises, `InvalidArgumentError` for labels that map ids
        wrongly, `UnsupportedError` where ids cannot be mapped, and `MountError`.
        """
        told = self._store.driver.mounts(info.key)
        if all(one.type in _CONTAINERDS for one in told):
            return [_mapped(one, info.labels) for one in told]
        with self._store.alone(info.key):
            place = self._place(info.key)
            entry = mounting.mount_at(os.fsencode(place))
            # The device of one that died has another one's name by now.
            if entry is not None and entry.source != os.fsencode(told[-1].source):
                detach(place, lazy=True)
                entry = None
            if entry is None:
                os.makedirs(place, mode=0o700, exist_ok=True)
                attach(told, place)
        shown = Mount("bind", place, ("bind", "ro" if info.kind is Kind.VIEW else "rw"))
        return [_mapped(shown, info.labels)]

    def let_go(self, key: str) -> None:
        """Unmount what is mounted here of the snapshot *key*, if anything is.

        Raises `MountError`; what containerd has bound of it stays there.
        """
        self._clear(self._place(key))

    def sweep(self) -> None:
        """Unmount what is mounted here of snapshots that are gone, left by a crash."""
        # In this order: what is mounted for one that is made just now was not there before.
        places = [os.path.join(self._held, name) for name in os.listdir(self._held)]
        known = {self._place(info.key) for info in self._store.driver.walk()}
        for place in places:
            if place not in known:
                with contextlib.suppress(MountError, OSError):
                    self._clear(place)

    def _clear(self, place: str) -> None:
        if not os.path.lexists(place):
            return
        if mounting.mount_at(os.fsencode(place)) is not None:
            detach(place)
        os.rmdir(place)

    def _place(self, key: str) -> str:
        """Return where the snapshot *key* is mounted; a key may be no name of a file."""
        return os.path.join(self._held, hashlib.sha256(key.encode()).hexdigest()[:32])


def _mapped(mount: Mount, labels: Mapping[str, str]) -> Mount:
    """Return *mount* with the ids shown as *labels* say."""
    options = []
    for label, option in _MAPPINGS.items():
        if (value := labels.get(label)) is not None:
            if not _MAPPING.fullmatch(value):
                raise InvalidArgumentError(f"label {label}={value}: not CONTAINER:HOST:SIZE")
            options.append(f"{option}={value.replace(',', ':')}")
    if options and mount.type != UNION:
        raise UnsupportedError(
            f"{', '.join(options)}: only a union maps ids, and this is mounted as {mount.type}"
        )
    return mount._replace(options=(*mount.options, *options))
