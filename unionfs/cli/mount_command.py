"""``unionfs mount``, and the same without the word, as mount.fuse3 and engines call it."""

from __future__ import annotations

import os

from unionfs.cli import usage
from unionfs.cli.arguments import Arguments, Grammar, scan
from unionfs.cli.output import complain, printable
from unionfs.errors import MountError, UsageError
from unionfs.mount import mount
from unionfs.optwords import ParsedOptions, parse_options

_GRAMMAR = Grammar(
    # -s and -n are libfuse's and mount(8)'s: one thread, no mtab. Both are so anyway.
    flags=frozenset("fdvhVsn"),
    valued=frozenset({"o", "session"}),
    aliases={
        "foreground": "f",
        "debug": "d",
        "verbose": "v",
        "help": "h",
        "version": "V",
        "options": "o",
    },
)


def run(argv: list[str], *, tolerant: bool) -> int:
    """Mount what *argv* says; *tolerant* warns about unknown words instead of refusing them."""
    arguments = scan(argv, _GRAMMAR)
    if (text := asked_text(arguments, usage.MOUNT)) is not None:
        print(text)
        return 0
    if not tolerant:
        arguments.refuse_unknown()
    source, target = source_and_target(arguments)
    parsed = parse(arguments, source, tolerant=tolerant)
    complain([f"{word}: ignored, unknown argument" for word in arguments.unknown])
    complain(parsed.ignored)
    debug = parsed.options.debug or "d" in arguments.flags
    options = parsed.options._replace(debug=debug)
    mount(options, os.fsencode(target), foreground=debug or "f" in arguments.flags)
    if "v" in arguments.flags:
        print(printable(f"unionfs: {options.fsname} mounted on {target}"))
    return 0


def asked_text(arguments: Arguments, help_text: str) -> str | None:
    """Return what ``--help`` or ``--version`` ask for; None without them."""
    if "h" in arguments.flags:
        return help_text
    return usage.VERSION if "V" in arguments.flags else None


def source_and_target(arguments: Arguments) -> tuple[str | None, str]:
    """Return SOURCE, which may be missing, and TARGET. Raises `UsageError`."""
    match arguments.positionals:
        case [target]:
            return None, target
        case [source, target]:
            return source, target
        case []:
            raise UsageError("TARGET is missing; see unionfs --help")
        case [_, _, superfluous, *_]:
            raise UsageError(f"{superfluous}: one argument too many; see unionfs --help")
        case _:
            raise AssertionError(arguments.positionals)


def parse(arguments: Arguments, source: str | None, *, tolerant: bool) -> ParsedOptions:
    """Read the mount options on a command line. Raises `UsageError` and `MountError`."""
    parsed = parse_options(arguments.values.get("o", []), tolerant=tolerant, source=source)
    if parsed.remount:
        raise MountError("remount is not supported: unmount the union and mount it again")
    session = arguments.last("session")
    if session is None:
        return parsed
    return parsed._replace(options=parsed.options._replace(session=session))
