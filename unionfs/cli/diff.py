"""``unionfs diff``: what an upper layer changes, printed as ``docker diff`` does."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING

from unionfs import registry
from unionfs.cli import usage
from unionfs.cli.arguments import Arguments, Grammar, scan
from unionfs.cli.mount_command import asked_text
from unionfs.cli.output import complain
from unionfs.errors import MountError, UsageError
from unionfs.fuse import mounting
from unionfs.layer.stack import LayerStack
from unionfs.options import MountOptions
from unionfs.optwords import parse_options
from unionfs.union.changes import changes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.union.changes import Change

_GRAMMAR = Grammar(
    flags=frozenset({"json", "h", "V"}),
    valued=frozenset({"o"}),
    aliases={"help": "h", "version": "V", "options": "o"},
)


def run(argv: list[str]) -> int:
    """Print what the upper layer that *argv* names changes."""
    arguments = scan(argv, _GRAMMAR)
    if (text := asked_text(arguments, usage.DIFF)) is not None:
        print(text)
        return 0
    arguments.refuse_unknown()
    options = _layers(arguments)
    if options.upperdir is None:
        found: Iterator[Change] = iter(())
        _print(found, as_json="json" in arguments.flags)
        return 0
    with contextlib.closing(LayerStack.inspect(options)) as stack:
        if not options.lowerdirs:
            complain(["no lower layers given: files without an origin are shown as added"])
        _print(changes(stack), as_json="json" in arguments.flags)
    return 0


def _layers(arguments: Arguments) -> MountOptions:
    """Return options that name the layers to look at. Raises `UsageError` and `MountError`."""
    match arguments.positionals, arguments.values.get("o"):
        case [], [*strings]:
            options = parse_options(strings).options
            if options.upperdir is None:
                raise UsageError("upperdir= is missing")
            return options._replace(read_only=False)
        case [name], None:
            return _mounted_layers(name) or MountOptions(upperdir=os.fsencode(name))
        case _:
            raise UsageError("give a MOUNT, an UPPERDIR or -o; see unionfs diff --help")


def _mounted_layers(name: str) -> MountOptions | None:
    """Return the layers of the union mounted on *name*, None if none is."""
    try:
        entry = mounting.mount_at(mounting.resolve(os.fsencode(name)))
    except OSError as error:
        raise MountError(f"{name}: {error.strerror}") from error
    if entry is None or entry.kind != mounting.FSTYPE:
        return None
    record = registry.find(entry)
    if record is None:
        raise MountError(f"{name}: its daemon left no record; name the layers with -o")
    options = parse_options([record.options], tolerant=True).options
    return options._replace(read_only=False)


def _print(found: Iterator[Change], *, as_json: bool) -> None:
    if as_json:
        rows = [{"kind": one.kind, "path": os.fsdecode(one.path)} for one in found]
        print(json.dumps(rows, indent=2))
        return
    output = sys.stdout.buffer
    for one in found:
        output.write(b"%s %s\n" % (one.kind.encode(), one.path))
    output.flush()
