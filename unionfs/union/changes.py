"""What the upper layer changes, as ``docker diff`` tells it.

A (added), C (changed) and D (deleted), each with its path in the merged tree. A
directory with anything changed inside is itself C, since its entries changed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from unionfs.layer import xattrs
from unionfs.layer.tree import Directory
from unionfs.union import merge, whiteouts

if TYPE_CHECKING:
    from unionfs.layer.stack import LayerStack
    from unionfs.union.merge import Found

ADDED = "A"
CHANGED = "C"
DELETED = "D"


class Change(NamedTuple):
    """One path that the upper layer adds, changes or deletes."""

    kind: str
    path: bytes


def changes(stack: LayerStack) -> Iterator[Change]:
    """Yield what the upper layer of *stack* changes, each directory before its entries."""
    if stack.upper is None:
        return
    if not stack.lowers:
        yield from _bare(stack.upper.root, b"")
        return
    lowers = tuple(layer.root for layer in stack.lowers)
    yield from _Walk(stack).directory((stack.upper.root, *lowers), lowers, b"")


def _bare(directory: Directory, path: bytes) -> Iterator[Change]:
    """Yield what an upper directory tells by itself: an origin mark means that it was below."""
    for name in sorted({_uncovered(entry.name) for entry in directory.scan()} - {b""}):
        here = path + b"/" + name
        status = directory.lstat(name)
        if status is None or whiteouts.is_whiteout(directory, name, status):
            yield Change(DELETED, here)
            continue
        origin = directory.layer.marks.read(xattrs.entry_path(directory.fd(), name), xattrs.ORIGIN)
        yield Change(ADDED if origin is None else CHANGED, here)
        if stat.S_ISDIR(status.st_mode):
            yield from _bare(Directory(directory.layer, directory, name), here)


class _Walk:
    """Compares the union with the union of its lower layers, along the upper one."""

    def __init__(self, stack: LayerStack) -> None:
        self._layers = stack.lowers

    def directory(
        self, merged: Sequence[Directory], below: Sequence[Directory], path: bytes
    ) -> Iterator[Change]:
        """Yield the changes inside a directory: *merged* as shown, *below* without the upper."""
        with _named(path):
            touched = sorted(self._touched(merged, below))
        for name in touched:
            new = merge.find(self._layers, merged, name)
            old = merge.find(self._layers, below, name)
            yield from self._entry(new, old, path + b"/" + name)

    def _touched(self, merged: Sequence[Directory], below: Sequence[Directory]) -> set[bytes]:
        """Return the names that may differ: those of the upper layer, whiteouts included."""
        upper, rest = merged[0], tuple(merged[1:])
        if _same_places(rest, below):
            names = {entry.name for entry in upper.scan()}
            return {_uncovered(name) for name in names} - {b""}
        # Opaque or redirected: what is below is not what was there before.
        return {*merge.list_names(merged), *merge.list_names(below)}

    def _entry(self, new: Found | None, old: Found | None, path: bytes) -> Iterator[Change]:
        if new is None:
            if old is not None:
                yield Change(DELETED, path)
            return
        if old is not None and new.name == old.name and _same_places(new.places, old.places):
            return  # the same lower object: only its neighbours were touched
        yield Change(ADDED if old is None else CHANGED, path)
        if new.is_directory:
            was_directory = old is not None and old.is_directory
            below = old.places if old is not None and was_directory else ()
            yield from self._inside(new, below, path)

    def _inside(self, new: Found, below: Sequence[Directory], path: bytes) -> Iterator[Change]:
        if new.places[0].layer.index == 0:
            yield from self.directory(new.places, below, path)
            return
        # A lower directory at a new place: all that shows in it is new there.
        with _named(path):
            names = sorted(merge.list_names(new.places))
        for name in names:
            found = merge.find(self._layers, new.places, name)
            if found is not None:
                yield from self._entry(found, None, path + b"/" + name)


@contextlib.contextmanager
def _named(path: bytes) -> Iterator[None]:
    """Let errors in the block be about *path*, not about a descriptor that it is open as."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fsdecode(path or b"/")) from error


def _uncovered(name: bytes) -> bytes:
    """Return the name that an upper entry is about, nothing for bookkeeping."""
    return (whiteouts.hidden_by(name) or b"") if whiteouts.is_reserved(name) else name


def _same_places(first: Sequence[Directory], second: Sequence[Directory]) -> bool:
    return [(one.layer.index, one.path()) for one in first] == [
        (one.layer.index, one.path()) for one in second
    ]
