"""``--format``, as Docker's users write it."""

from __future__ import annotations

import pytest

from unionfs.cli import template
from unionfs.errors import UsageError

FIELDS = {
    "Name": "vol",
    "Driver": "overlay",
    "Labels": {"b": "2", "a": "1"},
    "Options": None,
    "Users": ["x", "y"],
    "Count": 3,
    "Busy": True,
    "Label": {"a": "1"}.get,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{.Name}}", "vol"),
        ("{{ .Name }}: {{.Driver}}", "vol: overlay"),
        (r"{{.Name}}\t{{.Count}}\n", "vol\t3\n"),
        ("{{.Labels}}", "map[a:1 b:2]"),
        ("{{.Labels.a}}", "1"),
        ("{{.Labels.none}}", "<no value>"),
        ("{{.Options}}", "<no value>"),
        ("{{.Options.type}}", "<no value>"),
        ("{{.Users}} {{.Busy}}", "[x y] true"),
        ("{{json .Labels}}", '{"b":"2","a":"1"}'),
        ("{{json .Name}}", '"vol"'),
        ("{{upper .Name}}", "VOL"),
        ("{{.Name | upper | lower | json}}", '"vol"'),
        ('{{join .Users ", "}}', "x, y"),
        ('{{index .Labels "b"}}', "2"),
        ("{{index .Users 1}}", "y"),
        ("{{len .Users}}", "2"),
        ('{{.Label "a"}}', "1"),
        ('{{upper (print .Name "-" .Count)}}', "VOL-3"),
        ("{{truncate .Driver 4}}", "over"),
        ("a {{- .Name -}} b", "avolb"),
        ('{{"}}"}}', "}}"),
        ("{{`raw`}}", "raw"),
        ("no action", "no action"),
    ],
)
def test_rendered(text: str, expected: str) -> None:
    assert template.Template(text).render(FIELDS) == expected


def test_all_as_json() -> None:
    (line,) = template.lines("json", [FIELDS], {})
    assert line.startswith('{"Name":"vol","Driver":"overlay"')
    assert 'Label"' not in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{{.Name", "not closed"),
        ("{{}}", "an empty action"),
        ("{{.Nothing}}", "can't evaluate field Nothing"),
        ("{{.Name.More}}", "can't evaluate field More"),
        ("{{range .Users}}", "loops and conditions"),
        ("{{frob .Name}}", 'function "frob" not defined'),
        ("{{.Name)}}", "parenthesis"),
        ("{{join .Users}}", "join"),
        ("{{.Name .Driver}}", "no function"),
        ("{{$x}}", "cannot be read"),
    ],
)
def test_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        template.Template(text).render(FIELDS)


def test_tables() -> None:
    rows = [FIELDS, {**FIELDS, "Name": "a-much-longer-name", "Driver": "b"}]
    headings = {"Name": "VOLUME NAME", "Driver": "DRIVER", "Labels": "LABELS"}
    form = r'table {{.Driver}}\t{{upper .Name}}\t{{.Label "of.what"}}'
    assert template.lines(form, rows, headings) == [
        "DRIVER    VOLUME NAME          WHAT",
        "overlay   VOL                  <no value>",
        "b         A-MUCH-LONGER-NAME   <no value>",
    ]
