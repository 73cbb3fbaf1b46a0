"""``unionfs umount``: unmount, and wait until the daemon has brought all to an end."""

from __future__ import annotations

import os

from unionfs import registry
from unionfs.cli import usage
from unionfs.cli.arguments import Grammar, scan
from unionfs.cli.mount_command import asked_text
from unionfs.cli.output import complain
from unionfs.errors import MountError, UsageError
from unionfs.fuse import mounting

_GRAMMAR = Grammar(
    flags=frozenset({"l", "h", "V"}), aliases={"lazy": "l", "help": "h", "version": "V"}
)

#: For the last writes to reach the disk.
_PATIENCE = 60.0
#: A detached mount may be in use for ever; one that is not ends within this.
_LAZY_PATIENCE = 2.0


def run(argv: list[str]) -> int:
    """Unmount the union that *argv* names."""
    arguments = scan(argv, _GRAMMAR)
    if (text := asked_text(arguments, usage.UMOUNT)) is not None:
        print(text)
        return 0
    arguments.refuse_unknown()
    if len(arguments.positionals) != 1:
        raise UsageError("give one TARGET; see unionfs umount --help")
    _umount(arguments.positionals[0], lazy="l" in arguments.flags)
    return 0


def _umount(target: str, *, lazy: bool) -> None:
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
        return
    if registry.wait_for_end(record, _LAZY_PATIENCE if lazy else _PATIENCE):
        # One that was killed could not remove it.
        registry.remove(record)
    elif lazy:
        complain([f"{target}: still in use, served by process {record.pid}"])
    else:
        raise MountError(
            f"{target}: unmounted here, but process {record.pid} still serves it elsewhere"
        )
