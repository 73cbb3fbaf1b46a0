"""Ids: those that layers have on disk, and those that users see (``uidmapping=``, ``gidmapping=``).

The rule is the kernel's for idmapped mounts (Documentation/filesystems/idmappings.rst): an
id that no range has is shown as the overflow id, and what would have to be stored under an
id that no range shows is refused with EOVERFLOW. Of ranges that overlap the first counts,
as in fuse-overlayfs. A squashed owner (``squash_to_uid=`` and others) is shown in place of any.

Ids stand in attributes, in POSIX ACLs and in ``security.capability``, which tells whose root
a file's capabilities are for.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from unionfs.layer import acl, capability
from unionfs.layer.xattrs import ACL_ACCESS, ACL_DEFAULT, CAPABILITY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unionfs.layer.tree import Layer
    from unionfs.options import IdRange, MountOptions

#: What the kernel has where nobody changed it.
_OVERFLOW: Final = 65534


class IdMap:
    """The ranges of users, or of groups; without any, ids are what they are."""

    __slots__ = ("_overflow", "_ranges")

    def __init__(self, ranges: Sequence[IdRange], overflow: int) -> None:
        self._ranges = ranges
        self._overflow = overflow

    def shown(self, stored: int) -> int:
        """Return what users see of an id on disk."""
        if not self._ranges:
            return stored
        for disk, shown, length in self._ranges:
            if disk <= stored < disk + length:
                return shown + stored - disk
        return self._overflow

    def stored(self, shown: int) -> int:
        """Return the id on disk that users see as *shown*; EOVERFLOW where there is none."""
        if not self._ranges:
            return shown
        for disk, first, length in self._ranges:
            if first <= shown < first + length:
                return disk + shown - first
        raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))


class Mapping:
    """How the ids of users and groups on disk and those that are shown belong together."""

    __slots__ = ("groups", "users")

    def __init__(self, users: IdMap, groups: IdMap) -> None:
        self.users = users
        self.groups = groups

    @classmethod
    def of(cls, options: MountOptions) -> Mapping | None:
        """Return what *options* ask for, ``None`` where ids are shown as they are."""
        if not options.uidmapping and not options.gidmapping:
            return None
        return cls(
            IdMap(options.uidmapping, _overflow_id("overflowuid")),
            IdMap(options.gidmapping, _overflow_id("overflowgid")),
        )

    def shown_value(self, name: bytes, value: bytes) -> bytes:
        """Return what users see of the extended attribute *name*, which has *value* on disk."""
        if name in (ACL_ACCESS, ACL_DEFAULT):
            return acl.with_ids(value, self.users.shown, self.groups.shown)
        return capability.with_root(value, self.users.shown) if name == CAPABILITY else value

    def stored_value(self, name: bytes, value: bytes) -> bytes:
        """Return what *value* of the extended attribute *name* is on disk; EOVERFLOW as above."""
        if name in (ACL_ACCESS, ACL_DEFAULT):
            return acl.with_ids(value, self.users.stored, self.groups.stored)
        return capability.with_root(value, self.users.stored) if name == CAPABILITY else value


class Crossing:
    """Ids on the way from one layer to another: both may have them mapped, or one of them."""

    __slots__ = ("_source", "_target")

    def __init__(self, source: Mapping | None, target: Mapping | None) -> None:
        self._source = source
        self._target = target

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """Return what the owner *uid*, *gid* of the one layer is on the other."""
        if self._source is self._target:
            return uid, gid
        if self._source is not None:
            uid, gid = self._source.users.shown(uid), self._source.groups.shown(gid)
        if self._target is not None:
            uid, gid = self._target.users.stored(uid), self._target.groups.stored(gid)
        return uid, gid

    def value(self, name: bytes, value: bytes) -> bytes:
        """Return the same for an extended attribute."""
        if self._source is self._target:
            return value
        if self._source is not None:
            value = self._source.shown_value(name, value)
        return value if self._target is None else self._target.stored_value(name, value)


class Owners:
    """Who owns what: as the layers of a union have it, and as users see it."""

    __slots__ = ("_mapping", "_options", "_upper", "as_stored")

    def __init__(self, options: MountOptions, upper: Layer | None) -> None:
        self._options = options
        self._mapping = Mapping.of(options)
        self._upper = upper
        squashed = options.squash_to_uid, options.squash_to_gid
        #: Whether users see what layers have.
        self.as_stored = self._mapping is None and squashed == (None, None)

    def mapping_of(self, layer: Layer | None) -> Mapping | None:
        """Return how ids of *layer* are shown, ``None`` where they are what they are.

        The kernel has mapped those of a mount that is idmapped already: an engine that makes
        such mounts may give the mapping, too, and means one.
        """
        return None if layer is None or layer.idmapped else self._mapping

    def crossing(self, layer: Layer) -> Crossing:
        """Return what ids of *layer* are in the upper layer."""
        return Crossing(self.mapping_of(layer), self.mapping_of(self._upper))

    def shown(self, layer: Layer, uid: int, gid: int) -> tuple[int, int]:
        """Return what users see of an owner on *layer*: squashed, or else mapped."""
        mapping = self.mapping_of(layer)
        if mapping is not None:
            uid, gid = mapping.users.shown(uid), mapping.groups.shown(gid)
        squash_to_uid, squash_to_gid = self._options.squash_to_uid, self._options.squash_to_gid
        return (
            uid if squash_to_uid is None else squash_to_uid,
            gid if squash_to_gid is None else squash_to_gid,
        )

    def stored_uid(self, uid: int) -> int:
        """Return what a user that users see is in the upper layer; EOVERFLOW for nothing.

        Squashed ones are not stored, so that they need not be there.
        """
        mapping = self.mapping_of(self._upper)
        if mapping is None or self._options.squash_to_uid is not None:
            return uid
        return mapping.users.stored(uid)

    def stored_gid(self, gid: int) -> int:
        """Return the same for a group."""
        mapping = self.mapping_of(self._upper)
        if mapping is None or self._options.squash_to_gid is not None:
            return gid
        return mapping.groups.stored(gid)


def _overflow_id(name: str) -> int:
    try:
        with open(f"/proc/sys/kernel/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _OVERFLOW
