from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs import optstring

WORDS = st.text(st.sampled_from('ab,:=\\" é\n'), max_size=8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (",,", []),
        ("ro", [("ro", None)]),
        ("a,,b,", [("a", None), ("b", None)]),
        ("a=,b", [("a", ""), ("b", None)]),
        ("a=b=c", [("a", "b=c")]),
        (r"upperdir=/x\,y,ro", [("upperdir", r"/x\,y"), ("ro", None)]),
        (r"upperdir=/x\\,ro", [("upperdir", r"/x\\"), ("ro", None)]),
        ('context="s0:c1,c2",ro', [("context", "s0:c1,c2"), ("ro", None)]),
        (r'a="x\",y",ro', [("a", r"x\",y"), ("ro", None)]),
        ('a="x"y,ro', [("a", '"x"y'), ("ro", None)]),
        ('lowerdir=/6" disk,ro', [("lowerdir", '/6" disk'), ("ro", None)]),
        ('a="x,ro', [("a", '"x'), ("ro", None)]),
        ("=x", [("", "x")]),
        ("a=b\\", [("a", "b")]),
    ],
)
def test_options_end_at_commas_that_are_neither_escaped_nor_quoted(
    text: str, expected: list[tuple[str, str | None]]
) -> None:
    assert list(optstring.split_options(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a", ["/a"]),
        ("/a:/b", ["/a", "/b"]),
        (r"/a\:b:/c", ["/a:b", "/c"]),
        (r"/a\\:/b", ["/a\\", "/b"]),
        (r"/a\,b", ["/a,b"]),
        ("a::b", ["a", "", "b"]),
        (":a:", ["", "a", ""]),
        ("", [""]),
        ("a\\", ["a"]),
    ],
)
def test_layers_end_at_colons_that_are_not_escaped(text: str, expected: list[str]) -> None:
    assert optstring.split_layers(text) == expected


@given(st.lists(WORDS, min_size=1))
def test_layers_survive_escaping(layers: list[str]) -> None:
    text = ":".join(optstring.escape(layer, also=":") for layer in layers)
    assert optstring.split_layers(text) == layers


@given(st.lists(WORDS))
def test_values_survive_escaping(values: list[str]) -> None:
    text = ",".join(f"key={optstring.escape(value)}" for value in values)
    found = [(key, optstring.unescape(value or "")) for key, value in optstring.split_options(text)]
    assert found == [("key", value) for value in values]


@given(st.text(st.sampled_from('a,:=\\"'), max_size=30))
def test_any_text_is_taken_apart(text: str) -> None:
    for key, value in optstring.split_options(text):
        assert key or value is not None
        optstring.split_layers(value or "")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("upperdir", "upperdir", 0),
        ("upperdri", "upperdir", 1),
        ("uperdir", "upperdir", 1),
        ("upperdirs", "upperdir", 1),
        ("lowredirs", "lowerdir", 2),
        ("", "abc", 3),
        ("ca", "abc", 3),
    ],
)
def test_distance_counts_letters(one: str, other: str, expected: int) -> None:
    assert optstring.distance(one, other) == optstring.distance(other, one) == expected


def test_the_nearest_word_wins_and_ties_are_stable() -> None:
    assert optstring.nearest("vlatile", {"volatile", "userxattr"}) == "volatile"
    assert optstring.nearest("x", {"c", "b", "a"}) == "a"


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("upperdri", "upperdir", True),
        ("uperdirs", "upperdir", True),
        ("debgu", "debug", True),
        ("bogus", "debug", False),
        ("noacl", "nodev", False),
        ("rx", "ro", False),
        ("", "ro", False),
    ],
)
def test_words_that_may_be_meant(word: str, known: str, expected: bool) -> None:
    assert optstring.resembles(word, known) is expected
