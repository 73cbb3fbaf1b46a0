"""A directory given as an option: opened as its caller meant it, identified, locked, isolated.

Isolated is what lies in a private copy of its mount: nothing that is mounted in it later, by
anybody, shows there, and it keeps nobody from unmounting the original.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from typing import Final

from unionfs.errors import LayerError
from unionfs.layer import handles, syscalls

#: Seconds to wait for a lock: umount(2) returns a moment before the daemon has ended.
_LOCK_PATIENCE: Final = 1.0
_OPEN_LAYER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
READ_LAYER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Opened:
    """A directory given as an option, open by path as its caller meant it."""

    def __init__(self, option: str, path: bytes, fd: int, uuid: bytes | None) -> None:
        self.option = option
        self.path = path
        self.fd = fd
        self.stat = os.fstat(fd)
        self.uuid = uuid

    @property
    def mount_id(self) -> bytes:
        """The number of the mount it lies on, as mountinfo has it."""
        with open(f"/proc/self/fdinfo/{self.fd}", "rb") as file:
            return next(line.split()[1] for line in file if line.startswith(b"mnt_id:"))

    @classmethod
    def open(cls, option: str, path: bytes, files: contextlib.ExitStack) -> Opened:
        """Open *path*, resolved by the kernel from the current directory, until *files* close."""
        try:
            fd = os.open(path, _OPEN_LAYER)
            files.callback(os.close, fd)
            readable = os.open(b".", READ_LAYER, dir_fd=fd)
        except OSError as error:
            raise LayerError(option, path, os.strerror(error.errno or errno.EIO)) from error
        try:
            return cls(option, path, fd, syscalls.file_system_uuid(readable))
        finally:
            os.close(readable)

    def has_handles(self) -> bool:
        """Say whether objects can be found again by their file handles, by us."""
        handle = handles.encode(self.fd, b"", self.uuid)
        readable = os.open(b".", READ_LAYER, dir_fd=self.fd)
        try:
            return handle is not None and handles.decode(readable, handle) is not None
        finally:
            os.close(readable)

    def lock(self, fd: int, files: contextlib.ExitStack) -> None:
        """Take the directory for this mount alone, as a writer, until *files* close.

        *fd* is the directory in the private mount: one on the original mount would keep
        its owner from unmounting that.
        """
        lock = os.open(b".", READ_LAYER, dir_fd=fd)
        files.callback(os.close, lock)
        deadline = time.monotonic() + _LOCK_PATIENCE
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                reason = "in use by another mount; unmount that one, or give another directory"
                raise LayerError(self.option, self.path, reason)
            time.sleep(0.02)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def forget_ambiguous_uuids(opened: list[Opened]) -> None:
    """Do without the UUIDs that two file systems share: a handle would not tell them apart.

    File systems without an identity share the null one, copies of an image their own.
    """
    devices: dict[bytes | None, set[int]] = {}
    for one in opened:
        devices.setdefault(one.uuid, set()).add(one.stat.st_dev)
    for one in opened:
        if len(devices[one.uuid]) > 1:
            one.uuid = None


def isolate(fd: int, files: contextlib.ExitStack) -> int | None:
    """Return a private, read-only copy of the mount at *fd*; ``None`` without privilege."""
    try:
        clone = syscalls.open_tree_clone(fd, b"")
    except OSError:
        return None
    files.callback(os.close, clone)
    try:
        syscalls.mount_setattr(clone, syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOATIME)
    except OSError:
        # In a user namespace the access time mode may be locked.
        with contextlib.suppress(OSError):
            syscalls.mount_setattr(clone, syscalls.MOUNT_ATTR_RDONLY)
    return clone


def isolate_pair(
    upper: Opened, work: Opened, files: contextlib.ExitStack
) -> tuple[int, int] | None:
    """Return upper and work in one private mount: a rename must not cross mounts."""
    upper_path, work_path = (os.readlink(b"/proc/self/fd/%d" % one.fd) for one in (upper, work))
    common = os.path.commonpath((upper_path, work_path))
    try:
        clone = syscalls.open_tree_clone(syscalls.AT_FDCWD, os.fsencode(common))
        files.callback(os.close, clone)
        found = []
        for one, path in ((upper, upper_path), (work, work_path)):
            fd = os.open(os.path.relpath(path, common), _OPEN_LAYER, dir_fd=clone)
            files.callback(os.close, fd)
            if not os.path.samestat(os.fstat(fd), one.stat):
                return None
            found.append(fd)
    except OSError:
        return None
    return found[0], found[1]
