"""Copy the data of one file into another: by reflink, else in the kernel, holes kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from unionfs.layer import syscalls

_CHUNK: Final = 1 << 30
_BUFFER: Final = 1 << 20
#: The two file systems cannot share extents, or not copy for each other.
_NOT_THERE: Final = frozenset(
    (
        errno.EOPNOTSUPP,
        errno.EXDEV,
        errno.EINVAL,
        errno.ENOTTY,
        errno.ENOSYS,
        errno.EPERM,
        errno.ETXTBSY,
        errno.EBADF,
    )
)
#: So says a file system of all of its files.
_NEVER: Final = frozenset((errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY))


def copy_data(source: int, target: int, size: int) -> None:
    """Copy the first *size* bytes of *source* into the empty file *target*.

    Raises what the disks say: ENOSPC, EDQUOT, EIO.
    """
    if size == 0:
        return
    if size == os.fstat(source).st_size and _cloned(source, target):
        return
    for start, end in _data(source, size):
        _copy_range(source, target, start, end)
    os.ftruncate(target, size)


def copy_whole(
    source: int, target: int, size: int, status: os.stat_result, apart: set[int]
) -> None:
    """Copy all of a file whose attributes are *status*, where it is small, in few calls.

    *apart* are the devices that were found not to share extents with that of *target*.
    """
    if size != status.st_size or status.st_blocks * 512 < size:
        copy_data(source, target, size)  # a part, or one with holes
    elif size and (status.st_dev in apart or not _cloned(source, target, status.st_dev, apart)):
        _copy_range(source, target, 0, size)


def _cloned(source: int, target: int, device: int = 0, apart: set[int] | None = None) -> bool:
    try:
        syscalls.clone_file(target, source)
    except OSError as error:
        if apart is not None and error.errno in _NEVER:
            apart.add(device)
        if error.errno in _NOT_THERE:
            return False
        raise
    return True


def _data(source: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each part of the first *size* bytes that is no hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno != errno.EINVAL:
                raise
            start, end = end, size
        else:
            end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        if start < size:
            yield start, end


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        try:
            copied = os.copy_file_range(source, target, min(end - start, _CHUNK), start, start)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            copied = 0
        if copied == 0:
            # Some file systems (proc, older FUSE) copy nothing and call it a success.
            _copy_by_hand(source, target, start, end)
            return
        start += copied


def _copy_by_hand(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        data = os.pread(source, min(end - start, _BUFFER), start)
        if not data:
            # Shorter than its size said: it was truncated below us.
            os.ftruncate(target, max(end, os.fstat(target).st_size))
            return
        view = memoryview(data)
        while view:
            written = os.pwrite(target, view, start)
            view = view[written:]
            start += written
