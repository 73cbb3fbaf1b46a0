"""Whiteouts and opaque directories: recognised in every form, made in the kernel's.

Forms of a whiteout: a character device 0:0; an empty regular file with the mark
``overlay.whiteout`` in a directory whose ``overlay.opaque`` is ``x``
(Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"); a name
``.wh.NAME`` beside the hidden one, as AUFS and OCI layers have it. A directory is opaque
by its mark ``y``, by ``.wh..wh..opq`` in it or by ``.wh.NAME`` beside it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from unionfs.layer import xattrs
from unionfs.layer.tree import Directory
from unionfs.layer.workdir import WorkDirectory
from unionfs.layer.xattrs import Marks

#: Names that begin so are whiteouts and bookkeeping, never shown and never made by users.
PREFIX: Final = b".wh."
_OPAQUE_NAME: Final = b".wh..wh..opq"
_BOOKKEEPING: Final = b".wh..wh."
_NAME_MAX: Final = 255
_DEVICE: Final = stat.S_IFCHR


def is_reserved(name: bytes) -> bool:
    """Say whether *name* is a whiteout's or bookkeeping."""
    return name.startswith(PREFIX)


def hidden_by(name: bytes) -> bytes | None:
    """Return the name that the reserved *name* hides, ``None`` for bookkeeping."""
    return None if name.startswith(_BOOKKEEPING) else name[len(PREFIX) :]


def is_whiteout(directory: Directory, name: bytes, status: os.stat_result) -> bool:
    """Say whether *name*, whose attributes are *status*, is a whiteout itself."""
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFCHR:
        return status.st_rdev == 0
    if kind == stat.S_IFREG and status.st_size == 0 and directory.xwhiteouts:
        path = xattrs.entry_path(directory.fd(), name)
        return directory.layer.marks.read(path, xattrs.WHITEOUT) is not None
    return False


def has_whiteout_name(directory: Directory, name: bytes) -> bool:
    """Say whether ``.wh.NAME`` stands beside where *name* is or would be."""
    hiding = PREFIX + name
    return len(hiding) <= _NAME_MAX and directory.lstat(hiding) is not None


def is_opaque_by_name(directory: Directory, name: bytes) -> bool:
    """Say whether a name in, or beside, the directory *name* hides what is below it."""
    try:
        os.stat(name + b"/" + _OPAQUE_NAME, dir_fd=directory.fd(), follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return has_whiteout_name(directory, name)
    except PermissionError:
        if directory.layer.index != 0:
            raise
        # Our own directory, which nobody may search: nothing was put into it like that.
        return has_whiteout_name(directory, name)
    return True


def is_opaque_root(root: Directory) -> bool:
    """Say whether a layer hides all layers below it, as ``.wh..wh..opq`` in its root does."""
    return root.lstat(_OPAQUE_NAME) is not None


def set_opaque(marks: Marks, path: bytes) -> None:
    """Make the directory at *path* opaque."""
    marks.write(path, xattrs.OPAQUE, b"y")


def make_whiteout(directory: Directory, name: bytes) -> None:
    """Make a whiteout at *name*, where the upper directory has nothing."""
    directory.added(name)
    if not _make_device(directory.fd(), name):
        _make_marked(directory, directory.fd(), name)


def prepare_whiteout(work: WorkDirectory, directory: Directory) -> bytes:
    """Make a whiteout among the temporaries, to be moved into *directory*."""
    name = work.new_name()
    if not _make_device(work.fd, name):
        _make_marked(directory, work.fd, name)
    return name


def _make_device(dirfd: int, name: bytes) -> bool:
    """Make a character device 0:0, which anybody may since Linux 5.8, where possible."""
    try:
        os.mknod(name, _DEVICE, 0, dir_fd=dirfd)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    return True


def _make_marked(directory: Directory, dirfd: int, name: bytes) -> None:
    marks = directory.layer.marks
    here = xattrs.fd_path(directory.fd())
    if marks.opaque(here, follow=True) != b"y":
        # In an opaque directory nothing is left to hide, and the mark must stay.
        marks.write(here, xattrs.OPAQUE, b"x", follow=True)
    directory.mark_xwhiteouts()
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o600, dir_fd=dirfd))
    marks.write(xattrs.entry_path(dirfd, name), xattrs.WHITEOUT, b"y")


def replace_whiteout_name(directory: Directory, name: bytes) -> None:
    """Turn ``.wh.NAME`` into a mark of another form, so that *name* can be replaced.

    What is hidden stays hidden at every step: a whiteout at *name* is made first, or a
    directory that stands there is made opaque.
    """
    if not has_whiteout_name(directory, name):
        return
    status = directory.lstat(name)
    if status is None:
        make_whiteout(directory, name)
    elif stat.S_ISDIR(status.st_mode):
        set_opaque(directory.layer.marks, xattrs.entry_path(directory.fd(), name))
    os.unlink(PREFIX + name, dir_fd=directory.fd())
