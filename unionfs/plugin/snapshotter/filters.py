"""containerd's filter expressions, by which a List says which snapshots it is about.

A filter is a list of selectors, separated by commas, all of which must be true; of several
filters one must take a snapshot. A selector is a field, or a field, an operator and a value::

    name==NAME    parent!=""    kind==active    name~=/^default/
    labels."containerd.io/snapshot.ref"    labels.short==value

``==`` and ``!=`` compare, ``~=`` looks for a regular expression, a field alone asks whether it
is there. To a comparison a field that is not there is empty, though it equals nothing.
Parts of a field and values may be quoted, in single or double quotes with the escapes of Go's
strings; a regular expression also between slashes or bars.

The grammar: the package ``filters`` of containerd.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from unionfs.errors import InvalidArgumentError

#: What can be asked of an object: the value of a field, ``None`` where there is none.
Fields = Callable[[tuple[str, ...]], str | None]
Filter = Callable[[Fields], bool]

_QUOTED: Final = r"""(?P<quote>["'/|])(?P<inside>(?:\\.|(?!(?P=quote))[^\\\n])*)(?P=quote)"""
_TOKENS: Final = {
    "field": re.compile(rf"\s*(?:{_QUOTED}|(?P<plain>[^\W\d]\w*))"),
    "operator": re.compile(r"\s*(?P<plain>==|!=|~=)"),
    "value": re.compile(rf"\s*(?:{_QUOTED}|(?P<plain>[^\s,\"'/|][^\s,]*))"),
}
_SEPARATOR: Final = re.compile(r"\s*([.,])")
_END: Final = re.compile(r"\s*\Z")

_ESCAPE: Final = re.compile(
    r"\\(?:x(?P<byte>[0-9a-fA-F]{2})|(?P<octal>[0-7]{3})|u(?P<four>[0-9a-fA-F]{4})"
    r"|U(?P<eight>[0-9a-fA-F]{8})|(?P<other>.?))",
    re.DOTALL,
)
_LETTERS: Final = {
    **{letter: letter for letter in "\\\"'"},
    **dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True)),
}


class _Selector(NamedTuple):
    path: tuple[str, ...]
    operator: str
    value: str
    pattern: re.Pattern[str] | None

    def takes(self, fields: Fields) -> bool:
        found = fields(self.path)
        if self.pattern is not None:
            return self.pattern.search(found or "") is not None
        match self.operator:
            case "==":
                return found == self.value
            case "!=":
                return (found or "") != self.value
            case _:
                return found is not None


def any_of(texts: Iterable[str]) -> Filter:
    """Return what takes what one of the filters *texts* takes; without any: everything.

    Raises `InvalidArgumentError` for one that is none.
    """
    filters = [_Parser(text).selectors() for text in texts]

    def takes(fields: Fields) -> bool:
        return not filters or any(all(one.takes(fields) for one in each) for each in filters)

    return takes


def fields_of(name: str, parent: str, kind: str, labels: Mapping[str, str]) -> Fields:
    """Return what is asked by filters about a snapshot."""
    plain = {"name": name, "parent": parent, "kind": kind}

    def value(path: tuple[str, ...]) -> str | None:
        if path[0] == "labels":
            return labels.get(".".join(path[1:]))
        return plain.get(path[0])

    return value


class _Parser:
    """Reads one filter from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0

    def selectors(self) -> list[_Selector]:
        """Return the selectors of the filter; none if it is empty."""
        if not self._text:
            return []
        found = [self._selector()]
        while self._take_separator(","):
            found.append(self._selector())
        if not _END.match(self._text, self._place):
            raise self._wrong("expected a comma or the end")
        return found

    def _selector(self) -> _Selector:
        path = [self._part("field")]
        while self._take_separator("."):
            path.append(self._part("field"))
        if _END.match(self._text, self._place) or self._separator() == ",":
            return _Selector(tuple(path), "", "", None)
        operator = self._part("operator")
        value = self._part("value", alternatives=operator == "~=")
        pattern = self._pattern(value) if operator == "~=" else None
        return _Selector(tuple(path), operator, value, pattern)

    def _separator(self) -> str:
        found = _SEPARATOR.match(self._text, self._place)
        return found[1] if found else ""

    def _take_separator(self, wanted: str) -> bool:
        found = _SEPARATOR.match(self._text, self._place)
        if found is None or found[1] != wanted:
            return False
        self._place = found.end()
        return True

    def _part(self, what: str, *, alternatives: bool = False) -> str:
        """Return the next of a kind; between slashes or bars only with *alternatives*."""
        found = _TOKENS[what].match(self._text, self._place)
        if found is None:
            raise self._wrong(f"expected {what}")
        if found["plain"] is None and found["quote"] in "/|" and not alternatives:
            raise self._wrong(f"expected {what}, quoted or not")
        plain = found["plain"]
        value: str = self._unquoted(found["quote"], found["inside"]) if plain is None else plain
        self._place = found.end()
        return value

    def _unquoted(self, quote: str, inside: str) -> str:
        def meant(escape: re.Match[str]) -> str:
            if escape["other"] is not None:
                if quote in "/|":
                    # All but the quote itself is the regular expression's.
                    return escape["other"] if escape["other"] == quote else escape[0]
                if escape["other"] not in _LETTERS:
                    raise self._wrong(f"{escape[0]} is no escape")
                return _LETTERS[escape["other"]]
            if quote in "/|":
                return escape[0]
            code = escape["byte"] or escape["four"] or escape["eight"]
            return chr(int(code, 16) if code else int(escape["octal"], 8))

        try:
            return _ESCAPE.sub(meant, inside)
        except (ValueError, OverflowError):
            raise self._wrong("an escape that is no character") from None

    def _pattern(self, value: str) -> re.Pattern[str]:
        try:
            return re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise InvalidArgumentError(
                f"filter {self._text}: {value}: no regular expression: {error}"
            ) from error

    def _wrong(self, reason: str) -> InvalidArgumentError:
        before, after = self._text[: self._place], self._text[self._place :]
        return InvalidArgumentError(f"filter {before} >>> {after}: {reason}")
