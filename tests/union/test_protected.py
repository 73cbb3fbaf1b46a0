"""Immutable and append-only files of a lower hold, and so do their copies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import build
from tests.mounts import Layers
from tests.oracle import Pair
from tests.system import attempt

pytestmark = [pytest.mark.needs_root, pytest.mark.kernel_overlay]

Make = Callable[..., Pair]


def make(layers: Layers) -> None:
    lower = layers.lowers[0]
    for flag in ("a", "i"):
        build.write(lower / f"file-{flag}", "content")
        build.write(lower / f"directory-{flag}" / "inside", "inside")
        build.write(lower / f"directory-{flag}" / "sub" / "deep", "deep")


@pytest.fixture
def both(pair: Make) -> Iterator[Pair]:
    """The flags come when all else is done to the layers: nothing can be after."""
    one = pair(make)
    one.unmount()
    holders = [one.theirs_layers.lowers[0], one.ours_layers.lowers[0]]
    for holder in holders:
        for flag in ("a", "i"):
            names = (holder / f"file-{flag}", holder / f"directory-{flag}")
            subprocess.run(["chattr", f"+{flag}", *names], check=True)
    for layers in (one.theirs_layers, one.ours_layers):
        layers._lowers_before.clear()
    one.mount()
    yield one
    one.unmount()
    for holder in holders:
        subprocess.run(["chattr", "-R", "-a", "-i", holder], check=True)


def _append(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"more")
    finally:
        os.close(fd)


def changes(root: Path, flag: str) -> list[str]:
    """The outcome of everything that could be done to what is protected by *flag*."""
    file, directory = root / f"file-{flag}", root / f"directory-{flag}"
    operations: list[Callable[[], Any]] = [
        partial(_append, file),
        partial(os.open, file, os.O_WRONLY),
        partial(os.open, file, os.O_WRONLY | os.O_TRUNC),
        partial(os.truncate, file, 1),
        partial(os.chmod, file, 0o600),
        partial(os.chown, file, 1, 1),
        partial(os.setxattr, file, "user.x", b"1"),
        partial(os.link, file, root / "linked"),
        partial(os.rename, file, root / "moved"),
        partial(os.unlink, file),
        partial(os.unlink, directory / "inside"),
        partial(os.rename, directory / "inside", root / "moved"),
        partial(os.mkdir, directory / "new"),
        partial(_append, directory / "inside"),
        partial(_append, directory / "sub" / "deep"),
        partial(os.mkdir, directory / "sub" / "new"),
        partial(os.chmod, directory, 0o700),
        partial(os.rename, directory, root / "moved"),
        partial(os.symlink, "x", directory / "link"),
    ]
    return [attempt(operation).error or "ok" for operation in operations]


@pytest.mark.opens
@pytest.mark.parametrize("flag", ["a", "i"])
def test_protected_objects_of_a_lower(both: Pair, flag: str) -> None:
    both.same(lambda root: changes(root, flag))
    both.same(lambda root: changes(root, flag))
    both.remount()
    both.same(lambda root: changes(root, flag))
    both.same_tree()
    both.cross()
    both.same(lambda root: changes(root, flag))
