"""Whole trees, walked and removed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from unionfs.layer.walk import disk_usage, remove_tree, walk

#: Deeper than the interpreter recurses, and than a process may have files open.
DEPTH = 30_000


def _deep(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def test_a_tree_of_any_depth(scratch: Path) -> None:
    root = scratch / "root"
    root.mkdir()
    _deep(root)
    depth = max(entry.depth for entry in walk(os.fsencode(root)))
    assert depth == DEPTH
    assert disk_usage(os.fsencode(root))[1] == DEPTH + 2
    fd = os.open(scratch, os.O_RDONLY)
    remove_tree(fd, b"root")
    os.close(fd)
    assert os.listdir(scratch) == []


@pytest.mark.needs_root
def test_what_may_not_be_removed_says_why(scratch: Path) -> None:
    file = scratch / "tree/inside/file"
    file.parent.mkdir(parents=True)
    file.touch()
    subprocess.run(["chattr", "+i", str(file)], check=True)
    fd = os.open(scratch, os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            remove_tree(fd, b"tree")
    finally:
        os.close(fd)
        subprocess.run(["chattr", "-R", "-i", str(scratch)], check=True)


def test_directories_without_permissions(scratch: Path) -> None:
    (scratch / "tree/a/b").mkdir(parents=True)
    (scratch / "tree/a").chmod(0)
    fd = os.open(scratch, os.O_RDONLY)
    remove_tree(fd, b"tree")
    os.close(fd)
    assert os.listdir(scratch) == []
