"""What is to be there after a power cut: files, and names in directories."""

from __future__ import annotations

import os


def sync(path: str) -> None:
    """Bring the file *path* to the disk; of a directory, the names in it (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
