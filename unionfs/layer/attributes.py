"""Make one object have another's owner, extended attributes, mode and times."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from unionfs.layer import xattrs
from unionfs.layer.xattrs import Marks

#: Those that protect something: where they cannot be, it cannot be.
_REQUIRED: Final = (b"security.", b"system.posix_acl_")


def copy_attributes(source: bytes, target: bytes, status: os.stat_result, marks: Marks) -> None:
    """Give *target* what *source* has, whose attributes are *status*, but for overlayfs's marks.

    Both are paths that are not followed, of one type. The owner comes first, since chown
    takes setuid and capabilities away; times come last. Attributes of ``user.*`` and
    ``trusted.*`` are left out where the target's file system has none.

    Raises EPERM for an owner that is not ours to give, EOPNOTSUPP for an ACL or a capability
    that cannot be there.
    """
    own = os.lstat(target)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        os.lchown(target, status.st_uid, status.st_gid)
    for name in xattrs.names(source):
        value = xattrs.read(source, name) if marks.shown(name) is not None else None
        if value is None:
            continue
        try:
            xattrs.write(target, name, value)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or name.startswith(_REQUIRED):
                raise
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
