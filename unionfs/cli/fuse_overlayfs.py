"""Called as ``fuse-overlayfs``: what engines run by that name, with its options and answers.

Its contract is the program's own (containers/fuse-overlayfs): ``-f`` and ``-d`` stay in the
foreground, what is not known is named and ignored, and all that fails ends with status 1.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from unionfs.cli import usage
from unionfs.cli.arguments import Grammar, scan
from unionfs.cli.output import complain, printable
from unionfs.errors import UnionError, UsageError, exit_status
from unionfs.mount import mount
from unionfs.optwords import parse_options

if TYPE_CHECKING:
    from unionfs.options import MountOptions

_GRAMMAR: Final = Grammar(
    flags=frozenset("fdhV"),
    valued=frozenset("o"),
    aliases={"debug": "d", "help": "h", "version": "V"},
)


def run(argv: list[str]) -> int:
    """Do what *argv* asks of the program; return its exit status."""
    try:
        return _run(argv)
    except (UnionError, OSError) as error:
        complain([exit_status(error)[1]], program=usage.FUSE_OVERLAYFS_NAME)
        return 1


def _run(argv: list[str]) -> int:
    arguments = scan(argv, _GRAMMAR)
    if "h" in arguments.flags:
        print(usage.FUSE_OVERLAYFS)
        return 0
    if "V" in arguments.flags:
        print(usage.FUSE_OVERLAYFS_VERSION)
        return 0
    if not arguments.positionals:
        raise UsageError("no mountpoint specified")
    parsed = parse_options(
        ["fsname=" + usage.FUSE_OVERLAYFS_NAME, *arguments.values.get("o", [])],
        as_fuse_overlayfs=True,
    )
    for word in (*arguments.unknown, *parsed.ignored):
        print(printable(f"unknown argument ignored: {word}"), file=sys.stderr)
    options = _with_environment(parsed.options)
    options = options._replace(debug=options.debug or "d" in arguments.flags)
    target = os.fsencode(arguments.positionals[-1])
    mount(options, target, foreground=options.debug or "f" in arguments.flags)
    return 0


def _with_environment(options: MountOptions) -> MountOptions:
    """Return *options* with what the program's environment variable says, as of version 2."""
    if "FUSE_OVERLAYFS_NO_PASSTHROUGH" in os.environ:
        return options._replace(passthrough="off")
    return options
