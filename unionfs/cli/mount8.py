"""``mount.unionfs`` and its other names: what mount(8) runs for ``mount -t unionfs``.

The contract is mount(8)'s, section "External helpers": ``-f`` is a check without a mount,
``-s`` tolerates options that are not known, and a remount that cannot be is answered by 32.
"""

from __future__ import annotations

import os

from unionfs.cli import usage
from unionfs.cli.arguments import Grammar, scan
from unionfs.cli.mount_command import asked_text, parse, source_and_target
from unionfs.cli.output import complain, printable
from unionfs.fuse.mounting import enter_namespace
from unionfs.mount import check, mount

_GRAMMAR = Grammar(
    flags=frozenset("sfnvhV"),
    valued=frozenset({"o", "N", "t", "session"}),
    aliases={"help": "h", "version": "V"},
)


def run(program: str, argv: list[str]) -> int:
    """Do what mount(8) asks of its helper *program* with *argv*."""
    arguments = scan(argv, _GRAMMAR)
    if (text := asked_text(arguments, usage.MOUNT8.format(program=program))) is not None:
        print(text)
        return 0
    source, target = source_and_target(arguments)
    parsed = parse(arguments, source, tolerant=True)
    if "s" not in arguments.flags:
        complain([f"{word}: ignored, unknown argument" for word in arguments.unknown])
        complain(parsed.ignored)
    if (namespace := arguments.last("N")) is not None:
        enter_namespace(namespace)
    if "f" in arguments.flags:
        check(parsed.options, os.fsencode(target))
        return 0
    mount(parsed.options, os.fsencode(target), foreground=parsed.options.debug)
    if "v" in arguments.flags:
        print(printable(f"{program}: {parsed.options.fsname} mounted on {target}"))
    return 0
