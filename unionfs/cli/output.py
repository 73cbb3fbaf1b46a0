"""What commands print about names and errors: one line each, whatever is in the names."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


def printable(text: str) -> str:
    r"""Return *text* with what is no character, or would move the cursor, as ``\xNN``."""
    return os.fsencode(text).decode(errors="backslashreplace").translate(_CONTROL)


def complain(lines: Iterable[str], *, program: str = "unionfs") -> None:
    """Print *lines* to stderr, as coming from *program*."""
    for line in lines:
        print(f"{program}: {printable(line)}", file=sys.stderr)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print *rows* under the names of their *columns*, each as wide as it must be."""
    lines = [[column.upper() for column in columns]]
    lines += [[printable(cell) or "-" for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
