"""Subvolumes of btrfs: made, snapshot, protected, removed (linux/btrfs.h)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

from unionfs.layer import walk

#: ``struct btrfs_ioctl_vol_args``: descriptor, name; and its second version, with flags.
_ARGS: Final = struct.Struct("=q4088s")
_ARGS_V2: Final = struct.Struct("=qQQ32x4040s")
_SNAP_DESTROY: Final = 0x5000940F
_SNAP_CREATE_V2: Final = 0x50009417
_SUBVOL_CREATE_V2: Final = 0x50009418
_SUBVOL_GETFLAGS: Final = 0x80089419
_SUBVOL_SETFLAGS: Final = 0x4008941A
_READ_ONLY: Final = 2
#: The inode of the root of every subvolume.
_ROOT: Final = 256


def on_btrfs(directory: str) -> bool:
    """Say whether *directory* lies on btrfs."""
    with _opened(directory) as fd:
        try:
            fcntl.ioctl(fd, _SUBVOL_GETFLAGS, bytearray(8))
        except OSError as error:
            return error.errno == errno.EINVAL  # there, but no subvolume itself
    return True


def create(directory: str, name: str) -> None:
    """Make the empty subvolume *name* in *directory*."""
    with _opened(directory) as fd:
        fcntl.ioctl(fd, _SUBVOL_CREATE_V2, bytearray(_ARGS_V2.pack(0, 0, 0, name.encode())))


def snapshot(source: str, directory: str, name: str, *, read_only: bool) -> None:
    """Make the subvolume *name* in *directory* with what *source* has at this moment.

    Of subvolumes inside *source* it has empty directories.
    """
    flags = _READ_ONLY if read_only else 0
    with _opened(source) as below, _opened(directory) as fd:
        fcntl.ioctl(fd, _SNAP_CREATE_V2, bytearray(_ARGS_V2.pack(below, 0, flags, name.encode())))


def protect(path: str) -> None:
    """Make the subvolume *path* read-only, whoever writes."""
    with _opened(path) as fd:
        fcntl.ioctl(fd, _SUBVOL_SETFLAGS, _READ_ONLY.to_bytes(8, "little"))


def remove(directory: str, name: str) -> None:
    """Remove the subvolume *name* of *directory* with all in it; a missing one is no error."""
    path = os.path.join(directory, name)
    try:
        _destroy(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        # There are subvolumes inside, and those go first.
        for inner in reversed(list(_subvolumes(path))):
            _destroy(inner)
        _destroy(path)


def _destroy(path: str) -> None:
    directory, name = os.path.split(path)
    with _opened(directory) as fd:
        fcntl.ioctl(fd, _SNAP_DESTROY, bytearray(_ARGS.pack(0, name.encode())))


def _subvolumes(path: str) -> Iterator[str]:
    """Yield the subvolumes inside *path*, outer ones first."""
    for entry in walk.walk(os.fsencode(path)):
        if entry.status.st_ino == _ROOT:
            parent = os.readlink(f"/proc/self/fd/{entry.dirfd}")
            yield os.path.join(parent, os.fsdecode(entry.name))


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
