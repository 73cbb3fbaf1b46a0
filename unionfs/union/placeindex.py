"""What is known of the names in one directory's places."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from unionfs.layer.tree import Directory

#: Questions asked in vain before a directory is read, and how many for each of its places.
_PATIENCE: Final = 16
_PATIENCE_EACH: Final = 1


class PlaceIndex:
    """Which of the lower directories *places* may have a name, or a whiteout of it."""

    __slots__ = ("_groups", "_hashes", "_which", "places", "until")

    def __init__(self, places: tuple[Directory, ...], masks: dict[int, int], until: float) -> None:
        self.places = places
        self.until = until
        groups: dict[int, int] = {}
        ordered = sorted(masks)
        self._hashes = array("q", ordered)
        #: For each hash the number of its group; groups are few, as layers share few names.
        self._which = array("I", [groups.setdefault(masks[one], len(groups)) for one in ordered])
        if len(groups) <= 1 << 8:
            self._which = array("B", self._which)
        self._groups = [_chosen(places, mask) for mask in groups]

    def having(self, name: bytes) -> tuple[Directory, ...]:
        """Return the places that may have *name*, topmost first."""
        number = hash(name)
        hashes = self._hashes
        where = bisect_left(hashes, number)
        if where < len(hashes) and hashes[where] == number:
            return self._groups[self._which[where]]
        return ()

    def __len__(self) -> int:
        return len(self._hashes)


def _chosen(places: tuple[Directory, ...], mask: int) -> tuple[Directory, ...]:
    return tuple(place for number, place in enumerate(places) if mask >> number & 1)


class Sieve:
    """What is known of one directory's places, and what not knowing more has cost."""

    __slots__ = ("index", "patience", "wasted")

    def __init__(self, places: int) -> None:
        self.index: PlaceIndex | None = None
        self.wasted = 0
        self.patience: float = _PATIENCE + _PATIENCE_EACH * places
