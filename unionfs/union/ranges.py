"""Ranges of open files: reserving and punching, finding data, copying within the union.

What may take long runs in a thread, on a descriptor of its own: the file may be closed,
or opened for writing too, while the disk works.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from unionfs.layer import syscalls
from unionfs.union.files import FileHandle, OpenFiles
from unionfs.union.nodes import FileNode
from unionfs.union.protect import APPEND, IMMUTABLE, protection
from unionfs.union.tree import MergedTree, fail
from unionfs.waiting import blocking

#: Copies of up to this size (bytes) are made at once: a hop to a thread costs more.
_SMALL: Final = 128 * 1024


async def fallocate(
    tree: MergedTree, files: OpenFiles, number: int, offset: int, length: int, mode: int
) -> None:
    """Reserve, punch, zero, collapse or insert a range.

    Waits for a copy-up and for the disk. Raises EPERM for protected files, and what the upper
    file system says: EOPNOTSUPP for what it cannot do, EINVAL, EFBIG, ENOSPC. Setuid, setgid
    and capabilities go, as with a write; who asks is not known, so root's calls take them, too.
    """
    handle = files.get(number)
    bits = protection(tree, handle.node)
    if bits & IMMUTABLE or (bits & APPEND and mode & ~syscalls.FALLOC_KEEP_SIZE):
        fail(errno.EPERM)
    fd = await _target(files, handle)
    try:
        await blocking(syscalls.fallocate, fd, mode, offset, length)
        await files.sync_if_asked(handle, fd)
    finally:
        os.close(fd)


async def copy_range(
    tree: MergedTree,
    files: OpenFiles,
    source: tuple[int, int],
    target: tuple[int, int],
    length: int,
) -> int:
    """Copy between two (handle, offset) as copy_file_range(2); return how much it was.

    Waits for a copy-up and for the disk. Raises EPERM for protected files, and what the
    system call says: EXDEV and EOPNOTSUPP where the layers cannot copy for each other, EINVAL
    for ranges of one file that overlap.
    """
    reader, writer = files.get(source[0]), files.get(target[0])
    if protection(tree, writer.node) & IMMUTABLE:
        fail(errno.EPERM)
    target_fd = await _target(files, writer)
    # Only now: the copy-up may have moved the source, which may be the same file.
    source_fd = os.dup(files.descriptor(reader.node))
    try:
        arguments = (source_fd, target_fd, length, source[1], target[1])
        if length <= _SMALL:
            copied = os.copy_file_range(*arguments)
        else:
            copied = await blocking(os.copy_file_range, *arguments)
        await files.sync_if_asked(writer, target_fd)
        return copied
    finally:
        os.close(source_fd)
        os.close(target_fd)


async def _target(files: OpenFiles, handle: FileHandle) -> int:
    """Return a descriptor of its own of a file that is about to be changed."""
    await files.prepare_write(handle.node, keeps_set_ids=False)
    return os.dup(files.descriptor(handle.node))


def seek(files: OpenFiles, number: int, offset: int, whence: int) -> int:
    """Return where data or a hole begins; ENXIO beyond the end, EINVAL for other *whence*."""
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        fail(errno.EINVAL)
    node: FileNode = files.get(number).node
    # The descriptor's own position is nobody's: all reads and writes name theirs.
    return os.lseek(files.descriptor(node), offset, whence)
