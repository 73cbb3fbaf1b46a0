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


def _cloned(source: int, target: int) -> bool:
    try:
        syscalls.clone_file(target, source)
    except OSError as error:
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
            return  # shorter than its size said: it was truncated below us
        view = memoryview(data)
        while view:
            written = os.pwrite(target, view, start)
            view = view[written:]
            start += written
