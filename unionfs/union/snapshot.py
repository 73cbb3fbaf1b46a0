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
    """Parallel columns, in the order of positions once ``sort`` has given these."""

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

    def __init__(self, places: tuple[Directory, ...]) -> None:
        self.places = places
        #: Set when the directory has changed: it serves those only who are in the midst of it.
        self.stale = False
        #: When it was taken and last read (monotonic clock), and which changes it has seen.
        self.taken = self.used = 0.0
        self.version = -1
        #: The devices of the places, ``None`` where inode numbers in listings are not stat's.
        self.devices: dict[int, int | None] = {}
        self.names: list[bytes] = []
        self.tops = array("H")
        self.kinds = array("H")
        self.inodes = array("Q")
        self.positions = array("i")

    def add(self, listed: Iterable[Listed | None]) -> int:
        """Take names in, passing over what does not show; return how many were looked at."""
        count = 0
        for entry in listed:
            count += 1
            if entry is not None:
                name, top, kind, inode = entry
                self.names.append(name)
                self.tops.append(top)
                self.kinds.append(kind)
                self.inodes.append(inode)
        return count

    def sort(self) -> None:
        """Give each name its position."""
        names = self.names
        hashes = array("i", [hash(name) % _HASHES for name in names])
        order = sorted(range(len(names)), key=hashes.__getitem__)
        _order_equals(order, hashes, names)
        self.names = [names[index] for index in order]
        self.tops = array("H", map(self.tops.__getitem__, order))
        self.kinds = array("H", map(self.kinds.__getitem__, order))
        self.inodes = array("Q", map(self.inodes.__getitem__, order))
        self.positions = _positions(map(hashes.__getitem__, order))

    def after(self, position: int) -> int:
        """Return the index of the first name after *position*."""
        return bisect_right(self.positions, position)

    def __len__(self) -> int:
        return len(self.names)


def _order_equals(order: list[int], hashes: array[int], names: list[bytes]) -> None:
    """Put names of one hash, which are few, into the order of their bytes."""
    for end in range(1, len(order)):
        here = end
        while (
            here > 0
            and hashes[order[here]] == hashes[order[here - 1]]
            and names[order[here]] < names[order[here - 1]]
        ):
            order[here - 1 : here + 1] = order[here], order[here - 1]
            here -= 1


def _positions(hashes: Iterable[int]) -> array[int]:
    positions = array("i")
    previous = rank = -1
    for number in hashes:
        rank = min(rank + 1, _LAST_OF_HASH) if number == previous else 0
        previous = number
        positions.append((number + 1 << 3) + rank)
    return positions
