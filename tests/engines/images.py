"""What the engines' images are made of: a small root file system with busybox."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.container.runner import fill


def busybox_tar(directory: Path) -> Path:
    """Make ``busybox.tar`` in *directory*, a root file system for ``import``."""
    tree = directory / "tree"
    fill(tree)
    # Podman makes what is missing of these, which would be changes.
    for name in ("run", "var/tmp"):
        (tree / name).mkdir(parents=True)
    os.chown(tree / "home/user", 1000, 1001)
    path = directory / "busybox.tar"
    subprocess.run(["tar", "-C", str(tree), "-cf", str(path), "."], check=True)
    return path
