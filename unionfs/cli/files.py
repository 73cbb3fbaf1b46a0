"""Files that commands write: complete, or as they were."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from unionfs.errors import UsageError


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Give a file that takes the place of *path* when all was written; else *path* stays.

    Raises `UsageError` for what is there and no file, ``OSError``.
    """
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{path}: not a regular file; - is standard output")
    directory, base = os.path.split(path)
    fd, temporary = tempfile.mkstemp(prefix=f".{base}.", dir=directory)
    try:
        with os.fdopen(fd, "w+b") as file:
            yield file
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(fd, 0o666 & ~umask)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
