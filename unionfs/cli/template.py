r"""Output in a form that the caller chooses, as ``--format`` of Docker's commands takes it.

The part of Go's text/template that people write in it: ``{{.Name}}``, ``{{.Labels.key}}``,
``{{json .}}``, ``{{.Label "key"}}``, ``{{.Name | upper}}``, ``{{join .Users ", "}}``. There are
no loops and conditions. ``table`` before a template prints a line of headings, and columns
where the template has ``\t``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from unionfs.errors import UsageError

_ACTION: Final = re.compile(r"\{\{(?P<left>- )?(?P<text>(?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|[^\"`}]|}(?!}))*?)(?P<right> -)?\}\}")  # fmt: skip  # noqa: E501
_TOKEN: Final = re.compile(
    r"""\s*(?: (?P<string>"(?:\\.|[^"\\])*") | (?P<raw>`[^`]*`) | (?P<number>-?\d+)
        | (?P<field>(?:\.[A-Za-z_][\w-]*)+|\.) | (?P<word>[A-Za-z]\w*) | (?P<mark>[|()]) )""",
    re.VERBOSE,
)
_KEYWORDS: Final = ("if", "else", "end", "range", "with", "define", "template", "block")
_NO_VALUE: Final = "<no value>"
#: As Docker's tables: the narrowest column, and what is between two.
_NARROWEST, _GAP = 10, 3

Fields = Mapping[str, Any]


class _Heading(str):
    """What stands above a column: of a field, and of whatever is in it."""

    __slots__ = ()


def _text(value: Any) -> str:
    """Return *value* as Go prints it."""
    match value:
        case None:
            return _NO_VALUE
        case bool():
            return "true" if value else "false"
        case Mapping():
            return f"map[{' '.join(f'{key}:{_text(value[key])}' for key in sorted(value))}]"
        case list() | tuple():
            return f"[{' '.join(map(_text, value))}]"
        case _:
            return str(value)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list | tuple) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            raise ValueError(f"no element {key}")
    return value


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "json": _json,
    "upper": lambda text: _text(text).upper(),
    "lower": lambda text: _text(text).lower(),
    "title": lambda text: _text(text).title(),
    "join": lambda values, between: between.join(map(_text, values or ())),
    "split": lambda text, between: text.split(between),
    "len": lambda value: len(value or ()),
    "index": _index,
    "print": lambda *values: "".join(map(_text, values)),
    "println": lambda *values: " ".join(map(_text, values)) + "\n",
    "truncate": lambda text, length: _text(text)[:length],
}


class Template:
    """A template, to be filled with the fields of one thing after the other."""

    def __init__(self, text: str) -> None:
        self._parts: list[str | list[list[Any]]] = []
        text = text.replace("\\t", "\t").replace("\\n", "\n")
        end = 0
        for action in _ACTION.finditer(text):
            before = text[end : action.start()]
            self._parts.append(before.rstrip() if action["left"] else before)
            pipeline = _pipeline(_tokens(action["text"]))
            self._parts.append(pipeline)
            end = action.end()
            if action["right"]:
                end += len(text[end:]) - len(text[end:].lstrip())
        self._parts.append(text[end:])
        if any("{{" in part for part in self._parts if isinstance(part, str)):
            raise UsageError(f"--format {text}: an action is not closed")

    def render(self, fields: Fields) -> str:
        """Return the text for *fields*. Raises `UsageError` for one that is not there."""
        return self._render(fields, _FUNCTIONS)

    def headings(self, headings: Mapping[str, str]) -> str:
        """Return what stands above a table, of *headings* by field."""
        # A heading is what it is, whatever is done to the field.
        same = {name: (lambda value, *_: value) for name in _FUNCTIONS}
        fields = {name: _Heading(text) for name, text in headings.items()}
        return self._render({**fields, "Label": _label_heading}, same)

    def _render(self, fields: Fields, functions: Mapping[str, Callable[..., Any]]) -> str:
        return "".join(
            part if isinstance(part, str) else _text(_run(part, fields, functions))
            for part in self._parts
        )


def _label_heading(name: str) -> str:
    return name.rpartition(".")[2].replace("-", " ").replace("_", " ").upper()


def _tokens(text: str) -> list[tuple[str, str]]:
    found = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise UsageError(f"--format: {{{{{text}}}}}: cannot be read")
        assert token.lastgroup is not None
        found.append((token.lastgroup, token[token.lastgroup]))
        position = token.end()
    return found[::-1]


def _pipeline(tokens: list[tuple[str, str]], *, nested: bool = False) -> list[list[Any]]:
    """Take a pipeline off the end of *tokens*: commands, each a list of operands."""
    commands: list[list[Any]] = [[]]
    while tokens:
        kind, text = tokens.pop()
        if text == "|":
            commands.append([])
        elif text == "(" and kind == "mark":
            commands[-1].append(("pipeline", _pipeline(tokens, nested=True)))
        elif text == ")" and kind == "mark":
            if not nested:
                raise UsageError("--format: a closing parenthesis too many")
            break
        else:
            commands[-1].append((kind, _operand(kind, text)))
    if not all(commands):
        raise UsageError("--format: an empty action")
    return commands


def _operand(kind: str, text: str) -> Any:
    match kind:
        case "string":
            return json.loads(text)
        case "raw":
            return text[1:-1]
        case "number":
            return int(text)
        case "field":
            return [name for name in text.split(".") if name]
        case _:
            if text in _KEYWORDS:
                raise UsageError(f"--format: {text}: loops and conditions are not supported")
            if text not in _FUNCTIONS:
                known = ", ".join(_FUNCTIONS)
                raise UsageError(f'--format: function "{text}" not defined; there are {known}')
            return text


def _run(
    pipeline: Sequence[Sequence[Any]], fields: Fields, functions: Mapping[str, Callable[..., Any]]
) -> Any:
    """Return what *pipeline* comes to; each command gets the last one's value as well."""
    given: list[Any] = []
    for command in pipeline:
        (kind, first), *rest = command
        values = [_value(kind, value, fields, functions) for kind, value in rest] + given
        if kind == "word":
            given = [_call(functions[first], first, values)]
            continue
        value = _value(kind, first, fields, functions)
        if callable(value):
            value = _call(value, ".".join(first), values)
        elif values:
            raise UsageError("--format: something that is no function is given arguments")
        given = [value]
    return given[0]


def _call(function: Callable[..., Any], name: str, values: Sequence[Any]) -> Any:
    try:
        return function(*values)
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"--format: {name}: {error}") from error


def _value(
    kind: str, value: Any, fields: Fields, functions: Mapping[str, Callable[..., Any]]
) -> Any:
    if kind == "pipeline":
        return _run(value, fields, functions)
    if kind == "word":
        return functions[value]()
    if kind != "field":
        return value
    if not value:
        return {name: found for name, found in fields.items() if not callable(found)}
    found: Any = fields
    for depth, name in enumerate(value):
        if depth == 0 and name not in fields:
            known = ", ".join(fields)
            raise UsageError(f"--format: can't evaluate field {name}; there are {known}")
        if found is not None and not isinstance(found, Mapping | _Heading):
            raise UsageError(f"--format: can't evaluate field {name}: nothing has parts there")
        found = found.get(name) if isinstance(found, Mapping) else found
    return found


def lines(form: str, rows: Iterable[Fields], headings: Mapping[str, str]) -> list[str]:
    """Return *rows* as *form* says: ``json``, a template, or ``table`` and a template.

    Raises `UsageError`.
    """
    if form == "json":
        form = "{{json .}}"
    word, _, rest = form.partition(" ")
    if word != "table":
        template = Template(form)
        return [template.render(row) for row in rows]
    template = Template(rest.strip())
    return columns([template.headings(headings), *(template.render(row) for row in rows)])


def columns(texts: Sequence[str]) -> list[str]:
    """Return *texts*, whose cells a tab ends, as columns that are as wide as they must be."""
    table = [text.split("\t") for text in texts]
    widths: dict[int, int] = {}
    for cells in table:
        for place, cell in enumerate(cells[:-1]):
            widths[place] = max(widths.get(place, _NARROWEST), len(cell) + _GAP)
    return [
        "".join(cell.ljust(widths[place]) for place, cell in enumerate(cells[:-1])) + cells[-1]
        for cells in table
    ]
