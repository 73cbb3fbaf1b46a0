"""Sieves: which layers can have a name at all, so that a lookup asks no others.

A directory that lies in several layers costs each lookup a question to each of them, and
most have nothing to say. When so many were asked in vain that reading the directories
would have cost less, they are read, and from then on a name that no layer has costs
nothing and any other one question, however many layers there are. A listing reads them
anyway.

A sieve only ever says where something *may* be; what it is, the one walk decides
(``merge.find``). Lower layers do not change, so what was read of them stays true; a
directory of the upper one learns each name that we make in it (``Directory.added``).
What others change below us shows when the sieve is too old, a part of ``timeout``; with
``timeout=0`` there are none.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Final

from unionfs.layer import xattrs
from unionfs.layer.names import NameSet
from unionfs.layer.tree import ABSENT
from unionfs.union import whiteouts
from unionfs.union.placeindex import PlaceIndex, Sieve

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from unionfs.layer.tree import Directory
    from unionfs.union.merge import Found
    from unionfs.union.nodes import DirNode

_NEVER: Final = float("inf")
#: Names that can be read in the time of one question, and how many are always worth it.
_NAMES_PER_QUESTION: Final = 6
_FEW_NAMES: Final = 256
#: Names in all sieves together, at 10 bytes each: the oldest sieves go first.
_MOST_NAMES: Final = 1_000_000


class _UnknowableError(Exception):
    """A directory that cannot be read, or that has names it does not list."""


class Sieves:
    """The sieves of all directories, within a bound."""

    def __init__(self, lifetime: float) -> None:
        #: How long a sieve is good, in seconds: see ``Freshness``.
        self.lifetime = lifetime
        self._sizes: OrderedDict[DirNode, int] = OrderedDict()
        self._total = 0

    def empty(self) -> NameSet | None:
        """Return the names of a directory that was just made in the upper layer."""
        return NameSet((), monotonic() + self.lifetime) if self.lifetime else None

    def candidates(self, node: DirNode, name: bytes) -> Sequence[Directory]:
        """Return the places of *node* that may have *name*, topmost first."""
        if node.removed:
            return ()
        upper = node.upper
        lowers = self.below(node, name)
        return lowers if upper is None else (upper, *lowers)

    def below(self, node: DirNode, name: bytes) -> tuple[Directory, ...]:
        """Return the lower places of *node* that may have *name*, topmost first."""
        sieve = node.sieve
        if sieve is None or sieve.index is None:
            return node.lowers
        index = sieve.index
        if index.places is not node.lowers or index.until < monotonic():
            self.drop(node)
            return node.lowers
        return index.having(name)

    def asked(self, node: DirNode, candidates: Sequence[Directory], found: Found | None) -> None:
        """Take into account what finding a name has cost; learn more when that pays."""
        if found is None:
            wasted = 2 * len(candidates) - 1
        elif found.places[0] is candidates[0] or found.is_directory:
            return
        else:
            wasted = 2 * len(candidates) - 2
        sieve = node.sieve
        if sieve is None:
            sieve = node.sieve = Sieve(len(candidates))
        sieve.wasted += wasted
        if sieve.wasted > sieve.patience:
            sieve.patience = 2 * sieve.wasted
            try:
                self._learn(node, sieve, _FEW_NAMES + _NAMES_PER_QUESTION * sieve.wasted)
            except _UnknowableError:
                sieve.patience = _NEVER

    def _learn(self, node: DirNode, sieve: Sieve, most: int) -> None:
        """Read what is not known, unless that is more than *most* names."""
        read: list[list[bytes]] = []
        wanted = node.lowers if sieve.index is None else ()
        upper = node.upper if node.upper is not None and node.upper.names is None else None
        for directory in wanted if upper is None else (upper, *wanted):
            names = _read(directory, most)
            if names is None:
                return
            most -= len(names)
            read.append(names)
        if upper is not None:
            upper.names = NameSet(read.pop(0), monotonic() + self.lifetime)
        if wanted:
            sieve.index = self._index(wanted, read)
        self._keep(node)

    def learn(self, node: DirNode, read: list[list[bytes]]) -> None:
        """Take in the names that a listing has *read* of each place just now."""
        places = node.places()
        sieve = node.sieve or Sieve(len(places))
        if not self.lifetime or len(read) != len(places) or sieve.patience == _NEVER:
            return
        node.sieve = sieve
        if not all(map(_lists_all, places, read)):
            sieve.patience = _NEVER
            return
        if node.upper is not None:
            names = read.pop(0)
            if node.upper.names is None:
                node.upper.names = NameSet(names, monotonic() + self.lifetime)
        if sieve.index is None and read:
            sieve.index = self._index(node.lowers, read)
        self._keep(node)

    def _index(self, places: tuple[Directory, ...], read: Iterable[Iterable[bytes]]) -> PlaceIndex:
        masks: dict[int, int] = {}
        for number, names in enumerate(read):
            bit = 1 << number
            for one in map(hash, names):
                masks[one] = masks.get(one, 0) | bit
        return PlaceIndex(places, masks, monotonic() + self.lifetime)

    def _keep(self, node: DirNode) -> None:
        """Count the sieve of *node*; drop the oldest while there is too much in all."""
        index = None if node.sieve is None else node.sieve.index
        names = None if node.upper is None else node.upper.names
        size = (0 if index is None else len(index)) + (0 if names is None else len(names))
        self._total += size - self._sizes.pop(node, 0)
        self._sizes[node] = size
        while self._total > _MOST_NAMES and len(self._sizes) > 1:
            self.drop(next(iter(self._sizes)))

    def drop(self, node: DirNode) -> None:
        """Forget what is known of *node*."""
        self._total -= self._sizes.pop(node, 0)
        node.sieve = None
        if node.upper is not None:
            node.upper.names = None


def _read(directory: Directory, most: int) -> list[bytes] | None:
    """Return the names that *directory* may have something for, ``None`` if they are too many."""
    names: list[bytes] = []
    try:
        with os.scandir(xattrs.fd_path(directory.fd())) as entries:
            names.extend(entry.name for entry in islice(entries, most + 1))
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise _UnknowableError from error
    if len(names) > most:
        return None
    if not _lists_all(directory, names):
        raise _UnknowableError
    names += hidden(names)
    return names


def hidden(names: Iterable[bytes]) -> list[bytes]:
    """Return the names that whiteouts of the form ``.wh.NAME`` among *names* hide."""
    reserved = filter(whiteouts.is_reserved, names)
    return [name for name in map(whiteouts.hidden_by, reserved) if name]


def _lists_all(directory: Directory, names: Sequence[bytes]) -> bool:
    """Say whether *directory* has no names but those that it lists.

    One that does not tell upper case from lower has more; it is asked for one of them.
    """
    for name in names:
        other = name.swapcase()
        if other != name:
            try:
                return other in names or directory.lstat(other) is None
            except OSError:
                return False
    return True
