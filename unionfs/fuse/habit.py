"""Whether those who list a directory also look at what is in it.

A listing with attributes (READDIRPLUS) saves a lookup for each name that is looked at
afterwards, and costs several times a plain one where none is: ``ls -l`` wants it, ``find``
does not. The kernel asks with attributes and does not say what becomes of them. So some
directories are listed without, and the lookups that follow tell what clients do here.
"""

from __future__ import annotations

from typing import Final

#: The share of names looked at from which attributes pay.
_PAYS: Final = 0.25
#: Directories listed with attributes before the next is listed without, to see.
_TRUST: Final = 15
#: Listings under way that are remembered.
_MOST: Final = 256


class Habit:
    """What clients of one mount do after they have listed a directory."""

    def __init__(self) -> None:
        self._trust = 1
        #: How the listings under way were begun, by directory.
        self._begun: dict[int, bool] = {}
        #: The directory that was last listed without attributes, names told, and looked at.
        self._watched = 0
        self._told = 0
        self._looked = 0

    def wants_attributes(self, node: int, offset: int) -> bool:
        """Decide how to list directory *node*, or how to go on after *offset*."""
        if offset == 0:
            return self._begin(node)
        if node == self._watched and self._looked:
            return True  # somebody looks at each part before the next
        return self._begun.get(node, True)

    def _begin(self, node: int) -> bool:
        if self._told:
            self._trust = _TRUST if self._looked >= self._told * _PAYS else 0
            self._told = 0
        with_attributes = self._trust > 0
        if with_attributes:
            self._trust -= 1
        else:
            self._watched, self._looked = node, 0
        if len(self._begun) >= _MOST:
            self._begun.clear()
        self._begun[node] = with_attributes
        return with_attributes

    def told(self, node: int, count: int) -> None:
        """Take note that *count* names of *node* were listed without attributes."""
        if node == self._watched:
            self._told += count

    def looked(self, parent: int) -> None:
        """Take note of a lookup in directory *parent*."""
        if parent == self._watched:
            self._looked += 1
