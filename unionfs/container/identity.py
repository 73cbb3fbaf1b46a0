"""Who a command runs as: names looked up in the files of its own root file system.

Read here and not by the C library, which would load what the image has of it. Root reads them:
what an image has in their place must not be a way to make it wait, or to what is the kernel's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from unionfs.layer import syscalls

_USERS: Final = "/etc/passwd"
_GROUPS: Final = "/etc/group"
#: More than one of these is no file of users.
_LIMIT: Final = 4 << 20
#: What the kernel has here is no file of the image.
_KERNELS: Final = ("/proc", "/sys", "/dev")


class Identity(NamedTuple):
    """A user as a process has it."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def identify(text: str) -> Identity:
    """Return who ``USER[:GROUP]`` is, of names and numbers; empty is root.

    Raises `LookupError` with the reason for a name that is not there, and for a file of them
    that is none.
    """
    user, _, group = text.partition(":")
    user = user or "0"
    uid = int(user) if user.isdecimal() else None
    gid, home, name = 0, "/", user
    for fields in _lines(_USERS, 6):
        if user == fields[0] or fields[2] == user:
            name, uid, gid, home = fields[0], int(fields[2]), int(fields[3]), fields[5] or "/"
            break
    if uid is None:
        raise LookupError(f"{user}: no such user in the image's {_USERS}")
    if group:
        return Identity(uid, _group(group), (), home)
    groups = (int(fields[2]) for fields in _lines(_GROUPS, 4) if name in fields[3].split(","))
    return Identity(uid, gid, tuple({gid: None} | dict.fromkeys(groups)), home)


def _group(group: str) -> int:
    if group.isdecimal():
        return int(group)
    for fields in _lines(_GROUPS, 3):
        if group == fields[0]:
            return int(fields[2])
    raise LookupError(f"{group}: no such group in the image's {_GROUPS}")


def _lines(path: str, least: int) -> Iterator[list[str]]:
    """Yield the fields of the good lines of a file in passwd(5)'s or group(5)'s form."""
    try:
        text = _read(path).decode(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        fields = line.split(":")
        numbers = fields[2:4] if least > 4 else fields[2:3]
        if len(fields) >= least and all(each.isdecimal() for each in numbers):
            yield fields


def _read(path: str) -> bytes:
    """Return what is in the image's file *path*, whose links are followed inside the root.

    Raises ``OSError`` when there is none, `LookupError` for anything but a file of the image.
    """
    found = syscalls.openat2(
        syscalls.AT_FDCWD,
        os.fsencode(path),
        os.O_PATH,
        syscalls.RESOLVE_NO_MAGICLINKS,
    )
    try:
        # Looked at before it is opened: that alone can wait for ever, or set a device going.
        name = f"/proc/self/fd/{found}"
        place = os.readlink(name)
        kernels = any(place.startswith(f"{os.path.realpath(one)}/") for one in _KERNELS)
        if kernels or not stat.S_ISREG(os.fstat(found).st_mode):
            raise LookupError(f"{path}: not a regular file of the image")
        with open(
            name, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as file:
            return file.read(_LIMIT)
    finally:
        os.close(found)
