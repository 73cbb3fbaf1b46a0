"""Amounts of bytes, as people write and read them."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = "bkmgtp"
_SIZE: Final = re.compile(rf"(?P<number>\d+(\.\d+)?) ?(?P<unit>[{_UNITS}]?)(i?b)?")

#: What is wrong with a text that is no size; stands after what was given.
NOT_A_SIZE: Final = "not a size, like 64m or 10g"


def parse(text: str) -> int | None:
    """Return the bytes that *text* means: a number, with b, k, m, g, t or p as Docker has them.

    Powers of 1024, in either case, with ``B`` or ``iB`` after them if you like. ``None`` for
    what is no size.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        return None
    return int(float(found["number"]) * 1024 ** _UNITS.index(found["unit"] or "b"))


def readable(size: int) -> str:
    """Return *size*, in bytes, as people read it."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
