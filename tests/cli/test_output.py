from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from unionfs.cli.output import complain, printable

if TYPE_CHECKING:
    import pytest


@given(st.binary())
def test_any_name_makes_one_line(name: bytes) -> None:
    shown = printable(name.decode(errors="surrogateescape"))
    assert shown.isprintable() or not shown.isascii()
    assert len(shown.encode().split(b"\n")) == 1


def test_what_is_readable_stays_readable(capsys: pytest.CaptureFixture[str]) -> None:
    complain(["lowerdir=/é\udcff\n: no"])
    assert capsys.readouterr().err == "unionfs: lowerdir=/é\\xff\\x0a: no\n"
