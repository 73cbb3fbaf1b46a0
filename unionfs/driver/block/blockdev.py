"""Block devices, whoever makes them: opened, and whether they are mounted."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from typing import Final

from unionfs.errors import FailedPreconditionError
from unionfs.fuse import mounting

#: Seconds to wait for mount namespaces of others, which are copies of what was mounted then.
_PATIENCE: Final = 2.0


def require_unmounted(path: str) -> None:
    """Raise `FailedPreconditionError` if a file system on the device *path* is mounted.

    In whichever mount namespace: who mounts a device has it exclusively.
    """
    with opened(path, exclusive=True):
        pass


@contextlib.contextmanager
def opened(path: str, *, exclusive: bool) -> Iterator[int]:
    """Give a descriptor of the device *path*; if *exclusive*, nobody can mount it meanwhile.

    Then raises `FailedPreconditionError` if it is mounted.
    """
    device = _open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_EXCL if exclusive else 0))
    try:
        yield device
    finally:
        os.close(device)


def _open(path: str, flags: int) -> int:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return os.open(path, flags)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # A mount namespace that was made meanwhile, ours for a moment among them, has it too.
            if _mounted_here(path) or time.monotonic() > deadline:
                raise FailedPreconditionError(f"{path}: is mounted; unmount it first") from error
        time.sleep(0.02)


def _mounted_here(path: str) -> bool:
    number = os.stat(path).st_rdev
    device = f"{os.major(number)}:{os.minor(number)}"
    return any(entry.device == device for entry in mounting.mounts())
