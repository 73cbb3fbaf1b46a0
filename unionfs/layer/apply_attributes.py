"""What a member says of its owner, mode, times and xattrs, put on the object that it became."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from unionfs.layer import xattrs
from unionfs.layer.archive import Kind, Member, refuse
from unionfs.layer.xattrs import Marks

_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
_SELINUX: Final = b"security.selinux"
_ACLS: Final = (xattrs.ACL_ACCESS, xattrs.ACL_DEFAULT)


class Dresser:
    """Dresses objects; what an ordinary user cannot give them is left out, and counted.

    To *privileged* users nothing is left out: what cannot be had is an error. For others all
    is theirs, as with tar(1): no other owner, then no set-id bits either, no attributes
    but ``user.*`` and ACLs. A label of SELinux belongs to a machine and is nobody's.
    """

    def __init__(self, marks: Marks, *, privileged: bool) -> None:
        self._marks = marks
        self.privileged = privileged
        #: Members that another owner was wanted for.
        self.squashed = 0
        #: Names of attributes that were left out.
        self.dropped: set[bytes] = set()

    def dress(self, path: bytes, member: Member, *, follow: bool = False) -> None:
        """Give what is at *path* all that *member* says.

        The owner comes first, since chown takes set-id bits and capabilities away, and the mode
        after xattrs, since a read-only file takes no ``user.*`` from its owner.
        """
        mode = member.mode
        if self.privileged:
            self._chown(path, member, follow=follow)
        elif (member.uid, member.gid) != (os.geteuid(), os.getegid()):
            self.squashed += 1
            mode &= ~_SET_IDS
        self._set_xattrs(path, member, follow=follow)
        if member.kind is not Kind.SYMLINK:
            os.chmod(path, mode)
        atime = member.mtime if member.atime is None else member.atime
        os.utime(path, ns=(atime, member.mtime), follow_symlinks=follow)

    def _chown(self, path: bytes, member: Member, *, follow: bool) -> None:
        try:
            os.chown(path, member.uid, member.gid, follow_symlinks=follow)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EPERM):
                owner = f"{member.uid}:{member.gid}"
                reason = f"its owner {owner} is not mapped in this user namespace"
                raise refuse(member.path, reason) from error
            raise

    def _set_xattrs(self, path: bytes, member: Member, *, follow: bool) -> None:
        """Set the attributes of *member*, and remove others: inherited, or of what was there."""
        for name in xattrs.names(path, follow=follow):
            if name not in member.xattrs and self._may_remove(name):
                xattrs.remove(path, name, follow=follow)
        for name, value in member.xattrs.items():
            if name == _SELINUX:
                continue
            if not self.privileged and not (name.startswith(b"user.") or name in _ACLS):
                self.dropped.add(name)
                continue
            try:
                xattrs.write(path, name, value, follow=follow)
            except OSError as error:
                shown = name.decode(errors="backslashreplace")
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise
                raise refuse(member.path, f"{shown}: {os.strerror(error.errno or 0)}") from error

    def _may_remove(self, name: bytes) -> bool:
        if name == _SELINUX or self._marks.shown(name) is None:
            return False
        return self.privileged or name.startswith(b"user.") or name in _ACLS
