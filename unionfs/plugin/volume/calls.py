"""What engines ask of a volume plugin, one function for each call of the protocol.

The protocol is Docker's (docs.docker.com/engine/extend/plugins_volume). Who uses a volume has an
id: Docker makes one for each mount of a container, Podman has one for all. It is counted as
often as it comes, in the store, so that it outlives the plugin, but not the machine's boot.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

from unionfs.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from unionfs.plugin.volume.engine import Engine
from unionfs.plugin.volume.lost import forget_lost
from unionfs.store.store import Store
from unionfs.store.volume import Volume
from unionfs.store.volumes import Volumes

#: Which storage driver keeps the volume; all other options are those of `unionfs volume create`.
_DRIVER: Final = "driver"
#: What Podman finds in ``o`` and gives in options of their own, too.
_PODMANS: Final = frozenset({"SIZE", "INODES", "UID", "GID", "NOQUOTA", "TIMEOUT"})
#: Those that it takes out of ``o``: they are for itself.
_TAKEN_OUT: Final = frozenset({"NOQUOTA", "TIMEOUT"})


#: Opens the store, in the process that uses it.
Opened = Callable[[], AbstractContextManager[Store]]


class Service(NamedTuple):
    """What the calls of one connection work with."""

    opened: Opened
    owned: Opened
    """The same, as who may remove files of an ordinary user's subordinate users, too. It makes the
    calling process that one: it can do nothing else after it."""
    engine: Engine


class Request(NamedTuple):
    """One call of an engine."""

    service: Service
    fields: Mapping[str, Any]
    undo: contextlib.ExitStack
    """What is to be done if the engine never hears of the answer."""

    def text(self, name: str) -> str:
        """Return the field *name*. Raises `InvalidArgumentError` unless it is a text."""
        found = self.fields.get(name)
        if not isinstance(found, str) or not found:
            raise InvalidArgumentError(f"{name}: is missing in the request, or no text")
        return found

    def options(self) -> dict[str, str]:
        """Return the options of a volume. Raises `InvalidArgumentError` for what are none."""
        found = self.fields.get("Opts")
        if found is None:
            return {}
        if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
            raise InvalidArgumentError("Opts: not an object of texts")
        words = {word.partition("=")[0].upper() for word in found.get("o", "").split(",")}
        copies = _PODMANS & (words | _TAKEN_OUT)
        return {key: text for key, text in found.items() if key not in copies}


Call = Callable[[Request], dict[str, Any]]


def _activate(_request: Request) -> dict[str, Any]:
    return {"Implements": ["VolumeDriver"]}


def _capabilities(_request: Request) -> dict[str, Any]:
    # "global" would tell Swarm that each volume is on every machine.
    return {"Capabilities": {"Scope": "local"}}


def _create(request: Request) -> dict[str, Any]:
    options = request.options()
    if options.get("from", "").startswith("."):
        raise InvalidArgumentError(f"from={options['from']}: give the absolute path of a directory")
    driver = options.pop(_DRIVER, None)
    with request.service.opened() as store:
        Volumes(store).create(request.text("Name"), driver=driver, options=options)
    return {}


def _remove(request: Request) -> dict[str, Any]:
    name = request.text("Name")
    with request.service.owned() as store:
        volumes = Volumes(store)
        try:
            volumes.remove(name)
        except FailedPreconditionError:
            if not forget_lost(volumes, name, request.service.engine):
                raise
            volumes.remove(name)
    return {}


def _mount(request: Request) -> dict[str, Any]:
    """Count the id once more, and say where the files are.

    Whatever happens to us before the engine can hear of that, it was not counted.
    """
    name, holder = request.text("Name"), request.text("ID")
    with request.service.opened() as store:
        held = Volumes(store).hold(name, holder, os.getpid())
        request.undo.callback(_release, request.service, held.id)
        request.service.engine.require_sees(held.path)
        store.uses.outlive(held.id)
        return {"Mountpoint": held.path}


def _release(service: Service, number: int) -> None:
    with service.opened() as store:
        Volumes(store).release(number)


def _unmount(request: Request) -> dict[str, Any]:
    """Count the id once less; one that is not known has been forgotten, and is done with."""
    name, holder = request.text("Name"), request.text("ID")
    with request.service.opened() as store, contextlib.suppress(NotFoundError):
        Volumes(store).release_held(name, holder)
    return {}


def _path(request: Request) -> dict[str, Any]:
    with request.service.opened() as store:
        volumes = Volumes(store)
        return {"Mountpoint": volumes.tree(volumes.find(request.text("Name"))).mountpoint}


def _get(request: Request) -> dict[str, Any]:
    with request.service.opened() as store:
        volumes = Volumes(store)
        return {"Volume": _described(volumes, volumes.find(request.text("Name")))}


def _list(request: Request) -> dict[str, Any]:
    with request.service.opened() as store:
        volumes = Volumes(store)
        return {"Volumes": [_described(volumes, volume) for volume in volumes.all()]}


def _described(volumes: Volumes, volume: Volume) -> dict[str, Any]:
    return {
        "Name": volume.name,
        "Mountpoint": volumes.tree(volume).mountpoint,
        "CreatedAt": volume.created_text,
        "Status": {
            "Driver": volume.driver,
            "Options": dict(volume.options),
            "Users": [use.holder for use in volumes.uses(volume)],
        },
    }


#: What engines call it -> what it does; the fields of the answer, beside an empty ``Err``.
CALLS: Final[Mapping[str, Call]] = {
    "/Plugin.Activate": _activate,
    "/VolumeDriver.Capabilities": _capabilities,
    "/VolumeDriver.Create": _create,
    "/VolumeDriver.Remove": _remove,
    "/VolumeDriver.Mount": _mount,
    "/VolumeDriver.Unmount": _unmount,
    "/VolumeDriver.Path": _path,
    "/VolumeDriver.Get": _get,
    "/VolumeDriver.List": _list,
}
