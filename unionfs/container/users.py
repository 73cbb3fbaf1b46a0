"""Root without root: a user namespace in which an ordinary user has many users.

The user becomes number 0 of it, and the subordinate ids of /etc/subuid and /etc/subgid
follow as 1, 2, …; newuidmap and newgidmap, which are set-uid, see to it that nobody takes
what is not his (user_namespaces(7), subuid(5)).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from typing import Final, NamedTuple, NoReturn

from unionfs.errors import UnsupportedError
from unionfs.layer import syscalls

_SUBUID: Final = "/etc/subuid"
_SUBGID: Final = "/etc/subgid"


class Range(NamedTuple):
    """Subordinate ids that a user has: *size* of them from *start* on."""

    start: int
    size: int


def parse_subids(text: str, name: str, number: int) -> list[Range]:
    """Return what the lines of /etc/subuid or /etc/subgid give to user *name* or *number*."""
    ranges = []
    for line in text.splitlines():
        who, _, rest = line.strip().partition(":")
        start, _, size = rest.partition(":")
        if who in (name, str(number)) and start.isdecimal() and size.isdecimal() and int(size):
            ranges.append(Range(int(start), int(size)))
    return ranges


def id_map(own: int, ranges: list[Range]) -> list[str]:
    """Return the arguments of newuidmap(1): *own* is 0, and *ranges* follow from 1 on."""
    words, inside = ["0", str(own), "1"], 1
    for start, size in ranges:
        words += [str(inside), str(start), str(size)]
        inside += size
    return words


def become_root() -> None:
    """Make the calling process, an ordinary user's, root of a user namespace of its own.

    It gets a mount namespace too, which hears of the host's mounts and is not heard, and keeps
    its other groups. It must have one thread only. Raises `UnsupportedError` with what is to
    be done.
    """
    user, group = os.geteuid(), os.getegid()
    name = _name_of(user)
    uids = id_map(user, _own_ranges(_SUBUID, name, user))
    gids = id_map(group, _own_ranges(_SUBGID, name, user))
    programs = {program: _program(program) for program in ("newuidmap", "newgidmap")}
    # Who maps must stand outside, and the one who is mapped inside already.
    go_reader, go_writer = os.pipe()
    said_reader, said_writer = os.pipe()
    outside = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(go_writer)
        commands = [
            [programs["newuidmap"], str(outside), *uids],
            [programs["newgidmap"], str(outside), *gids],
        ]
        _map(commands, go_reader, said_writer)
    os.close(go_reader)
    os.close(said_writer)
    try:
        with open(said_reader, encoding="utf-8", errors="replace") as pipe:
            _unshare()
            os.close(go_writer)
            go_writer = -1
            said = pipe.read()
    finally:
        if go_writer >= 0:
            os.close(go_writer)
        os.waitpid(child, 0)
    if said:
        raise UnsupportedError(f"no user namespace with more than one user: {said}")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_SLAVE, b"")


def _map(commands: list[list[str]], go: int, said: int) -> NoReturn:
    """Run *commands*, as soon as *go* is closed; say through *said* what went wrong."""
    line = "a failure that it could not tell"
    try:
        os.read(go, 1)
        line = ""
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                line = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else command[0]
                break
    except BaseException as error:  # noqa: BLE001 - of a fork nothing may escape upwards
        line = str(error) or type(error).__name__
    finally:
        with contextlib.suppress(OSError):
            os.write(said, line.encode(errors="replace"))
        os._exit(0)


def _unshare() -> None:
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
    except OSError as error:
        raise UnsupportedError(
            f"user namespaces are not to be had here ({error.strerror}): run it as root, or see"
            " the sysctls user.max_user_namespaces and kernel.unprivileged_userns_clone"
        ) from error


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _own_ranges(path: str, name: str, number: int) -> list[Range]:
    text = ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        pass
    ranges = parse_subids(text, name, number)
    if not ranges:
        raise UnsupportedError(
            f"{path}: no subordinate ids for {name}: run as root, or let root run"
            f" usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
        )
    return ranges


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UnsupportedError(f"{name} is not in PATH: run as root, or install the package uidmap")
    return found
