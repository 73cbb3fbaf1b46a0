"""``unionfs umount``: unmount, and wait until the daemon has brought all to an end."""

from __future__ import annotations

from unionfs.cli import usage
from unionfs.cli.arguments import Grammar, scan
from unionfs.cli.mount_command import asked_text
from unionfs.cli.output import complain
from unionfs.errors import UsageError
from unionfs.unmount import unmount

_GRAMMAR = Grammar(
    flags=frozenset({"l", "h", "V"}), aliases={"lazy": "l", "help": "h", "version": "V"}
)


def run(argv: list[str]) -> int:
    """Unmount the union that *argv* names."""
    arguments = scan(argv, _GRAMMAR)
    if (text := asked_text(arguments, usage.UMOUNT)) is not None:
        print(text)
        return 0
    arguments.refuse_unknown()
    if len(arguments.positionals) != 1:
        raise UsageError("give one TARGET; see unionfs umount --help")
    (target,) = arguments.positionals
    if (pid := unmount(target, lazy="l" in arguments.flags)) is not None:
        complain([f"{target}: still in use, served by process {pid}"])
    return 0
