"""Operations that change a union, each one system call of a user's, and layers to try them on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import build, system

Operation = Callable[[Path], Any]

#: Times differ between two runs, directories' link counts between merged and not.
IGNORED = ("mtime", "directory.nlink")


def make(upper: Path, lower: Path, lowest: Path) -> None:
    """Fill three layers with one object for each operation."""
    build.write(lower / "deep" / "down" / "file", "lower content")
    os.setxattr(lower / "deep" / "down" / "file", "user.colour", b"blue")
    os.chown(lower / "deep" / "down" / "file", 1000, 1000)
    build.write(lower / "large", b"x" * 300_000)
    build.write(lower / "links" / "a", "linked")
    os.link(lower / "links" / "a", lower / "links" / "b")
    (lower / "symlink").symlink_to("target")
    build.write(lower / "tree" / "one", "one")
    build.write(lowest / "tree" / "two", "two")
    build.write(upper / "tree" / "three", "three")
    build.write(lower / "pure" / "one", "one")
    build.write(lower / "emptied" / "gone", "gone")
    build.whiteout(upper / "emptied" / "gone")
    build.write(lower / "deleted" / "old", "old")
    build.whiteout(upper / "deleted")
    build.write(upper / "both", "upper")
    build.write(lower / "both", "lower")
    build.write(upper / "mine", "mine")
    build.write(upper / "my" / "own", "own")


def write(path: Path, flags: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | flags)
    try:
        os.write(fd, b"written")
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def _swap(root: Path, one: str, other: str) -> None:
    system.renameat2(root / one, root / other, system.RENAME_EXCHANGE)


OPERATIONS: dict[str, Operation] = {
    "chmod": lambda root: (root / "deep/down/file").chmod(0o4711),
    "chown": lambda root: os.chown(root / "deep/down/file", 7, 7),
    "setxattr": lambda root: os.setxattr(root / "deep/down/file", "user.colour", b"red"),
    "append": lambda root: write(root / "deep/down/file", os.O_APPEND),
    "append to a large file": lambda root: write(root / "large", os.O_APPEND),
    "truncate": lambda root: os.truncate(root / "large", 100),
    "change one of two names": lambda root: os.truncate(root / "links/a", 3),
    "chown a link": lambda root: os.chown(root / "symlink", 7, 7, follow_symlinks=False),
    "unlink lower": lambda root: (root / "deep/down/file").unlink(),
    "unlink one of two names": lambda root: (root / "links/b").unlink(),
    "unlink upper over lower": lambda root: (root / "both").unlink(),
    "unlink upper": lambda root: (root / "mine").unlink(),
    "rmdir merged": lambda root: (root / "emptied").rmdir(),
    "mkdir over whiteout": lambda root: (root / "deleted").mkdir(0o750),
    "symlink over whiteout": lambda root: (root / "deleted").symlink_to("elsewhere"),
    "create": lambda root: os.close(os.open(root / "pure/new", os.O_CREAT | os.O_WRONLY, 0o640)),
    "mkdir": lambda root: (root / "pure/new").mkdir(),
    "link": lambda root: os.link(root / "deep/down/file", root / "pure/hard"),
    "rename lower": lambda root: (root / "deep/down/file").rename(root / "pure/moved"),
    "rename over lower": lambda root: (root / "mine").rename(root / "deep/down/file"),
    "rename over whiteout": lambda root: (root / "mine").rename(root / "deleted"),
    "rename one of two names": lambda root: (root / "links/a").rename(root / "pure/a"),
    "rename lower directory": lambda root: (root / "pure").rename(root / "renamed"),
    "rename merged directory away": lambda root: (root / "tree").rename(root / "deep/tree"),
    "rename directory over whiteout": lambda root: (root / "my").rename(root / "deleted"),
    "rename directory over merged": lambda root: (root / "tree").rename(root / "emptied"),
    "exchange": lambda root: _swap(root, "tree", "deep/down/file"),
    "exchange directories": lambda root: _swap(root, "tree", "pure"),
}
