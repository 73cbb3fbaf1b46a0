"""A storage driver in another package: every snapshot is a whole copy of its parent.

Slow, large and simple: what a driver must say about its data, and nothing else. The verbs, the
metadata, what a crash leaves and who may run at once are the business of `SnapshotDriver`.
Its package offers it by an entry point::

    [project.entry-points."unionfs.drivers"]
    copy = "copydriver:CopyDriver"

and then ``unionfs snapshot --driver copy …`` and everything else that takes a driver use it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import ClassVar

from unionfs.driver.api import Capabilities, Kind, Mount, Usage
from unionfs.driver.lifecycle import SnapshotDriver
from unionfs.driver.metadata import Snapshot


class CopyDriver(SnapshotDriver):
    """Copies by cp(1)."""

    name: ClassVar[str] = "copy"
    # It knows nothing of changes, sizes and live snapshots; only root can keep owners.
    capabilities: ClassVar[Capabilities] = Capabilities(needs_root=True)

    def begin(self, directory: str, kind: Kind, parent: Snapshot | None, size: int | None) -> None:
        """Fill a new directory: with a copy, or for a view with nothing, as views cannot change."""
        if kind is Kind.VIEW:
            return
        tree = os.path.join(directory, "tree")
        if parent is None:
            os.mkdir(tree)
            os.chmod(tree, 0o755)
        else:
            command = ["cp", "--archive", "--reflink=auto", "--", self._tree(parent), tree]
            subprocess.run(command, check=True)

    def tell_mounts(self, chain: Sequence[Snapshot]) -> Sequence[Mount]:
        """Tell what shows ``chain[0]``: its own directory, or its parent's, read-only."""
        if chain[0].kind is Kind.VIEW:
            return [Mount("bind", self._tree(chain[1]), ("bind", "ro"))]
        return [Mount("bind", self._tree(chain[0]), ("bind", "rw"))]

    def measure(self, snapshot: Snapshot) -> Usage:
        """Tell what it takes of the disk: all but the directory that the driver adds."""
        size, inodes = super().measure(snapshot)
        return Usage(size, inodes - 1)

    def _tree(self, snapshot: Snapshot) -> str:
        return os.path.join(self.directory(snapshot), "tree")
