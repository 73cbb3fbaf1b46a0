"""A copy-up that fails leaves the upper as it was, and says why."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import build, system, tree
from tests.mounts import Layers
from tests.system import attempt

pytestmark = pytest.mark.needs_root

Mount = Callable[..., Any]


@pytest.fixture
def small(scratch: Path) -> Iterator[Layers]:
    """Layers whose upper and workdir stand on an ext4 of 16 MiB."""
    image, disk = scratch / "image", scratch / "disk"
    image.touch()
    os.truncate(image, 16 << 20)
    disk.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    layers = Layers(scratch / "layers")
    layers.upper, layers.work = disk / "upper", disk / "work"
    layers.upper.mkdir()
    layers.work.mkdir()
    yield layers
    system.umount(disk, system.MNT_DETACH)


def state(layers: Layers) -> tree.Tree:
    assert layers.upper is not None
    return tree.snapshot(layers.upper, private=False)


def work_is_empty(layers: Layers) -> bool:
    """Nothing but a whiteout, which may be kept to be linked wherever one is needed."""
    assert layers.work is not None
    return all(path.is_char_device() for path in (layers.work / "work").iterdir())


def test_no_space_for_the_data(small: Layers, union: Mount) -> None:
    build.write(small.lowers[0] / "d" / "big", os.urandom(24 << 20))
    build.write(small.lowers[0] / "d" / "fits", os.urandom(1 << 20))
    root = union(layers=small).root
    free = os.statvfs(small.upper or "").f_bavail
    for _ in range(3):
        assert attempt((root / "d" / "big").chmod, 0o600).error == "ENOSPC"
        assert (root / "d" / "big").stat().st_mode & 0o777 == 0o644
        assert not (small.upper or Path()).joinpath("d", "big").exists()
        assert work_is_empty(small)
    assert os.statvfs(small.upper or "").f_bavail >= free - 16, "space was lost"
    assert (root / "d" / "big").read_bytes() == (small.lowers[0] / "d" / "big").read_bytes()
    (root / "d" / "fits").chmod(0o600)
    assert (root / "d" / "fits").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("ours_only")
def test_no_space_at_the_first_write(small: Layers, union: Mount) -> None:
    build.write(small.lowers[0] / "big", os.urandom(24 << 20))
    root = union(layers=small).root
    before = state(small)
    fd = os.open(root / "big", os.O_RDWR)
    outcome = attempt(os.write, fd, b"x")
    attempt(os.close, fd)
    assert outcome.error == "ENOSPC"
    assert work_is_empty(small)
    tree.assert_same(before, state(small), ignore=("directory.mtime",))
    assert (root / "big").read_bytes() == (small.lowers[0] / "big").read_bytes()


def test_no_inodes_left(small: Layers, union: Mount) -> None:
    build.write(small.lowers[0] / "d" / "file", "lower")
    (small.lowers[0] / "d" / "empty").mkdir()
    root = union(layers=small).root
    made = 0
    while attempt((root / f"filler-{made}").touch).error is None:
        made += 1
    before = state(small)
    assert attempt((root / "d" / "file").chmod, 0o600).error == "ENOSPC"
    assert attempt((root / "d" / "new").mkdir).error == "ENOSPC"
    assert attempt((root / "d" / "file").rename, root / "d" / "other").error == "ENOSPC"
    assert work_is_empty(small)
    tree.assert_same(before, state(small), ignore=("directory.mtime",))
    for index in range(made):
        (root / f"filler-{index}").unlink()
    (root / "d" / "file").rename(root / "d" / "other")
    (root / "d" / "empty").rmdir()
    assert os.listdir(root) == ["d"]
    assert os.listdir(root / "d") == ["other"]


def test_full_disk_still_lets_delete_what_is_upper(small: Layers, union: Mount) -> None:
    root = union(layers=small).root
    with open(root / "filler", "wb", buffering=0) as file:
        block = b"x" * (1 << 20)
        while (
            attempt(file.write, block).error is None and os.fstat(file.fileno()).st_size < 1 << 30
        ):
            pass
    (root / "filler").unlink()
    (root / "again").write_bytes(b"x" * (1 << 20))
    assert (root / "again").stat().st_size == 1 << 20


@pytest.mark.parametrize("command", ["-i", "-a"])
@pytest.mark.usefixtures("ours_only")
def test_protected_upper_directory(layers: Layers, union: Mount, command: str) -> None:
    """An upper that refuses is an error of that operation alone."""
    build.write(layers.lowers[0] / "d" / "file", "lower")
    assert layers.upper is not None
    (layers.upper / "d").mkdir()
    root = union().root
    flag = command.replace("-", "+")
    subprocess.run(["chattr", flag, layers.upper / "d"], check=True)
    try:
        if command == "-i":
            assert attempt((root / "d" / "file").chmod, 0o600).error == "EPERM"
            assert attempt((root / "d" / "new").touch).error == "EPERM"
        assert attempt((root / "d" / "file").unlink).error in ("EPERM", "EIO")
        assert (root / "d" / "file").read_text() == "lower"
        (root / "elsewhere").touch()
    finally:
        subprocess.run(["chattr", command, layers.upper / "d"], check=True)
    (root / "d" / "file").chmod(0o600)
    (root / "d" / "file").unlink()
    assert os.listdir(root / "d") == []
