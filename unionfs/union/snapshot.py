"""The names of one directory at one moment, each with the position that it has in listings.

A position (the kernel's offset, telldir(3)'s number) is made from the name's hash, so
that it stays the same over changes of the directory and when the snapshot is dropped and
taken again: no state is needed to go on after it, and what goes on neither repeats nor
loses a name that stays. It fits into 31 bits, since programs for 32-bit machines take no more.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unionfs.layer.tree import Directory
    from unionfs.union.merge import Listed

#: Positions are 8 for each hash: names that share one stand in the order of their bytes.
_HASHES: Final = (1 << 28) - 2
_LAST_OF_HASH: Final = 7
#: ``.`` and ``..`` come before the names.
DOTS: Final = (b".", b"..")


class Snapshot:
    """Parallel columns, in the order of positions."""

    __slots__ = (
        "devices",
        "inodes",
        "kinds",
        "names",
        "places",
        "positions",
        "stale",
        "taken",
        "tops",
        "used",
        "version",
    )

    def __init__(self, places: tuple[Directory, ...], listed: Iterable[Listed]) -> None:
        self.places = places
        #: Set when the directory has changed: it serves those only who are in the midst of it.
        self.stale = False
        #: When it was taken and last read (monotonic clock), and which changes it has seen.
        self.taken = self.used = 0.0
        self.version = -1
        #: The devices of the places, ``None`` where inode numbers in listings are not stat's.
        self.devices: dict[int, int | None] = {}
        rows = sorted((hash(row[0]) % _HASHES, *row) for row in listed)
        self.names = [row[1] for row in rows]
        self.tops = array("H", [row[2] for row in rows])
        self.kinds = array("H", [row[3] for row in rows])
        self.inodes = array("Q", [row[4] for row in rows])
        self.positions = array("i", _positions([row[0] for row in rows]))

    def after(self, position: int) -> int:
        """Return the index of the first name after *position*."""
        return bisect_right(self.positions, position)

    def __len__(self) -> int:
        return len(self.names)


def _positions(hashes: list[int]) -> list[int]:
    positions: list[int] = []
    previous = rank = -1
    for number in hashes:
        rank = min(rank + 1, _LAST_OF_HASH) if number == previous else 0
        previous = number
        positions.append((number + 1 << 3) + rank)
    return positions
