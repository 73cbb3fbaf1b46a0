"""Every operation on every kind of name, as the kernel's overlayfs does it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from tests.build import KINDS, write
from tests.oracle import OLD, Pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.mounts import Layers

pytestmark = [pytest.mark.needs_root, pytest.mark.kernel_overlay]


def _open(flags: int, data: bytes = b"") -> Callable[[Path], Any]:
    def operation(path: Path) -> Any:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o604)
        try:
            if data:
                os.write(fd, data)
            status = os.fstat(fd)
            regular = stat.S_ISREG(status.st_mode)
            return stat.S_IFMT(status.st_mode), status.st_size if regular else None
        finally:
            os.close(fd)

    return operation


def _rmtree(path: Path) -> None:
    for name in os.listdir(path):
        below = path / name
        if below.is_dir() and not below.is_symlink():
            _rmtree(below)
        else:
            below.unlink()
    path.rmdir()


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def _list(path: Path) -> list[tuple[str, bool]]:
    return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in os.scandir(path))


def _remove_and(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def operation(path: Path) -> Any:
        if path.is_dir() and not path.is_symlink():
            _rmtree(path)
        else:
            path.unlink()
        return make(path)

    return operation


OPERATIONS: dict[str, Callable[[Path], Any]] = {
    "list": _list,
    "read": _read,
    "readlink": os.readlink,
    "access_execute": lambda path: os.access(path, os.X_OK, follow_symlinks=False),
    "mkdir": lambda path: os.mkdir(path, 0o751),
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "rmtree": _rmtree,
    "mkfifo": lambda path: os.mkfifo(path, 0o640),
    "mknod_device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
    "mknod_whiteout": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0)),
    "symlink": lambda path: os.symlink("somewhere", path),
    "create": _open(os.O_CREAT | os.O_WRONLY, b"created"),
    "create_exclusive": _open(os.O_CREAT | os.O_EXCL | os.O_RDWR, b"created"),
    "open_for_writing": _open(os.O_RDWR),
    "write": _open(os.O_WRONLY, b"WRITTEN"),
    "append": _open(os.O_WRONLY | os.O_APPEND, b"appended"),
    "open_truncating": _open(os.O_WRONLY | os.O_TRUNC),
    "open_directory": _open(os.O_RDONLY | os.O_DIRECTORY),
    "truncate_shorter": lambda path: os.truncate(path, 3),
    "truncate_longer": lambda path: os.truncate(path, 10_000),
    "chmod": lambda path: os.chmod(path, 0o711),
    "lchown": lambda path: os.lchown(path, 1234, 5678),
    "utime": lambda path: os.utime(path, ns=(OLD + 1, OLD + 2), follow_symlinks=False),
    "setxattr": lambda path: os.setxattr(path, "trusted.test", b"1", follow_symlinks=False),
    "removexattr": lambda path: os.removexattr(path, "trusted.none", follow_symlinks=False),
    "link_to_new": lambda path: os.link(path, path.parent / "new", follow_symlinks=False),
    "link_over": lambda path: os.link(path.parent / "other", path),
    "rename_to_new": lambda path: os.rename(path, path.parent / "new"),
    "rename_over": lambda path: os.rename(path.parent / "other", path),
    "create_inside": lambda path: write(path / "child", "new"),
    "mkdir_inside": lambda path: os.mkdir(path / "child"),
    "unlink_inside": lambda path: os.unlink(path / "inside"),
    "rename_inside_out": lambda path: os.rename(path / "inside", path.parent / "new"),
    "rename_into": lambda path: os.rename(path.parent / "other", path / "child"),
    "replace_by_file": _remove_and(lambda path: write(path, "again")),
    "replace_by_directory": _remove_and(os.mkdir),
    "replace_by_symlink": _remove_and(lambda path: os.symlink("again", path)),
}
CASES = [(operation, kind) for operation in OPERATIONS for kind in KINDS]


def build(layers: Layers) -> None:
    for operation, kind in CASES:
        where = f"{operation}-{kind}"
        for layer in (*layers.lowers, layers.upper):
            assert layer is not None
            (layer / where).mkdir()
        KINDS[kind](layers, f"{where}/name")
        write(layers.lowers[0] / where / "other", "the other")


@pytest.mark.parametrize(("operation", "kind"), CASES)
def test_operation(arena: Pair, operation: str, kind: str) -> None:
    where = f"{operation}-{kind}"
    arena.same(lambda root: OPERATIONS[operation](root / "name"), where)
    arena.same_tree(where)


def test_all_of_it_after_a_remount(arena: Pair) -> None:
    arena.remount()
    arena.same_tree()


def test_all_of_it_mounted_by_the_other(arena: Pair) -> None:
    arena.cross()
    arena.same_tree()
