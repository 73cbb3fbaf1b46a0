"""Passthrough: which files the kernel reads and writes itself, and what we owe them then.

The kernel demands that all opens of an inode go to the same backing file, or none; so the
first one decides for as long as anyone has the file open (``OpenFile.backing``). It opens
the backing file's path again with the *user's* flags, which is why a lower file is never a
backing where the union can be written: a reader's backing would be the next writer's. With
``passthrough=on`` it is, and whoever wants to write meanwhile gets ETXTBSY.

What the kernel does not do for a file that it writes itself: it takes setuid and setgid
away from no inode (with FUSE_HANDLE_KILLPRIV_V2 that is our business), and does not notice
the new times after a write through a mapping.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import Final

from unionfs.union import copymeta
from unionfs.union.nodes import FileNode, OpenFile
from unionfs.union.tree import MergedTree, fail
from unionfs.waiting import blocking

_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
#: Seconds after a look whether a file is being read.
_PAUSES: Final = (0.001, 0.005, 0.02)


def begin(
    tree: MergedTree, node: FileNode, opened: OpenFile, status: os.stat_result | None = None
) -> None:
    """Let the kernel have the file that was just opened, where that is safe and possible.

    *status* are its attributes, if just read.
    """
    if tree.kernel is None or not _may_be_backing(tree, node):
        return
    if not node.upper and node.copying is not None:
        return  # soon it is not what there is to be read
    if status is None:
        status = os.fstat(opened.fd)
    if node.upper and opened.may_strip and status.st_mode & _SET_IDS:
        return  # every write is ours to see
    try:
        opened.backing = tree.kernel.open_backing(opened.fd)
    except OSError:
        return  # no privilege, or a layer that is itself stacked: through the page cache
    opened.backs_lower = not node.upper and tree.stack.work is not None
    opened.known_mtime = status.st_mtime_ns
    node.backed = True


def _may_be_backing(tree: MergedTree, node: FileNode) -> bool:
    if node.upper:
        # Where modes are kept elsewhere, every write is ours to see.
        return tree.stack.work is not None and tree.upper_layer.override is None
    return tree.stack.work is None or tree.options.passthrough == "on"


async def refuse_writing(node: FileNode) -> None:
    """Raise ETXTBSY while the kernel reads *node*'s lower file itself.

    Waits a moment for who has just closed it: close(2) returns before we hear of it.
    """
    for pause in _PAUSES:
        if node.opened is None or not node.opened.backs_lower:
            return
        await blocking(time.sleep, pause)
    if node.opened is not None and node.opened.backs_lower:
        fail(errno.ETXTBSY)


def set_ids_changed(node: FileNode, status: os.stat_result | None, *, with_times: bool) -> None:
    """Remember since when a file that the kernel may be writing is setuid or setgid.

    It has been settled before; so what was written meanwhile counts as written after the
    change, unless that moved the times, too (*with_times*). *status* are its attributes since,
    if they were read.
    """
    opened = node.opened
    if opened is None or not opened.backing or opened.backs_lower:
        return
    if status is None:
        status = os.fstat(opened.fd)
    since = status.st_mtime_ns if with_times else opened.known_mtime
    opened.set_ids_since = since if status.st_mode & _SET_IDS else None


def settle(tree: MergedTree, node: FileNode) -> None:
    """Do what the kernel has left undone after writing, before the file is used otherwise."""
    opened = node.opened
    if opened is None or not opened.backing or opened.backs_lower:
        return
    status = os.fstat(opened.fd)
    if opened.set_ids_since is not None and status.st_mtime_ns != opened.set_ids_since:
        opened.set_ids_since = None
        with tree.object(node) as path:
            if copymeta.strip_set_ids(tree, path, status.st_mode):
                tree.stripped.add(node.ino)
    if status.st_mtime_ns != opened.known_mtime:
        opened.known_mtime = status.st_mtime_ns
        if tree.kernel is not None:
            tree.kernel.attributes_changed(node.ino)


def end(tree: MergedTree, opened: OpenFile) -> None:
    """Take the file back after its last use."""
    if opened.backing and tree.kernel is not None:
        tree.kernel.close_backing(opened.backing)
        opened.backing = 0
