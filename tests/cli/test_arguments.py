from __future__ import annotations

import pytest

from unionfs.cli.arguments import Arguments, Grammar, scan
from unionfs.errors import UsageError

GRAMMAR = Grammar(
    flags=frozenset({"f", "s", "v", "json"}),
    valued=frozenset({"o", "session"}),
    aliases={"foreground": "f", "options": "o"},
)


@pytest.mark.parametrize(
    "line",
    [
        "-o a -o b SRC DIR -f",
        "SRC DIR -f -o a -o b",
        "SRC -o a DIR -fo b",
        "-foa SRC -ob DIR",
        "--foreground --options=a --options b -- SRC DIR",
    ],
)
def test_options_stand_where_they_like(line: str) -> None:
    assert scan(line.split(), GRAMMAR) == Arguments(["SRC", "DIR"], {"f"}, {"o": ["a", "b"]}, [])


def test_joined_flags() -> None:
    assert scan(["-sfv"], GRAMMAR).flags == {"s", "f", "v"}


def test_after_two_dashes_all_is_positional() -> None:
    assert scan(["--", "-f", "--"], GRAMMAR).positionals == ["-f", "--"]


def test_one_dash_is_positional() -> None:
    assert scan(["-"], GRAMMAR).positionals == ["-"]


def test_the_last_value_can_be_asked_for() -> None:
    arguments = scan(["--session", "a", "--session=b"], GRAMMAR)
    assert arguments.last("session") == "b"
    assert arguments.last("o") is None


@pytest.mark.parametrize("word", ["-x", "-fx", "--wibble", "--wibble=3", "--f", "--o=x"])
def test_unknown_words_are_kept_for_the_caller(word: str) -> None:
    arguments = scan([word, "DIR"], GRAMMAR)
    assert (arguments.unknown, arguments.positionals, arguments.flags) == ([word], ["DIR"], set())
    with pytest.raises(UsageError, match="unknown argument"):
        arguments.refuse_unknown()


@pytest.mark.parametrize("line", ["-o", "-fo", "--session", "--json=yes"])
def test_missing_and_unwanted_values(line: str) -> None:
    with pytest.raises(UsageError):
        scan(line.split(), GRAMMAR)
