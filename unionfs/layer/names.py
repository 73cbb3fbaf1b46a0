"""Which names a directory may have: kept in few bytes, and never wrong about one that it has not.

Names are kept by their hash, 8 bytes each. Two names may share one: then a name is looked
for on disk in vain, and that is all.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable

#: Names added before they are sorted in, beside a part of those that are sorted.
_FEW = 256


class NameSet:
    """The names that a directory of the upper layer may have, until *until* (monotonic clock).

    It grows with each name that we make there; names that go may stay.
    """

    __slots__ = ("_added", "_sorted", "until")

    def __init__(self, names: Iterable[bytes], until: float) -> None:
        self.until = until
        self._sorted = array("q", sorted(map(hash, names)))
        self._added: set[int] = set()

    def add(self, name: bytes) -> None:
        """Take one more name in."""
        added = self._added
        added.add(hash(name))
        if len(added) > _FEW + len(self._sorted) // 8:
            self._sorted = array("q", sorted({*self._sorted, *added}))
            added.clear()

    def __contains__(self, name: bytes) -> bool:
        number = hash(name)
        return number in self._added or is_in(self._sorted, number)

    def __len__(self) -> int:
        return len(self._sorted) + len(self._added)


def is_in(numbers: array[int], number: int) -> bool:
    """Say whether the sorted *numbers* have *number*."""
    place = bisect_left(numbers, number)
    return place < len(numbers) and numbers[place] == number
