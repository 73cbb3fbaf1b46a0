"""Ids that their engine has lost: it was killed, and will never take them back.

dockerd, started again after a crash, finds its containers ended and forgets what these had
mounted. When it wants a volume removed it has none left that uses it; whether anybody else
has, the mounts of all processes tell.
"""

from __future__ import annotations

import os
import re

from unionfs.fuse import mounting
from unionfs.plugin.volume.engine import Engine
from unionfs.store.volumes import Volumes

_MOUNT_ID = re.compile(r"^mnt_id:\s*(\d+)$", re.MULTILINE)


def forget_lost(volumes: Volumes, name: str, engine: Engine) -> bool:
    """Forget the ids that use the volume *name*, if all are lost; say if there were any.

    Those are older than *engine*, the process that wants to remove it, and nobody has it
    mounted. Who uses it by our own commands is known to live. Raises `NotFoundError`.
    """
    volume = volumes.find(name)
    held, began = volumes.uses(volume), engine.began()
    if not held or any(use.target or use.pid or use.since >= began for use in held):
        return False
    place = os.path.realpath(volumes.tree(volume).mountpoint)
    if os.path.isdir(place) and is_shown_elsewhere(place):
        return False
    for use in held:
        volumes.release(use.id)
    return True


def is_shown_elsewhere(directory: str) -> bool:
    """Say whether a mount shows *directory*, or a part of it, at another place.

    All mount namespaces are looked at that have a process which may be.
    """
    device, root = _shown(directory)
    word = b" %s " % device.encode()
    own = os.stat("/proc/self/ns/mnt").st_ino
    seen = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if namespace in seen:
                continue
            with open(f"/proc/{pid}/mountinfo", "rb") as file:
                entries = mounting.parse_mountinfo(file.read(), lambda line: word in line)
        except OSError:
            continue  # it has ended, or is none of ours: containers are their engine's
        seen.add(namespace)
        for entry in entries:
            itself = namespace == own and os.fsdecode(entry.target) == directory
            if entry.device == device and not itself and _is_inside(entry.root, root):
                return True
    return False


def _is_inside(path: bytes, root: bytes) -> bool:
    return os.path.commonpath((path, root)) == root


def _shown(directory: str) -> tuple[str, bytes]:
    """Return the device and the place in its file system that mounts of *directory* show."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            found = _MOUNT_ID.search(file.read())
    finally:
        os.close(fd)
    assert found is not None
    (entry,) = [one for one in mounting.mounts() if one.mount_id == int(found[1])]
    below = os.path.relpath(os.fsencode(directory), entry.target)
    return entry.device, os.path.normpath(os.path.join(entry.root, below))
