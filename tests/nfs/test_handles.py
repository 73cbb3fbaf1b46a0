"""File handles of a union stay good as long as their objects live, whatever becomes of the daemon."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import build, system
from tests.nfs.filehandles import (
    FileHandle,
    forget_everything,
    handle_of,
    is_stale,
    number,
    opened,
    read,
    write,
)

if TYPE_CHECKING:
    from tests.mounts import Layers, UnionMount

pytestmark = pytest.mark.needs_root

Mount = Callable[..., Any]
EXPORT = "nfs_export=on"


def _restart(union: Mount, mounted: UnionMount, how: str) -> UnionMount:
    """The union mounted again, after an unmount or a SIGKILL."""
    if how == "kill":
        mounted.kill()
    else:
        mounted.unmount()
    again: UnionMount = union(EXPORT)
    return again


def zoo(layers: Layers) -> None:
    for name, kind in build.KINDS.items():
        kind(layers, f"zoo/{name}")
    build.write(layers.lowers[0] / "deep" / "er" / "file", "deep")
    build.write(layers.lowers[1] / "deep" / "er" / "lowest", "lowest")


def handles_below(root: Path) -> dict[str, FileHandle]:
    """The handle of every path below *root*, and of itself."""
    found = {".": handle_of(root)}
    for where, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(where, name)
            found[str(path.relative_to(root))] = handle_of(path)
    return found


def assert_good(root: Path, found: dict[str, FileHandle]) -> None:
    """Every handle leads to what lies at its path."""
    numbers = {path: number(root, handle) for path, handle in found.items()}
    forget_everything()
    assert numbers == {path: (root / path).lstat().st_ino for path in found}


@pytest.mark.parametrize("how", ["unmount", "kill"])
def test_handles_stay_over_a_restart(layers: Layers, union: Mount, how: str) -> None:
    zoo(layers)
    mounted = union(EXPORT)
    found = handles_below(mounted.root)
    (mounted.root / "new").write_text("new")
    found["new"] = handle_of(mounted.root / "new")
    mounted = _restart(union, mounted, how)
    assert_good(mounted.root, found)
    assert read(mounted.root, found["deep/er/file"]) == b"deep"
