"""What the engines' images are made of: a small root file system with busybox."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.archives import archive, directory, member
from tests.container.runner import fill
from tests.store.bundles import docker_files, write_tar


def busybox_tar(place: Path) -> Path:
    """Make ``busybox.tar`` in *place*, a root file system for ``import``."""
    tree = place / "tree"
    fill(tree)
    # Podman makes what is missing of these, which would be changes.
    for name in ("run", "var/tmp"):
        (tree / name).mkdir(parents=True)
    os.chown(tree / "home/user", 1000, 1001)
    path = place / "busybox.tar"
    subprocess.run(["tar", "-C", str(tree), "-cf", str(path), "."], check=True)
    return path


def deep_image(place: Path, layers: int) -> Path:
    """Make ``deep.tar`` in *place*, for ``load`` as ``deep``: *layers* over busybox's.

    ``busybox.tar`` is there. Each of them adds ``/made/NUMBER``, and those with odd numbers hide
    the one before.
    """
    base = (place / "busybox.tar").read_bytes()
    return saved(place / "deep.tar", "deep", [base, *(_thin(n) for n in range(1, layers))])


def _thin(number: int) -> bytes:
    hiding = [member(f"made/.wh.{number - 1}")] if number % 2 else []
    made = member(f"made/{number}", data=b"%d\n" % number)
    return archive(directory("made"), *hiding, made)


def saved(path: Path, name: str, layers: Sequence[bytes]) -> Path:
    """Make *path* an image as ``docker save`` writes it."""
    return write_tar(path, docker_files(f"{name}:latest", layers=layers))
