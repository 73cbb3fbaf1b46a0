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
from typing import TYPE_CHECKING, Final, NamedTuple

from unionfs.layer import xattrs
from unionfs.layer.tree import Directory, identity_of, kind_of
from unionfs.union import whiteouts

if TYPE_CHECKING:
    from unionfs.layer.tree import Layer


#: Redirects whose path leads through another one, and so on: more is no honest layer.
_MAX_DEPTH: Final = 40


class Found(NamedTuple):
    """What shows under a name.

    *places* are the directories that merge (for a directory), or the one directory in
    which *name* lies (for anything else), topmost first. *below* are the attributes of the
    second directory that merges.
    """

    status: os.stat_result
    name: bytes
    places: tuple[Directory, ...]
    redirect: bytes | None = None
    below: os.stat_result | None = None

    @property
    def is_directory(self) -> bool:
        """Whether a directory shows."""
        return stat.S_ISDIR(self.status.st_mode)


def find(
    lowers: Sequence[Layer],
    places: Sequence[Directory],
    name: bytes,
    depth: int = 0,
    *,
    candidates: Sequence[Directory] | None = None,
) -> Found | None:
    """Return what shows under *name* in the directory that *places* make up.

    *lowers* are all lower layers, for redirects that begin at their roots, and *depth* is
    how many such redirects led here. *candidates* are those of the places that may have
    the name, or a whiteout of it, where that is known. Raises EINVAL for a redirect that
    is malformed, ELOOP for one behind too many others, and whatever error a layer has.
    """
    asked = places if candidates is None else candidates
    merged: list[Directory] = []
    shown: list[os.stat_result] = []
    first: bytes | None = None
    number = 0
    while number < len(asked):
        directory = asked[number]
        number += 1
        status = directory.lstat(name)
        if status is None:
            if number < len(asked) and whiteouts.has_whiteout_name(directory, name):
                break
            continue
        if whiteouts.is_whiteout(directory, name, status):
            break
        if not stat.S_ISDIR(status.st_mode):
            if not merged:
                return Found(status, name, (directory,))
            break
        redirect, ends = _continues(lowers, directory, name, more=number < len(asked))
        if not merged:
            first = redirect
        place = Directory(directory.layer, directory, name)
        place.identity = identity_of(status)
        merged.append(place)
        shown.append(status)
        if ends:
            break
        if redirect is not None and redirect.startswith(b"/"):
            places, name = _lead(lowers, directory.layer.index, redirect, depth)
            asked, number = places, 0
        elif redirect is not None:
            name = _component(redirect)
            # Nobody knows yet which of the others may have that name.
            asked, number = places, places.index(directory) + 1
    if not merged:
        return None
    below = shown[1] if len(shown) > 1 else None
    return Found(shown[0], merged[0].name, tuple(merged), first, below)


def _continues(
    lowers: Sequence[Layer], directory: Directory, name: bytes, *, more: bool
) -> tuple[bytes | None, bool]:
    """Return the redirect of a directory, and whether nothing below merges with it.

    *more* says whether a place is left in which the walk could go on.
    """
    layer = directory.layer
    if layer.index == len(lowers):
        return None, True
    try:
        redirect, opaque = layer.directory_marks(xattrs.entry_path(directory.fd(), name))
        if opaque or (not more and redirect is None):
            return redirect, True
        return redirect, whiteouts.is_opaque_by_name(directory, name)
    except PermissionError:
        # Marks that we may not read could be hiding things: show less, never what was deleted.
        return None, True


def _lead(
    lowers: Sequence[Layer], above: int, path: bytes, depth: int
) -> tuple[tuple[Directory, ...], bytes]:
    """Return where *path* leads in the union of the layers below number *above*.

    That is the directories that may have its last component, and that component.
    """
    if depth > _MAX_DEPTH:
        raise OSError(errno.ELOOP, "too many redirects", path)
    places: tuple[Directory, ...] = tuple(layer.root for layer in lowers[above:])
    *parents, last = path[1:].split(b"/")
    for component in parents:
        found = find(lowers, places, _component(component), depth + 1)
        places = found.places if found is not None and found.is_directory else ()
    return places, _component(last)


def _component(name: bytes) -> bytes:
    """Return *name* if a redirect may contain it: it never leads up or nowhere."""
    if name in (b"", b".", b"..") or b"/" in name:
        raise OSError(errno.EINVAL, "malformed overlay.redirect", name)
    return name


#: A name that shows, the number of the place that has it, its type as in ``st_mode``, its inode.
Listed = tuple[bytes, int, int, int]


def list_entries(places: Sequence[Directory]) -> Iterator[Listed]:
    """Yield what shows in the directory that *places* make up, each name once."""
    return (entry for entry in look_through(places) if entry is not None)


def look_through(
    places: Sequence[Directory], read: list[list[bytes]] | None = None
) -> Iterator[Listed | None]:
    """Yield as ``list_entries``, and ``None`` for what is passed over, so that one can pause.

    *read* is given the names that each place has something for, whiteouts included.
    """
    seen: set[bytes] = set()
    for number, directory in enumerate(places):
        has: list[bytes] = []
        # A whiteout hides what is below its layer, not what is beside it.
        hidden: list[bytes] = []
        for entry in directory.scan():
            name = entry.name
            has.append(name)
            if whiteouts.is_reserved(name):
                name = whiteouts.hidden_by(name) or name
                hidden.append(name)
                has.append(name)
                yield None
                continue
            kind = kind_of(entry)
            hides = _may_be_whiteout(directory, kind) and _is_whiteout(directory, entry)
            if hides is False and name not in seen:
                seen.add(name)
                if directory.layer.override is not None:
                    kind = _kind_meant(directory, name, kind)
                yield name, number, kind, entry.inode()
                continue
            if hides:
                hidden.append(name)
            yield None
        seen.update(hidden)
        if read is not None:
            read.append(has)


def _may_be_whiteout(directory: Directory, kind: int) -> bool:
    return kind == stat.S_IFCHR or (kind == stat.S_IFREG and directory.xwhiteouts)


def _kind_meant(directory: Directory, name: bytes, kind: int) -> int:
    """Return the type of a name whose layer may keep another than its inode has."""
    if kind != stat.S_IFREG:
        return kind
    try:
        status = directory.lstat(name)
    except OSError:
        return kind  # whoever asks for it gets the error, not whoever lists the directory
    return kind if status is None else stat.S_IFMT(status.st_mode)


def _is_whiteout(directory: Directory, entry: os.DirEntry[bytes]) -> bool | None:
    """Say whether *entry* hides what is below, ``None`` when it is gone by now."""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return whiteouts.is_whiteout(directory, entry.name, status)


def list_names(places: Sequence[Directory]) -> Iterator[bytes]:
    """Yield each name that shows in the directory that *places* make up, once."""
    return (name for name, _, _, _ in list_entries(places))
