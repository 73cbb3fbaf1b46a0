"""What commands print about names and errors: one line each, whatever is in the names."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


def printable(text: str) -> str:
    r"""Return *text* with what is no character, or would move the cursor, as ``\xNN``."""
    return os.fsencode(text).decode(errors="backslashreplace").translate(_CONTROL)


def complain(lines: Iterable[str]) -> None:
    """Print *lines* to stderr, as coming from this program."""
    for line in lines:
        print(f"unionfs: {printable(line)}", file=sys.stderr)
