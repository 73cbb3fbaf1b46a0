"""Identity: which object of the layers a number means to the kernel, and for how long.

A node is made when the kernel first learns of an object and lives until the kernel has
given back every reference (``lookups``) and nothing below it is known. The kernel owns
that count; nodes own everything else that is known of an object: its names, where it
lies in the layers, its open descriptor. ``table`` has them all, by number.

There may be a million of them, so a file's has no objects of its own but its number and its name.
"""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.layer.tree import Directory
    from unionfs.union.placeindex import Sieve
    from unionfs.union.snapshot import Snapshot

#: When a node was found that must be looked for anew.
NEVER: Final = float("-inf")

#: The object's data is its own, not elsewhere by an ``overlay.metacopy`` mark.
NO_METACOPY: Final = 1
#: The upper object has no ``overlay.protattr``.
NO_PROTATTR: Final = 2
#: The directory passes no ACL on to what is made in it.
NO_DEFAULT_ACL: Final = 8
#: The lower object is neither immutable nor append-only.
NO_PROTECTION: Final = 4

#: Types as in ``st_mode``, one object for each.
_KINDS: Final = {
    kind: kind
    for kind in (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    )
}


class Node:
    """An object that the kernel knows, under the name it was last seen."""

    __slots__ = (
        "copying",
        "found",
        "ino",
        "kind",
        "known",
        "lookups",
        "more_reals",
        "name",
        "parent",
        "pinned",
        "real",
        "removed",
    )

    def __init__(self, ino: int, kind: int, parent: DirNode | None, name: bytes) -> None:
        self.ino = ino
        self.kind = _KINDS.get(kind, kind)
        self.parent = parent
        self.name = name
        self.lookups = 0
        #: Number of the object that this node stands for, -1 without one; and of others that
        #: it stands for as well: its copy, what it was copied from.
        self.real = -1
        self.more_reals: tuple[int, ...] = ()
        #: Set when the last name is gone; the object lives on for those who have it open.
        self.removed = False
        #: O_PATH descriptor of an object that no known name leads to, else -1.
        self.pinned = -1
        #: Set while the object is being copied up.
        self.copying: threading.Event | None = None
        #: What the object is known not to have, as bits: ``NO_METACOPY`` and so on.
        self.known = 0
        #: When it was last found on the layers: ``Freshness`` has the clock.
        self.found = NEVER

    @property
    def reals(self) -> tuple[int, ...]:
        """The numbers of all objects that this node stands for."""
        return () if self.real < 0 else (self.real, *self.more_reals)

    @property
    def in_upper(self) -> bool:
        """Whether the object is in the upper layer."""
        raise NotImplementedError

    def pin(self, fd: int) -> None:
        """Keep the object reachable by *fd*, which this node now owns."""
        self.unpin()
        self.pinned = fd

    def unpin(self) -> None:
        """Close the descriptor that kept a nameless object reachable."""
        if self.pinned >= 0:
            os.close(self.pinned)
            self.pinned = -1


class DirNode(Node):
    """A directory: where it lies in each layer, and which of its names the kernel knows."""

    __slots__ = ("children", "listing", "lowers", "redirect", "sieve", "upper")

    def __init__(
        self,
        ino: int,
        parent: DirNode | None,
        name: bytes,
        upper: Directory | None,
        lowers: tuple[Directory, ...],
    ) -> None:
        super().__init__(ino, stat.S_IFDIR, parent, name)
        self.upper = upper
        self.lowers = lowers
        #: What the upper directory's redirect mark says, ``None`` without one.
        self.redirect: bytes | None = None
        self.children: dict[bytes, Node] = {}
        #: What is known of where its names lie, once that has cost too much.
        self.sieve: Sieve | None = None
        #: The merged names, kept while anyone lists them.
        self.listing: Snapshot | None = None

    @property
    def in_upper(self) -> bool:
        """Whether the upper layer has this directory."""
        return self.upper is not None

    @property
    def merged(self) -> bool:
        """Whether more than one layer has this directory."""
        return len(self.lowers) + (self.upper is not None) > 1

    def places(self) -> tuple[Directory, ...]:
        """Return the directories to look into, topmost first; none when it is removed."""
        return () if self.removed else self.all_places()

    def top(self) -> Directory:
        """Return the directory whose attributes are shown."""
        return self.lowers[0] if self.upper is None else self.upper

    def all_places(self) -> tuple[Directory, ...]:
        """Return the directories that it is or, when it is removed, was."""
        return self.lowers if self.upper is None else (self.upper, *self.lowers)

    def changed(self) -> None:
        """Let the next listing look again: a name came or went."""
        if self.listing is not None:
            self.listing.stale = True


class FileNode(Node):
    """Anything but a directory; all its names are one node."""

    __slots__ = (
        "aliases",
        "backed",
        "extra_links",
        "index",
        "linkable",
        "loose",
        "lower_name",
        "lower_place",
        "opened",
        "upper",
    )

    def __init__(self, ino: int, kind: int, parent: DirNode | None, name: bytes) -> None:
        super().__init__(ino, kind, parent, name)
        #: Further names that are known, beside (parent, name).
        self.aliases: dict[tuple[DirNode, bytes], None] | None = None
        #: Whether the object is in the upper layer.
        self.upper = False
        #: Where it lies in a lower layer, if it was ever there: see ``lower``.
        self.lower_place: Directory | None = None
        self.lower_name = name
        #: Name of its entry in the index: a lower object of several names, copied up.
        self.index: bytes | None = None
        #: Whether a name that is known leads to the index only: it is linked at the next change.
        self.loose = False
        #: What the link count on disk must be corrected by, to count names that are lower.
        self.extra_links = 0
        #: Whether it was made without a name and may be given its first one (O_TMPFILE).
        self.linkable = False
        self.opened: OpenFile | None = None
        #: Whether the kernel has ever written it without us, past the page cache.
        self.backed = False

    @property
    def in_upper(self) -> bool:
        """Whether the object is in the upper layer."""
        return self.upper

    @property
    def lower(self) -> tuple[Directory, bytes] | None:
        """The lower directory that has the object, if it was ever lower, and its name there."""
        return None if self.lower_place is None else (self.lower_place, self.lower_name)

    def names(self) -> Iterator[tuple[DirNode, bytes]]:
        """Yield all names that are known."""
        if self.parent is not None:
            yield self.parent, self.name
        yield from self.aliases or ()

    def add_name(self, parent: DirNode, name: bytes) -> None:
        """Remember one more name."""
        if self.parent is None:
            self.parent, self.name = parent, name
        elif self.parent is not parent or self.name != name:
            if self.aliases is None:
                self.aliases = {}
            self.aliases[parent, name] = None

    def reached_by(self, parent: DirNode, name: bytes) -> None:
        """Let the name that leads to it for certain be the first: it is opened by that one."""
        if self.parent is not parent or self.name != name:
            self.remove_name(parent, name)
            first = self.parent, self.name
            self.parent, self.name = parent, name
            if first[0] is not None:
                self.add_name(first[0], first[1])

    def remove_name(self, parent: DirNode, name: bytes) -> None:
        """Forget a name that is gone."""
        if self.parent is parent and self.name == name:
            other = next(iter(self.aliases), None) if self.aliases else None
            self.parent, self.name = other or (None, name)
            parent, name = other or (parent, name)
        if self.aliases is not None:
            self.aliases.pop((parent, name), None)


class OpenFile:
    """The one descriptor through which all who have a regular file open reach it."""

    __slots__ = (
        "backing",
        "backs_lower",
        "fd",
        "known_mtime",
        "may_strip",
        "set_ids_since",
        "users",
        "writable",
    )

    def __init__(self, fd: int, *, writable: bool) -> None:
        self.fd = fd
        self.writable = writable
        self.users = 0
        #: Whether a write may have setuid, setgid or a capability to take away.
        self.may_strip = True
        #: The kernel's number of *fd* when it reads and writes it without us, else 0. All who
        #: have a file open must have it so, or none.
        self.backing = 0
        #: Whether that is a lower file of a union that can be written.
        self.backs_lower = False
        #: mtime (nanoseconds) that the kernel has been told while it may write.
        self.known_mtime = 0
        #: mtime (nanoseconds) when setuid or setgid was set while the kernel may write.
        self.set_ids_since: int | None = None

    def become(self, fd: int) -> None:
        """Go on with *fd*, open for reading and writing, under the number that is in use.

        A read that is under way in another thread gets the one file or the other.
        """
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        self.writable = True
