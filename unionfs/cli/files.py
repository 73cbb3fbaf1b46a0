"""Files that commands write: complete, or as they were."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import BinaryIO, Final

from unionfs.errors import UsageError

_NEW: Final = os.O_RDWR | os.O_CLOEXEC


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Give a file that takes the place of *path* when all was written; else *path* stays.

    Raises `UsageError` for what is there and no file, ``OSError``.
    """
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{path}: not a regular file; - is standard output")
    directory, base = os.path.split(path)
    temporary = os.path.join(directory, f".{base}.{os.urandom(4).hex()}")
    fd, is_nameless = _begin(directory, temporary)
    try:
        with os.fdopen(fd, "w+b") as file:
            yield file
            file.flush()
            os.fsync(fd)
            if is_nameless:
                # A link takes nobody's place. Only with a directory Python follows the first name.
                os.link(f"/proc/self/fd/{fd}", temporary, src_dir_fd=fd, follow_symlinks=True)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _begin(directory: str, name: str) -> tuple[int, bool]:
    """Open a new file, and say whether it has no name: then it goes with us if we are killed.

    It is called *name* where the file system has none without.
    """
    try:
        return os.open(directory, _NEW | os.O_TMPFILE, 0o666), True
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    return os.open(name, _NEW | os.O_CREAT | os.O_EXCL, 0o666), False
