"""What snapshots take of the disk, and whether anything is mounted of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from unionfs import optstring, registry
from unionfs.driver.api import Usage
from unionfs.fuse import mounting
from unionfs.layer import syscalls, walk

_UNION: Final = mounting.FSTYPE.encode()


def disk_usage(directory: str) -> Usage:
    """Return what *directory* and all in it take, as du(1) counts it."""
    return Usage(*walk.disk_usage(os.fsencode(directory)))


def mounted_from(directory: str) -> str | None:
    """Return where something of *directory* is mounted, ``None`` if nowhere.

    Knows what this process can see: the mounts of its own namespace (binds of what is
    inside, overlays and unions with a layer there), not those of other namespaces.
    """
    for target, _ in _mounts_from(directory):
        return target
    return None


def kept_from_writing(directory: str) -> str | None:
    """Make the binds of what is in *directory* read-only; return ``None`` when all are.

    Else nothing has changed, and it is where something else is mounted that may be writing
    (an overlay or a union), or a bind in which a file is open for writing.
    """
    found = list(_mounts_from(directory))
    for target, bound in found:
        if not bound:
            return target
    with contextlib.ExitStack() as files, contextlib.ExitStack() as undo:
        for target, _ in found:
            fd = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            files.callback(os.close, fd)
            if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
                continue
            try:
                syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_RDONLY)
            except OSError:
                return target
            undo.callback(syscalls.mount_setattr, fd, 0, cleared=syscalls.MOUNT_ATTR_RDONLY)
        undo.pop_all()
    return None


def _mounts_from(directory: str) -> Iterator[tuple[str, bool]]:
    """Yield where something of *directory* is mounted, and whether that is by a bind."""
    inside = directory + "/"
    # Of the lines that are about something else there may be thousands.
    tail = os.fsencode("/".join(inside.split("/")[-3:]))
    for entry in mounting.mounts(lambda line: tail in line or _UNION in line):
        if entry.kind == mounting.FSTYPE:
            record = registry.find(entry)
            told = "" if record is None else record.options
        else:
            told = entry.super_options
        stacked = any(layer.startswith(inside) for layer in _layers(told))
        if stacked or _is_bind_of(entry, inside):
            yield os.fsdecode(entry.target), not stacked


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
