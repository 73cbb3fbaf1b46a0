"""Hard links of lower files, made complete in a layer that others will be put on.

A lower file with several names is copied up once, into the index of the work directory, and
gets its other names in the upper only when they are used (overlayfs.rst, "Index feature"). A
layer is used without its work directory: names that only the index knows of would show the
old file. So they are linked before the snapshot is committed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from unionfs.layer import walk, xattrs
from unionfs.layer.xattrs import Marks

#: All names are in the upper: what remains of its link count is the index entry's own.
_ALL_LINKED: Final = b"U-1"


def has_loose_names(work: str, marks: Marks) -> bool:
    """Say whether the index in the work directory *work* may stand for names of its own."""
    index = os.fsencode(os.path.join(work, "index"))
    try:
        names = os.listdir(index)
    except FileNotFoundError:
        return False
    for name in names:
        path = os.path.join(index, name)
        if not stat.S_ISREG(os.lstat(path).st_mode):
            continue  # a whiteout, of a file that is gone
        if marks.read(path, xattrs.NLINK) != _ALL_LINKED:
            return True
    return False


def link_loose_names(
    upper: str, attach: Callable[[str], None], detach: Callable[[str], None]
) -> None:
    """Give each file that has one name in *upper* its other names there, too.

    *attach* mounts the union whose upper layer it is on a directory; *detach* unmounts it.
    """
    import tempfile  # noqa: PLC0415 - takes long, and few layers come here

    with tempfile.TemporaryDirectory(prefix="unionfs-") as merged:
        attach(merged)
        try:
            root = os.fsencode(merged)
            copied = {
                status.st_ino for _, status in _linked(root, os.fsencode(upper), in_upper=True)
            }
            for path, status in list(_linked(root, os.fsencode(upper), in_upper=False)):
                if status.st_ino in copied:
                    # Any change does; this one leaves all as it is.
                    times = (status.st_atime_ns, status.st_mtime_ns)
                    os.utime(path, ns=times, follow_symlinks=False)
        finally:
            detach(merged)


def _linked(root: bytes, upper: bytes, *, in_upper: bool) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield the names of files with several, which the upper has or has not."""
    place: list[bytes] = []
    for entry in walk.walk(root):
        place[entry.depth :] = [entry.name]
        if entry.status.st_nlink > 1 and not stat.S_ISDIR(entry.status.st_mode):
            path = b"/".join(place)
            if os.path.lexists(os.path.join(upper, path)) == in_upper:
                yield os.path.join(root, path), entry.status
