"""Commands that have verbs, as ``unionfs snapshot prepare``: which is meant, and what it takes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final, NamedTuple

from unionfs.cli.arguments import Arguments, Grammar, scan
from unionfs.cli.mount_command import asked_text
from unionfs.cli.store_arguments import open_store
from unionfs.errors import UsageError
from unionfs.store.store import Store

#: They interrupt a verb as ^C does, so that what it was making goes.
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


class Verb(NamedTuple):
    """One verb."""

    run: Callable[[Store, Arguments], int | None]
    """Returns the exit status, if that is not 0."""
    grammar: Grammar
    least: int
    """The fewest and the most words after the verb; no limit for the latter is -1."""
    most: int
    as_owner: bool = False
    """Whether it reads or changes files of whatever owner; see `open_store`."""
    founds: bool = False
    """Whether it can be the first in a store; see `open_store`."""
    apart: str = ""
    """What tells its own store from that of other commands; see `chosen_root`."""


def run_verb(subject: str, verbs: Mapping[str, Verb], help_text: str, argv: list[str]) -> int:
    """Do what *argv*, the words after *subject*, says. Raises `UsageError`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 1
    verb = verbs.get(argv[0])
    if verb is None:
        raise UsageError(f"{subject} {argv[0]}: unknown; there are {', '.join(verbs)}")
    arguments = scan(argv[1:], verb.grammar)
    if (text := asked_text(arguments, help_text)) is not None:
        print(text)
        return 0
    arguments.refuse_unknown()
    count = len(arguments.positionals)
    if count < verb.least or (count > verb.most >= 0):
        raise UsageError(f"{subject} {argv[0]}: see unionfs {subject} --help")
    for number in _ENDING:
        # Who has it ignored, as nohup(1), has it ignored.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    with open_store(
        arguments, as_owner=verb.as_owner, founds=verb.founds, apart=verb.apart
    ) as store:
        return verb.run(store, arguments) or 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # One is enough, and timeout(1) sends two: the second would find us tidying up.
    for number in _ENDING:
        signal.signal(number, _ignore)
    raise KeyboardInterrupt


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing; other than `signal.SIG_IGN`, the programs that we start do not inherit it."""
