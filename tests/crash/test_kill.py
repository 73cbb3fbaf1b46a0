"""SIGKILL before every single change that an operation makes: the tree is the old or the new one.

Each operation is one system call of a user's. The daemon is killed before its first change to a
disk, before its second, and so on; after each kill the union is mounted again and must show the
tree from before the operation or the one from after it, to us and to the kernel's overlayfs, and
nothing may be left in the work directory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import system, tree
from tests.crash.operations import IGNORED, OPERATIONS, Operation, make
from tests.mounts import Layers

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.kernel_overlay,
    pytest.mark.slow,
    pytest.mark.any_session,
]

Mount = Callable[..., Any]


class _Crash:
    """Mounts a fresh stack with a daemon that dies at a given change."""

    def __init__(self, scratch: Path, union: Mount, kernel: Mount) -> None:
        self._scratch = scratch
        self._union = union
        self._kernel = kernel

    def after(self, operation: Operation | None, kill_at: int) -> tuple[tree.Tree, int]:
        """Return the tree as it is mounted again, and how many changes had been begun."""
        layers = Layers(self._scratch / f"{kill_at}-{operation is None}")
        assert layers.upper is not None
        make(layers.upper, *layers.lowers)
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
