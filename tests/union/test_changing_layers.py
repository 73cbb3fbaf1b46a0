"""Layers that change below: undefined content, but no crash, no hang and no lying errno."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import build
from tests.system import attempt

if TYPE_CHECKING:
    from tests.mounts import Layers

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

Mount = Callable[..., Any]

#: What an operation on a file that somebody took away may say.
HONEST = {
    None,
    "ENOENT",
    "ESTALE",
    "EIO",
    "EEXIST",
    "ENOTEMPTY",
    "ENOTDIR",
    "EISDIR",
    "EINVAL",
    "ELOOP",
    "ENODATA",
    "EPERM",
    "ENXIO",  # a whiteout in its place, opened
    "ENOTSUP",  # a symlink in its place, given an attribute
}


def touch_everything(root: Path, name: str) -> set[str | None]:
    """Try all that can be done to *name*; the errors that came."""
    path = root / name
    operations: list[Callable[[], Any]] = [
        path.lstat,
        path.read_bytes,
        lambda: os.listdir(path),
        lambda: path.chmod(0o640),
        lambda: path.open("r+b").close(),
        lambda: os.setxattr(path, "user.x", b"1"),
        lambda: path.rename(root / "moved"),
        lambda: (root / "moved").rename(path),
        lambda: os.link(path, root / "linked"),
        (root / "linked").unlink,
        path.unlink,
        path.rmdir,
        lambda: path.write_text("new"),
        path.unlink,
        path.mkdir,
        path.rmdir,
    ]
    return {attempt(operation).error for operation in operations}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _replaced_by(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        _remove(path)
        make(path)

    return change


CHANGES: dict[str, Callable[[Path], Any]] = {
    "removed": _remove,
    "renamed": lambda path: path.rename(f"{path}-elsewhere"),
    "a new directory": _replaced_by(Path.mkdir),
    "a new file": _replaced_by(Path.touch),
    "a link": _replaced_by(lambda path: path.symlink_to("../bait")),
    "a whiteout": _replaced_by(build.whiteout),
}


@pytest.mark.parametrize("opened", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("where", ["lower", "upper", "merged"])
def test_changed_behind_our_back(
    layers: Layers, union: Mount, where: str, change: str, opened: bool
) -> None:
    layers.lower_may_change = True
    assert layers.upper is not None
    holders = {
        "lower": [layers.lowers[0]],
        "upper": [layers.upper],
        "merged": [layers.upper, layers.lowers[0]],
    }[where]
    for holder in holders:
        build.write(holder / "file", "content")
        build.write(holder / "directory" / "file", "content")
        build.write(holder / "bystander", "bystander")
    # What users reach through a link they may change; nothing else may lead there.
    (layers.base / "bait").mkdir()
    mounted = union()
    mounted.allow_log("")
    root = mounted.root
    for name in ("file", "directory"):
        assert (root / name).exists()
        fd = os.open(root / name, os.O_RDONLY) if opened else None
        CHANGES[change](holders[0] / name)
        if fd is not None:
            attempt(os.fstat, fd)
            attempt(os.read, fd, 10)
            attempt(os.listdir, fd)
        errors = touch_everything(root, name)
        if fd is not None:
            attempt(os.close, fd)
        assert errors <= HONEST
    assert (root / "bystander").read_text() == "bystander"
    (root / "works").write_text("works")
    assert (root / "works").read_text() == "works"
    assert not (layers.base / "bait" / "moved").exists()
    mounted.end()
    assert ": ERROR: " not in mounted.log, mounted.log


def test_upper_directory_replaced(layers: Layers, union: Mount) -> None:
    assert layers.upper is not None
    build.write(layers.upper / "d" / "file", "one")
    mounted = union()
    mounted.allow_log("")
    assert (mounted.root / "d" / "file").read_text() == "one"
    (layers.upper / "d").rename(layers.upper / "away")
    (layers.upper / "d").mkdir()
    assert attempt((mounted.root / "d" / "new").touch).error in HONEST
    assert attempt((mounted.root / "d" / "file").unlink).error in HONEST
    assert attempt((mounted.root / "other").touch).error is None
    mounted.end()
    assert ": ERROR: " not in mounted.log, mounted.log


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_storm_below_and_above(layers: Layers, union: Mount, seed: int) -> None:
    layers.lower_may_change = True
    assert layers.upper is not None
    holders = [*layers.lowers, layers.upper]
    names = [f"n{index}" for index in range(6)]
    mounted = union(seconds=30.0)
    mounted.allow_log("")
    stop = threading.Event()

    def below() -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            path = rng.choice(holders) / rng.choice(names)
            attempt(
                rng.choice(
                    [
                        lambda path=path: path.write_text("x"),
                        path.mkdir,
                        lambda path=path: build.write(path / rng.choice(names), "y"),
                        lambda path=path: path.rename(path.parent / rng.choice(names)),
                        lambda path=path: _remove(path),
                        lambda path=path: build.whiteout(path),
                        lambda path=path: path.symlink_to("n1"),
                    ]
                )
            )

    storm = threading.Thread(target=below)
    storm.start()
    seen: set[str | None] = set()
    try:
        rng = random.Random(seed + 100)
        for _ in range(150):
            seen |= touch_everything(mounted.root, rng.choice(names))
            attempt(lambda: [list(path.iterdir()) for path in mounted.root.iterdir()])
    finally:
        stop.set()
        storm.join()
    # EROFS: what was to be changed lay in a lower by then, which is read-only to us.
    assert seen <= HONEST | {"EBUSY", "EROFS"}, seen
    (mounted.root / "fine").write_text("fine")
    mounted.end()
    assert ": ERROR: " not in mounted.log, mounted.log
