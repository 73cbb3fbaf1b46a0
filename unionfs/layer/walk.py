"""Whole trees, of any depth: walked, measured, removed. No path is followed, nothing recurses."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from unionfs.layer import syscalls, xattrs

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry(NamedTuple):
    """Something in a tree; *dirfd* is good until the next one is asked for."""

    dirfd: int
    name: bytes
    status: os.stat_result
    depth: int
    """0 for what lies in the root of the tree."""


def walk(root: bytes) -> Iterator[Entry]:
    """Yield all that is in the directory *root*, each directory before what is in it.

    Names of one directory come sorted. Holds one descriptor, however deep the tree is. Raises
    ``OSError``; nobody else may move directories meanwhile.
    """
    fd = os.open(root, _OPEN)
    levels = [_names(fd)]
    try:
        while levels:
            if not levels[-1]:
                levels.pop()
                if levels:
                    fd = _exchange(fd, b"..")
                continue
            name = levels[-1].pop()
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            yield Entry(fd, name, status, len(levels) - 1)
            if stat.S_ISDIR(status.st_mode):
                fd = _exchange(fd, name)
                levels.append(_names(fd))
    finally:
        os.close(fd)


def _names(fd: int) -> list[bytes]:
    """Return the names in *fd*, the first one last."""
    return sorted((os.fsencode(name) for name in os.listdir(fd)), reverse=True)


def _exchange(fd: int, name: bytes) -> int:
    """Return a descriptor of the directory *name* in *fd*, which is closed."""
    inner = os.open(name, _OPEN, dir_fd=fd)
    os.close(fd)
    return inner


def disk_usage(root: bytes) -> tuple[int, int]:
    """Return the bytes and inodes that *root* and all in it take, as du(1) counts them."""
    status = os.lstat(root)
    size, inodes = status.st_blocks * 512, 1
    linked: set[tuple[int, int]] = set()
    for entry in walk(root):
        status = entry.status
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            place = (status.st_dev, status.st_ino)
            if place in linked:
                continue
            linked.add(place)
        size += status.st_blocks * 512
        inodes += 1
    return size, inodes


def remove_tree(dirfd: int, name: bytes) -> None:
    """Remove *name* in *dirfd* with all that is in it; what is missing is no error."""
    try:
        os.unlink(name, dir_fd=dirfd)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        _remove_directory(dirfd, name)


def _remove_directory(dirfd: int, name: bytes) -> None:
    """Remove a directory: what it has inside is moved to its top, level by level."""
    top = _open_writable(dirfd, name)
    try:
        numbers = itertools.count()
        pending: list[bytes | None] = [None]  # the top itself
        while pending:
            inner = pending.pop()
            if inner is None:
                _empty(top, top, numbers, pending)
                continue
            fd = _open_writable(top, inner)
            try:
                _empty(fd, top, numbers, pending)
            finally:
                os.close(fd)
            os.rmdir(inner, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=dirfd)


def _empty(fd: int, top: int, numbers: Iterator[int], pending: list[bytes | None]) -> None:
    """Remove what is in *fd*, but for directories, which become *pending* names in *top*."""
    for entry in os.listdir(fd):
        name = os.fsencode(entry)
        try:
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            continue
        except IsADirectoryError:
            pending.append(name if fd == top else _lift(fd, name, top, numbers))


def _lift(fd: int, name: bytes, top: int, numbers: Iterator[int]) -> bytes:
    """Move the directory *name* in *fd* to *top*; return its name there."""
    # To change its "..", an unprivileged owner must be allowed to write to it.
    os.close(_open_writable(fd, name))
    for number in numbers:
        lifted = b".removed-%d" % number
        try:
            syscalls.renameat2(fd, name, top, lifted, syscalls.RENAME_NOREPLACE)
        except FileExistsError:
            continue
        return lifted
    raise AssertionError


def _open_writable(dirfd: int, name: bytes) -> int:
    """Open a directory that is to be emptied; its owner may have taken all permissions away."""
    try:
        fd = os.open(name, _OPEN, dir_fd=dirfd)
    except PermissionError:
        os.chmod(xattrs.entry_path(dirfd, name), 0o700)
        fd = os.open(name, _OPEN, dir_fd=dirfd)
    try:
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o700 != 0o700:
            os.fchmod(fd, 0o700)
    except BaseException:
        os.close(fd)
        raise
    return fd
