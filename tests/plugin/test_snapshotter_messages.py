"""The bytes of messages, against what protoc makes of them, and filters of a List."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.errors import InvalidArgumentError
from unionfs.plugin.snapshotter import messages
from unionfs.plugin.snapshotter.filters import any_of, fields_of
from unionfs.plugin.snapshotter.protobuf import MalformedError, decode, encode, raw_fields

NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
LABELS = st.dictionaries(st.text(max_size=9), st.text(max_size=200), max_size=4)
TIMES = st.builds(messages.Timestamp, NUMBERS, NUMBERS)
INFOS = st.builds(messages.Info, st.text(), st.text(), NUMBERS, TIMES, TIMES, LABELS)

#: Written by hand after the format's description.
GOLDEN = [
    (messages.Empty(), ""),
    (messages.Info("a", kind=3, created_at=messages.Timestamp(5)), "0a0161180322020805"),
    (
        messages.PrepareSnapshotRequest("s", "k", "p", {"l": "v", "e": ""}),
        "0a017312016b1a017022060a016c12017622050a01651200",
    ),
    (messages.MountsResponse((messages.Mount("bind", "/s", "", ("ro", "")),)),
     "0a100a0462696e6412022f732202726f2200"),
    (messages.UsageResponse(300, -1), "08ac0210ffffffffffffffffff01"),
    (messages.CommitSnapshotRequest("", "n", "k", {}, "p"), "12016e1a016b2a0170"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "data"), GOLDEN, ids=lambda value: type(value).__name__)
def test_bytes(message: object, data: str) -> None:
    assert encode(message).hex() == data
    assert decode(type(message), bytes.fromhex(data)) == message


@given(st.builds(messages.ListSnapshotsResponse, st.lists(INFOS, max_size=3).map(tuple)))
def test_what_is_written_is_read(message: messages.ListSnapshotsResponse) -> None:
    assert decode(messages.ListSnapshotsResponse, encode(message)) == message


def test_what_is_not_known_is_passed_over() -> None:
    strange = "580161" + "00" * 8 + "6a017875" + "00" * 4
    assert decode(messages.StatSnapshotRequest, bytes.fromhex(strange + "12016b")).key == "k"


@pytest.mark.parametrize(
    "data",
    ["12", "1205", "0a02ff", "0aff", "13", "02016b", "120261ff", "1005", f"12{'ff' * 10}01"],
)
def test_what_is_no_message(data: str) -> None:
    with pytest.raises(MalformedError):
        decode(messages.StatSnapshotRequest, bytes.fromhex(data))


def test_many_of_one_field_take_no_longer_than_they_are_long() -> None:
    """A message may have 16 MB: time that grows with the square would be hours."""
    count = 1_000_000
    began = time.process_time()
    assert decode(messages.ListSnapshotsRequest, b"\x12\x00" * count).filters == ("",) * count
    labels = b"".join(b"\x22\x07\x0a\x05%05x" % number for number in range(count))
    assert len(decode(messages.PrepareSnapshotRequest, labels).labels) == count
    assert time.process_time() - began < 30


@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_read_or_refused(data: bytes) -> None:
    for kind in (messages.UpdateSnapshotRequest, messages.ListSnapshotsRequest):
        try:
            message = decode(kind, data)
        except MalformedError:
            continue
        assert decode(kind, encode(message)) == message
        list(raw_fields(data))


FIELDS = fields_of("ns/1/foo", "base", "active", {"a.b/c d": "1", "l": "2", "x.y": 'q"\\'})


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("", True),
        ("name==ns/1/foo", True),
        ("name!=ns/1/foo", False),
        ("kind==active,parent==base,labels.l", True),
        ("kind==active,labels.m", False),
        ('labels."a.b/c d"==1', True),
        ("labels.x.y", True),
        (r'labels.x.y=="q\"\\"', True),
        (r"labels.x.y=='\x71\u0022\\'", True),
        ("labels.m", False),
        ('labels.m==""', False),
        ("labels.m!=1", True),
        ('labels.m!=""', False),
        ("name~=foo$", True),
        ("name~=^foo", False),
        ("name~=/fo{1,2}$/", True),
        ("name~=|ns/1/(foo,?)+|", True),
        (r"name~=/ns\/1/", True),
        (r"name~=/\d/", True),
        ("labels.m~=^$", True),
        ("unknown", False),
        (" kind == active , labels.l ", True),
    ],
)
def test_filters(text: str, taken: bool) -> None:
    assert any_of([text])(FIELDS) is taken


def test_of_several_filters_one_is_enough() -> None:
    assert any_of([])(FIELDS)
    assert any_of(["name==other", "labels.l==2"])(FIELDS)
    assert not any_of(["name==other", "labels.l==3"])(FIELDS)


@pytest.mark.parametrize(
    "text",
    ["name==", "name==foo,", ",", "labels.", "labels.ns/key==v", "name=foo", "name==a b", "name~=(",
     "name~=a{99999999999}", pytest.param("name~=" + "(" * 9999 + ")" * 9999, id="deep"),
     "labels.|l|==2", "labels.l==/2", "name==/x/", 'labels."l', r'labels."\g"',
     r'name=="\U99999999"'],
)  # fmt: skip
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="filter"):
        any_of([text])


@given(st.text(alphabet="namelbs.=!~\"'/|\\,() x1", max_size=20))
def test_a_filter_is_taken_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidArgumentError):
        assert any_of([text])(FIELDS) in (True, False)
