"""What the engines' images are made of: a small root file system with busybox."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.container.runner import fill


def busybox_tar(directory: Path) -> Path:
    """Make ``busybox.tar`` in *directory*, a root file system for ``import``."""
    tree = directory / "tree"
    fill(tree)
    path = directory / "busybox.tar"
    subprocess.run(["tar", "-C", str(tree), "-cf", str(path), "."], check=True)
    return path
