"""Block devices, whoever makes them: opened, and whether they are mounted."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from unionfs.errors import FailedPreconditionError


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
    flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_EXCL if exclusive else 0)
    try:
        device = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise FailedPreconditionError(f"{path}: is mounted; unmount it first") from error
        raise
    try:
        yield device
    finally:
        os.close(device)
