"""Whiteouts and opaque directories: recognised in every form, made in the kernel's.

Forms of a whiteout: a character device 0:0; an empty regular file with the mark
``overlay.whiteout`` in a directory whose ``overlay.opaque`` is ``x``
(Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"); a name
``.wh.NAME`` beside the hidden one, as AUFS and OCI layers have it. A directory is opaque
by its mark ``y``, by ``.wh..wh..opq`` in it or by ``.wh.NAME`` beside it.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from unionfs.layer import xattrs
from unionfs.layer.tree import Directory
from unionfs.layer.whiteouts import (
    OPAQUE_NAME,
    PREFIX,
    hidden_by,
    is_reserved,
    make_device,
    make_marked,
    set_opaque,
)
from unionfs.layer.workdir import WorkDirectory

__all__ = [
    "PREFIX",
    "has_whiteout_name",
    "hidden_by",
    "is_opaque_by_name",
    "is_opaque_root",
    "is_reserved",
    "is_whiteout",
    "make_whiteout",
    "prepare_whiteout",
    "replace_whiteout_name",
    "set_opaque",
]

_NAME_MAX: Final = 255


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
        os.stat(name + b"/" + OPAQUE_NAME, dir_fd=directory.fd(), follow_symlinks=False)
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
    return root.lstat(OPAQUE_NAME) is not None


def make_whiteout(directory: Directory, name: bytes) -> None:
    """Make a whiteout at *name*, where the upper directory has nothing."""
    directory.added(name)
    if not make_device(directory.fd(), name):
        _make_marked(directory, directory.fd(), name)


def prepare_whiteout(work: WorkDirectory, directory: Directory) -> bytes:
    """Make a whiteout among the temporaries, to be moved into *directory*."""
    name = work.new_name()
    if not make_device(work.fd, name):
        _make_marked(directory, work.fd, name)
    return name


def _make_marked(directory: Directory, dirfd: int, name: bytes) -> None:
    directory.mark_xwhiteouts()
    make_marked(directory.fd(), directory.layer.marks, dirfd, name)


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
