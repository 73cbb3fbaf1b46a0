"""What snapshots take of the disk, and whether anything is mounted of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from unionfs import optstring, registry
from unionfs.driver.api import Usage
from unionfs.fuse import mounting
from unionfs.layer import walk

_UNION: Final = mounting.FSTYPE.encode()


def disk_usage(directory: str) -> Usage:
    """Return what *directory* and all in it take, as du(1) counts it."""
    return Usage(*walk.disk_usage(os.fsencode(directory)))


def mounted_from(directory: str) -> str | None:
    """Return where something of *directory* is mounted, ``None`` if nowhere.

    Knows what this process can see: the mounts of its own namespace (binds of what is
    inside, overlays and unions with a layer there), not those of other namespaces.
    """
    inside = directory + "/"
    # Of the lines that are about something else there may be thousands.
    tail = os.fsencode("/".join(inside.split("/")[-3:]))
    for entry in mounting.mounts(lambda line: tail in line or _UNION in line):
        if entry.kind == mounting.FSTYPE:
            record = registry.find(entry)
            told = "" if record is None else record.options
        else:
            told = entry.super_options
        if any(layer.startswith(inside) for layer in _layers(told)) or _is_bind_of(entry, inside):
            return os.fsdecode(entry.target)
    return None


def _layers(options: str) -> Iterator[str]:
    """Yield the layers that the *options* of a mount name, the upper one among them."""
    for key, value in optstring.split_options(mounting.unescape(options)):
        if key in ("upperdir", "lowerdir", "lowerdir+") and value is not None:
            yield from optstring.split_layers(value)


def _is_bind_of(entry: mounting.MountEntry, inside: str) -> bool:
    """Say whether *entry* shows a directory in *inside*.

    Where that lies in its file system can be told only from the end of the path, since the
    file system may itself be mounted anywhere; so the directories are compared, too.
    """
    place, _, within = os.fsdecode(entry.root).rpartition("/")
    if "/".join(place.split("/")[-2:]) != "/".join(inside.split("/")[-3:-1]):
        return False
    try:
        return os.path.samestat(os.stat(inside + within), os.stat(entry.target))
    except OSError:
        return False
