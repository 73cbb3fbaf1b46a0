"""The same layers twice, the same operations on both: ours against the kernel's overlayfs.

What cannot be compared, by name: `.wh.*` (ours refuses to make them, overlayfs does not know
them), and all that pyfuse3 does not carry; `docs/semantics.md` has the list.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests import tree
from tests.mounts import KernelMount, Layers, Mounted
from tests.system import Outcome, attempt

Builder = Callable[[Layers], None]
Subject = Callable[..., Mounted]
Operation = Callable[[Path], Any]

#: All layers are given this time, so that what was not touched compares to the nanosecond.
OLD = 1_000_000_000 * 10**9 + 123_456_789


def settle(*roots: Path | None) -> None:
    """Give every entry below *roots* the same old modification time."""
    for root in roots:
        if root is None:
            continue
        for where, directories, files in os.walk(os.fsencode(root), topdown=False):
            for name in (*files, *directories):
                os.utime(os.path.join(where, name), ns=(OLD, OLD), follow_symlinks=False)
        os.utime(root, ns=(OLD, OLD))


class Pair:
    """Two unions of equal layers; `same` runs an operation on both and compares what came."""

    def __init__(
        self,
        base: Path,
        subject: Subject,
        build: Builder,
        *,
        lowers: int = 2,
        options: str = "",
        seconds: float = 120.0,
    ) -> None:
        self._subject = subject
        self._options = options
        self._seconds = seconds
        self.theirs_layers = self._make(base / "kernel", build, lowers)
        self.ours_layers = self._make(base / "ours", build, lowers)
        self.since = time.time_ns() - 50_000_000  # the kernel's clock for files ticks coarsely
        self._failed: set[bytes] = set()
        self._mounted: list[Mounted] = []
        try:
            self.mount()
        except BaseException:
            self.unmount()
            raise

    @staticmethod
    def _make(base: Path, build: Builder, lowers: int) -> Layers:
        layers = Layers(base, lowers)
        build(layers)
        settle(*layers.lowers, layers.upper)
        return layers

    def _union(self, layers: Layers) -> Mounted:
        return self._subject(layers, self._options, seconds=self._seconds)

    def mount(self) -> None:
        """Mount both."""
        self.theirs: Mounted = KernelMount(self.theirs_layers)
        self._mounted.append(self.theirs)
        self.ours: Mounted = self._union(self.ours_layers)
        self._mounted.append(self.ours)

    def unmount(self) -> None:
        """Unmount both, with all checks."""
        while self._mounted:
            self._mounted.pop().unmount()

    def abandon(self) -> None:
        """Unmount both by force and without checks: something has failed already."""
        while self._mounted:
            self._mounted.pop().abandon()

    def remount(self) -> None:
        """Unmount both and mount both again."""
        self.unmount()
        self.mount()

    def cross(self) -> None:
        """Unmount both, and mount each of the two upper directories by the other."""
        self.unmount()
        self.ours = KernelMount(self.ours_layers)
        self._mounted.append(self.ours)
        self.theirs = self._union(self.theirs_layers)
        self._mounted.append(self.theirs)

    def same(self, operation: Operation, where: str = ".") -> Outcome:
        """Run *operation* in directory *where* of both and demand the same outcome."""
        expected = attempt(operation, self.theirs.root / where)
        found = attempt(operation, self.ours.root / where)
        assert found == expected, f"the kernel: {expected}; ours: {found}"
        if expected.error is not None:
            self._failed.add(b"" if where == "." else os.fsencode(where))
        return expected

    def same_tree(self, where: str = ".", *, ignore: Collection[str] = ()) -> None:
        """Demand the same tree below *where* in both."""
        theirs, ours = (self._snapshot(one.root, where) for one in (self.theirs, self.ours))
        tree.assert_same(theirs, ours, ignore=ignore)

    def _snapshot(self, root: Path, where: str) -> tree.Tree:
        """The tree, without the marks that failed operations leave in the kernel's.

        It copies up before it looks whether a rename can be done; ours leaves all as it was.
        """
        found = tree.snapshot(root / where, since=self.since)
        for name, entry in found.items():
            place = os.path.normpath(os.path.join(os.fsencode(where), name))
            if entry.kind == "directory" and place.startswith(tuple(self._failed)):
                found[name] = replace(entry, mtime=0, nlink=0)
        return found

    def same_everywhere(self, *, ignore: Collection[str] = ()) -> None:
        """The same tree now, after a remount, and with the uppers exchanged."""
        self.same_tree(ignore=ignore)
        self.remount()
        self.same_tree(ignore=ignore)
        self.cross()
        self.same_tree(ignore=ignore)
