"""Whether those who list a directory also look at what is in it.

A listing with attributes (READDIRPLUS) saves a lookup for each name that is looked at
afterwards, and costs several times a plain one where none is: ``ls -l`` wants it, ``find``
does not. The kernel asks with attributes at the start of every directory and does not say
what became of them. So some directories are listed without, and the lookups that follow
tell what clients do here.
"""

from __future__ import annotations

from typing import Final

#: The share of names looked at from which attributes pay.
_PAYS: Final = 0.25
#: Directories listed with attributes before the next is listed without, to see.
_TRUST: Final = 15


class Habit:
    """What clients of one mount do after they have listed a directory."""

    def __init__(self) -> None:
        self._pays = True
        self._trust = 1
        #: The directory that was last listed without attributes, names told, and looked at.
        self._watched = 0
        self._told = 0
        self._looked = 0

    def wants_attributes(self, node: int) -> bool:
        """Decide how to begin the listing of directory *node*."""
        if self._told:
            self._pays = self._looked >= self._told * _PAYS
            self._trust = _TRUST if self._pays else 0
            self._told = 0
        if self._trust:
            self._trust -= 1
            return True
        self._watched, self._looked = node, 0
        return False

    def told(self, count: int) -> None:
        """Take note that *count* names were listed without attributes."""
        self._told = count

    def looked(self, parent: int) -> None:
        """Take note of a lookup in directory *parent*."""
        if parent == self._watched:
            self._looked += 1
