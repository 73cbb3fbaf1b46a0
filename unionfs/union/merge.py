"""The one walk down the layers: lookup, listing and the test for emptiness.

A layer that does not have a name is passed over; any other error ends the walk and goes
to the caller. The topmost object wins. A directory merges with those below it until one
is opaque, a whiteout, or no directory; a redirect makes the walk go on under another name
(Documentation/filesystems/overlayfs.rst, "Directories", "redirect_dir").
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from unionfs.layer import xattrs
from unionfs.layer.tree import Directory, kind_of
from unionfs.union import whiteouts

if TYPE_CHECKING:
    from unionfs.layer.tree import Layer


class Found(NamedTuple):
    """What shows under a name.

    *places* are the directories that merge (for a directory), or the one directory in
    which *name* lies (for anything else), topmost first.
    """

    status: os.stat_result
    name: bytes
    places: tuple[Directory, ...]
    redirect: bytes | None = None

    @property
    def is_directory(self) -> bool:
        """Whether a directory shows."""
        return stat.S_ISDIR(self.status.st_mode)


def find(lowers: Sequence[Layer], places: Sequence[Directory], name: bytes) -> Found | None:
    """Return what shows under *name* in the directory that *places* make up.

    *lowers* are all lower layers, for redirects that begin at their roots. Raises EINVAL
    for a redirect that is malformed, and whatever error a layer has.
    """
    last = len(places) - 1
    for number, directory in enumerate(places):
        status = directory.lstat(name)
        if status is None:
            if number < last and whiteouts.has_whiteout_name(directory, name):
                return None
            continue
        if whiteouts.is_whiteout(directory, name, status):
            return None
        if not stat.S_ISDIR(status.st_mode):
            return Found(status, name, (directory,))
        below, redirect = _below(lowers, places, number, name)
        return Found(status, name, (Directory(directory.layer, directory, name), *below), redirect)
    return None


def _below(
    lowers: Sequence[Layer], places: Sequence[Directory], number: int, name: bytes
) -> tuple[tuple[Directory, ...], bytes | None]:
    """Return the directories below ``places[number]/name``, and the redirect it has."""
    directory = places[number]
    if directory.layer.index == len(lowers):
        return (), None  # the lowest layer: nothing can be below
    path = xattrs.entry_path(directory.fd(), name)
    redirect = directory.layer.marks.read(path, xattrs.REDIRECT)
    if redirect is None and number == len(places) - 1:
        return (), None
    if whiteouts.is_opaque(directory, name):
        return (), redirect
    if redirect is None:
        found = find(lowers, places[number + 1 :], name)
    elif redirect.startswith(b"/"):
        found = _find_path(lowers, directory.layer.index, redirect)
    else:
        found = find(lowers, places[number + 1 :], _component(redirect))
    return (found.places if found is not None and found.is_directory else ()), redirect


def _find_path(lowers: Sequence[Layer], above: int, path: bytes) -> Found | None:
    """Return what shows at *path* in the union of the layers below number *above*."""
    places: tuple[Directory, ...] = tuple(layer.root for layer in lowers[above:])
    found = None
    for component in path[1:].split(b"/"):
        found = find(lowers, places, _component(component))
        if found is None or not found.is_directory:
            return None
        places = found.places
    return found


def _component(name: bytes) -> bytes:
    """Return *name* if a redirect may contain it: it never leads up or nowhere."""
    if name in (b"", b".", b"..") or b"/" in name:
        raise OSError(errno.EINVAL, "malformed overlay.redirect", name)
    return name


def list_names(places: Sequence[Directory]) -> Iterator[bytes]:
    """Yield each name that shows in the directory that *places* make up, once."""
    if len(places) == 1:
        yield from (name for name, shows in _entries(places[0]) if shows)
        return
    seen: set[bytes] = set()
    for directory in places:
        # A whiteout hides what is below its layer, not what is beside it.
        hidden: list[bytes] = []
        for name, shows in _entries(directory):
            if not shows:
                hidden.append(name)
            elif name not in seen:
                seen.add(name)
                yield name
        seen.update(hidden)


def _entries(directory: Directory) -> Iterator[tuple[bytes, bool]]:
    """Yield the names of one layer's directory; ``False`` marks one that is hidden below."""
    for entry in directory.scan():
        name = entry.name
        if whiteouts.is_reserved(name):
            hidden = whiteouts.hidden_by(name)
            if hidden:
                yield hidden, False
        elif _may_be_whiteout(directory, entry):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield name, not whiteouts.is_whiteout(directory, name, status)
        else:
            yield name, True


def _may_be_whiteout(directory: Directory, entry: os.DirEntry[bytes]) -> bool:
    kind = kind_of(entry)
    return kind == stat.S_IFCHR or (kind == stat.S_IFREG and directory.xwhiteouts)


def is_empty(places: Sequence[Directory]) -> bool:
    """Say whether nothing shows in the directory that *places* make up."""
    return next(list_names(places), None) is None
