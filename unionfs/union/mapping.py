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

    from unionfs.fuse.interface import Caller
    from unionfs.layer.stack import LayerStack
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


class Owners:
    """Who owns what: as the layers of a union have it, and as users see it."""

    __slots__ = ("_options", "_own", "as_stored", "mapping")

    def __init__(self, stack: LayerStack, options: MountOptions, own: tuple[int, int]) -> None:
        self._options = options
        #: Of the daemon, who mounts.
        self._own = own
        #: How ids are shown, ``None`` where they are what they are. An engine that has idmapped
        #: the lowers gives its mapping, too, and means one: what overlayfs would make of it.
        self.mapping = None if stack.idmapped else Mapping.of(options)
        squashed = options.squash_to_uid, options.squash_to_gid
        #: Whether users see what layers have.
        self.as_stored = self.mapping is None and squashed == (None, None)

    def shown(self, uid: int, gid: int) -> tuple[int, int]:
        """Return what users see of an owner: squashed, or else mapped."""
        mapping = self.mapping
        if mapping is not None:
            uid, gid = mapping.users.shown(uid), mapping.groups.shown(gid)
        squash_to_uid, squash_to_gid = self._options.squash_to_uid, self._options.squash_to_gid
        return (
            uid if squash_to_uid is None else squash_to_uid,
            gid if squash_to_gid is None else squash_to_gid,
        )

    def stored_uid(self, uid: int) -> int:
        """Return what a user that users see is on disk; EOVERFLOW for nothing.

        Squashed ones are not stored, so that they need not be there.
        """
        if self.mapping is None or self._options.squash_to_uid is not None:
            return uid
        return self.mapping.users.stored(uid)

    def stored_gid(self, gid: int) -> int:
        """Return the same for a group."""
        if self.mapping is None or self._options.squash_to_gid is not None:
            return gid
        return self.mapping.groups.stored(gid)

    def maker(self, caller: Caller) -> Caller:
        """Return *caller* by the ids that what it makes has on disk; EOVERFLOW without such.

        The user who mounts need be no user of the mapping: engines put files into the root of
        a container before they give them away.
        """
        if self.as_stored:
            return caller
        try:
            uid, gid = self.stored_uid(caller.uid), self.stored_gid(caller.gid)
        except OSError:
            if (caller.uid, caller.gid) != self._own:
                raise
            return caller
        return caller._replace(uid=uid, gid=gid)


def _overflow_id(name: str) -> int:
    try:
        with open(f"/proc/sys/kernel/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _OVERFLOW
