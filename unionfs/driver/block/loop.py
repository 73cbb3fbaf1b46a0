"""Loop devices: a file as a block device (loop(4)).

Each has a tag of our own, so that one is never taken for another that got its number later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final

from unionfs.driver.block import blockdev
from unionfs.errors import UnsupportedError

_CONTROL: Final = "/dev/loop-control"
_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_CLEAR: Final = 0x4C01
_GET_STATUS: Final = 0x4C05

#: ``struct loop_info64`` (linux/loop.h): five numbers of 64 bits, four of 32, name and rest.
_INFO: Final = struct.Struct("=5Q4I64s64s32s2Q")
#: ``struct loop_config``: file, block size, `_INFO`, room.
_CONFIG: Final = struct.Struct(f"=II{_INFO.size}s64x")
_TAG_LIMIT: Final = 63


#: The tag of a device whose file is there no more: its own cannot be told.
GONE: Final = ""


def attach(file: int, tag: str, announce: Callable[[str], None]) -> str:
    """Make a loop device of the open *file*, read-only as that is; return its path.

    *announce* is told the path before there is anything there to lose; the last one counts.
    Raises `UnsupportedError` where there are no loop devices, ``OSError``.
    """
    assert len(tag) <= _TAG_LIMIT
    info = _INFO.pack(*[0] * 9, tag.encode(), b"", b"", 0, 0)
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UnsupportedError(
            f"{_CONTROL}: {error.strerror}: this kernel, or this container, has no loop devices"
        ) from error
    try:
        while True:
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            announce(path)
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(file, 0, info))
            except OSError as error:
                if error.errno == errno.EBUSY:
                    continue  # somebody else was faster
                raise
            finally:
                os.close(device)
            return path
    finally:
        os.close(control)


def tag_of(path: str) -> str | None:
    """Return the tag of the loop device *path*, ``None`` where it has no file, or `GONE`.

    Raises ``OSError`` where that cannot be told: what lives must not be taken for dead.
    """
    try:
        device = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            return None
        raise
    try:
        buffer = bytearray(_INFO.size)
        fcntl.ioctl(device, _GET_STATUS, buffer)
    except OSError as error:
        # The kernel asks the file, and who served that may be dead.
        return None if error.errno == errno.ENXIO else GONE
    finally:
        os.close(device)
    name: bytes = _INFO.unpack(buffer)[9]
    return name.rstrip(b"\0").decode(errors="replace")


@contextlib.contextmanager
def detaching(path: str, *, force: bool) -> Iterator[None]:
    """Take the file away from the loop device *path* after the block.

    All that was written is in the file before it, and unless *force* nobody has it mounted
    meanwhile; with *force* it goes when it is unmounted. Raises `FailedPreconditionError` for
    one in use.
    """
    with blockdev.opened(path, exclusive=not force) as device:
        if not force:
            os.fsync(device)
        yield
        try:
            fcntl.ioctl(device, _CLEAR)
        except OSError as error:
            if error.errno != errno.ENXIO:  # it has no file
                raise
