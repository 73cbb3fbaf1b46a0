"""SIGKILL before every single change that an operation makes: the tree is the old or the new one.

Each operation is one system call of a user's. The daemon is killed before its first change to a
disk, before its second, and so on; after each kill the union is mounted again and must show the
tree from before the operation or the one from after it, to us and to the kernel's overlayfs, and
nothing may be left in the work directory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import build, system, tree
from tests.mounts import Layers

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.kernel_overlay,
    pytest.mark.slow,
    pytest.mark.any_session,
]

Mount = Callable[..., Any]
Operation = Callable[[Path], Any]

#: Times differ between two runs, directories' link counts between merged and not.
IGNORED = ("mtime", "directory.nlink")


def make(layers: Layers) -> None:
    """Fill the layers with one object for each operation."""
    upper, lower, lowest = layers.upper, layers.lowers[0], layers.lowers[1]
    assert upper is not None
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


def _write(path: Path, flags: int = 0) -> None:
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
    "append": lambda root: _write(root / "deep/down/file", os.O_APPEND),
    "append to a large file": lambda root: _write(root / "large", os.O_APPEND),
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


class _Crash:
    """Mounts a fresh stack with a daemon that dies at a given change."""

    def __init__(self, scratch: Path, union: Mount, kernel: Mount) -> None:
        self._scratch = scratch
        self._union = union
        self._kernel = kernel

    def after(self, operation: Operation | None, kill_at: int) -> tuple[tree.Tree, int]:
        """Return the tree as it is mounted again, and how many changes had been begun."""
        layers = Layers(self._scratch / f"{kill_at}-{operation is None}")
        make(layers)
        files = layers.base / "killer"
        mounted = self._union(
            layers=layers,
            program=("-m", "tests.crash.killer"),
            environment={"UNIONFS_KILL_AT": str(kill_at), "UNIONFS_KILL_FILES": str(files)},
        )
        mounted.root.stat()  # answered when the daemon has started, its own records written
        files.with_suffix(".armed").touch()
        if operation is not None:
            system.attempt(operation, mounted.root)
        mounted.kill()
        changes = int(files.with_suffix(".count").read_text() or 0)
        return self._mounted_again(layers), changes

    def _mounted_again(self, layers: Layers) -> tree.Tree:
        mounted = self._union(layers=layers)
        seen = tree.snapshot(mounted.root)
        mounted.unmount()
        theirs = self._kernel(layers=layers)
        tree.assert_same(seen, tree.snapshot(theirs.root), ignore=("directory.nlink",))
        theirs.unmount()
        return seen


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_any_change(scratch: Path, union: Mount, kernel: Mount, name: str) -> None:
    crash = _Crash(scratch, union, kernel)
    operation = OPERATIONS[name]
    old, _ = crash.after(None, 0)
    new, changes = crash.after(operation, 0)
    assert changes > 0
    assert tree.differences(old, new), "the operation changed nothing"
    for kill_at in range(1, changes + 1):
        found, begun = crash.after(operation, kill_at)
        assert begun == kill_at
        from_old = tree.differences(old, found, ignore=IGNORED)
        from_new = tree.differences(new, found, ignore=IGNORED)
        assert not (from_old and from_new), (
            f"killed before change {kill_at} of {changes}; not the old tree:\n"
            + "\n".join(from_old)
            + "\nand not the new one:\n"
            + "\n".join(from_new)
        )
