"""Names and objects that hide: those that lie on disk in a layer, and in archives of layers.

A name ``.wh.NAME`` hides NAME, ``.wh..wh..opq`` in a directory all that is below it, and
other names that begin with ``.wh..wh.`` are bookkeeping, as AUFS had them and OCI layers
have them (image-spec, layer.md, "Whiteouts"). overlayfs itself has a character device 0:0,
or, where none can be made, an empty file with the mark ``overlay.whiteout``.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from unionfs.layer import xattrs
from unionfs.layer.xattrs import Marks

#: Names that begin so are whiteouts and bookkeeping, never shown and never made by users.
PREFIX: Final = b".wh."
OPAQUE_NAME: Final = b".wh..wh..opq"
_BOOKKEEPING: Final = b".wh..wh."


def is_reserved(name: bytes) -> bool:
    """Say whether *name* is a whiteout's or bookkeeping."""
    return name.startswith(PREFIX)


def hidden_by(name: bytes) -> bytes | None:
    """Return the name that the reserved *name* hides, ``None`` for bookkeeping."""
    return None if name.startswith(_BOOKKEEPING) else name[len(PREFIX) :]


def set_opaque(marks: Marks, path: bytes) -> None:
    """Make the directory at *path* opaque."""
    marks.write(path, xattrs.OPAQUE, b"y")


def make_device(dirfd: int, name: bytes) -> bool:
    """Make a character device 0:0, which anybody may since Linux 5.8, where possible."""
    try:
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=dirfd)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    return True


def make_marked(directory: int, marks: Marks, dirfd: int, name: bytes) -> None:
    """Make a marked file at *name* in *dirfd*, which is, or is going to be, in *directory*."""
    here = xattrs.fd_path(directory)
    if marks.opaque(here, follow=True) != b"y":
        # In an opaque directory nothing is left to hide, and the mark must stay.
        marks.write(here, xattrs.OPAQUE, b"x", follow=True)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o600, dir_fd=dirfd))
    marks.write(xattrs.entry_path(dirfd, name), xattrs.WHITEOUT, b"y")
