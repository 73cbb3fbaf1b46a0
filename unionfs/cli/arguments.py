"""Command lines in the way of mount(8) and libfuse, which argparse does not speak.

Options stand before, between and after the positional arguments; ``-o`` may be glued to
its value and given many times; short flags are joined (``-sfnv``); and words that are not
known are for the caller to judge, since engines send some of their own.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from unionfs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Grammar(NamedTuple):
    """The flags and options of one form of command line; spelled without dashes."""

    flags: frozenset[str]
    """One letter: ``-f``; longer: ``--json``."""
    valued: frozenset[str] = frozenset()
    """The same, with a value that follows or is joined on."""
    aliases: Mapping[str, str] = MappingProxyType({})
    """A longer spelling -> the name it is known by above."""


class Arguments(NamedTuple):
    """A command line taken apart."""

    positionals: list[str]
    flags: set[str]
    values: dict[str, list[str]]
    """Every value that an option was given, in order."""
    unknown: list[str]

    def last(self, name: str) -> str | None:
        """Return the value given last for option *name*."""
        return self.values.get(name, [None])[-1]

    def refuse_unknown(self) -> None:
        """Raise `UsageError` if there is an argument that the grammar lacks."""
        if self.unknown:
            raise UsageError(f"{self.unknown[0]}: unknown argument")


def scan(argv: list[str], grammar: Grammar, *, leading: bool = False) -> Arguments:
    """Take *argv* apart. Raises `UsageError` where a value is missing or not wanted.

    With *leading* options end at the first positional argument: the rest is another command.
    """
    found = Arguments([], set(), {}, [])
    rest = list(reversed(argv))
    while rest:
        word = rest.pop()
        if word == "--":
            found.positionals.extend(reversed(rest))
            break
        if word.startswith("--"):
            _take_long(word, rest, grammar, found)
        elif word.startswith("-") and word != "-":
            _take_short(word, rest, grammar, found)
        else:
            found.positionals.append(word)
            if leading:
                found.positionals.extend(reversed(rest))
                break
    return found


def _take_long(word: str, rest: list[str], grammar: Grammar, found: Arguments) -> None:
    spelled, equals, value = word[2:].partition("=")
    name = grammar.aliases.get(spelled, spelled)
    # One letter after two dashes is nobody's spelling.
    if len(spelled) > 1 and name in grammar.flags:
        if equals:
            raise UsageError(f"{word}: --{spelled} takes no value")
        found.flags.add(name)
    elif len(spelled) > 1 and name in grammar.valued:
        found.values.setdefault(name, []).append(value if equals else _next(word, rest))
    else:
        found.unknown.append(word)


def _take_short(word: str, rest: list[str], grammar: Grammar, found: Arguments) -> None:
    flags = set()
    for position, letter in enumerate(word[1:], 2):
        if letter in grammar.valued:
            value = word[position:] or _next(f"-{letter}", rest)
            found.values.setdefault(letter, []).append(value)
            break
        if letter not in grammar.flags:
            found.unknown.append(word)
            return
        flags.add(letter)
    found.flags.update(flags)


def _next(option: str, rest: list[str]) -> str:
    if not rest:
        raise UsageError(f"{option} needs a value")
    return rest.pop()
