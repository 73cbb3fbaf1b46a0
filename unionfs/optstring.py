r"""The text of mount options: where one ends, what is escaped, which word was meant.

Pure functions on ``str``. Names of files travel in it as the command line gave them,
bytes that are no UTF-8 as surrogates.

Escapes are the kernel's (``ovl_next_opt``, ``ovl_unescape`` in fs/overlayfs): a backslash
takes the meaning from the character after it, be it a comma between options or a colon
between layers, and is itself dropped. Quotes are mount(8)'s: in ``key="a,b"`` the comma
is part of the value.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Words with this many slips may still be meant.
NEAR = 2

# A quote only opens right after "=" and closes before a comma or the end, so that a file
# name with a quote in it stays a file name.
_OPTION = re.compile(
    r"""
    (?P<key> (?: \\. | [^,=\\] )* )
    (?: (?P<equals> = )
        (?: " (?P<quoted> (?: \\. | [^"\\] )* ) " (?= , | \Z )
          |   (?P<plain>  (?: \\. | [^,\\]  )* )
        )
    )?
    \\?                                     # a backslash at the very end escapes nothing
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_LAYER_END = re.compile(r"((?:\\.|[^:\\])*)\\?(:|\Z)", re.DOTALL)


def split_options(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield each option of a ``-o`` string as (key, value); the value is None without a ``=``.

    Empty options are left out, quotes around a whole value too; escapes are still there.
    """
    position = 0
    while position <= len(text):
        match = _OPTION.match(text, position)
        assert match is not None
        position = match.end() + 1
        key, quoted, plain = match["key"], match["quoted"], match["plain"]
        if match["equals"]:
            yield key, plain if quoted is None else quoted
        elif key:
            yield key, None


def split_layers(text: str) -> list[str]:
    """Return the colon-separated parts of *text*, unescaped."""
    parts = []
    for match in _LAYER_END.finditer(text):
        parts.append(unescape(match[1]))
        if match[2] != ":":
            break
    return parts


def unescape(text: str) -> str:
    r"""Return *text* with every ``\x`` as ``x``."""
    return _ESCAPED.sub(r"\1", text)


def escape(text: str, *, also: str = "") -> str:
    r"""Return *text* with a backslash before commas, quotes, backslashes and what is in *also*."""
    return re.sub(rf'([,"\\{re.escape(also)}])', r"\\\1", text)


def distance(one: str, other: str) -> int:
    """Count the letters to insert, drop, change or swap with the next to make *other* of *one*."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, wanted in enumerate(other, 1):
            cost = min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the word of *known* (not empty) that is most like *word*."""
    return min(sorted(known), key=lambda candidate: distance(word, candidate))


def resembles(word: str, known: str) -> bool:
    """Say whether *word* may have been meant as *known*: few slips, most letters right."""
    slips = distance(word, known)
    return slips <= NEAR and 2 * slips < len(word)
