"""File handles of a union stay good as long as their objects live, whatever becomes of the daemon."""

from __future__ import annotations

import os
import subprocess
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
    forget_everything(root)
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


def test_without_the_option_a_restart_ends_them(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "file", "content")
    mounted = union()
    handle = handle_of(mounted.root / "file")
    assert read(mounted.root, handle) == b"content"
    forget_everything(mounted.root)
    assert is_stale(mounted.root, handle)
    handle = handle_of(mounted.root / "file")
    mounted.unmount()
    assert is_stale(union().root, handle)


def test_handles_stay_when_the_kernel_forgets(layers: Layers, union: Mount) -> None:
    zoo(layers)
    root = union(EXPORT).root
    found = handles_below(root)
    forget_everything(root)
    assert_good(root, found)


@pytest.mark.parametrize("how", ["unmount", "kill", "forget"])
def test_handles_stay_over_changes(layers: Layers, union: Mount, how: str) -> None:
    """Copied up, renamed, moved with the directory above, given another name, made anew."""
    zoo(layers)
    mounted = union(EXPORT)
    root = mounted.root
    found = handles_below(root)
    (root / "deep/er/file").chmod(0o600)
    (root / "deep/er/lowest").rename(root / "lowest")
    (root / "deep").rename(root / "moved")
    (root / "zoo/upper_file").rename(root / "zoo/renamed")
    os.link(root / "zoo/lower_file", root / "another")
    (root / "zoo/lower_file").unlink()
    os.link(root / "zoo/covered_file", root / "beside")
    system.renameat2(root / "zoo/lower_full", root / "zoo/merged_full", system.RENAME_EXCHANGE)
    moves = {
        "deep": "moved",
        "deep/er": "moved/er",
        "deep/er/file": "moved/er/file",
        "deep/er/lowest": "lowest",
        "zoo/upper_file": "zoo/renamed",
        "zoo/lower_file": "another",
        "zoo/lower_full": "zoo/merged_full",
        "zoo/merged_full": "zoo/lower_full",
    }
    for path in [path for path in found if path not in moves]:
        for above in ("zoo/lower_full", "zoo/merged_full"):
            if path.startswith(f"{above}/"):
                moves[path] = moves[above] + path.removeprefix(above)
    found = {moves.get(path, path): handle for path, handle in found.items()}
    if how != "forget":
        mounted = _restart(union, mounted, how)
    forget_everything(mounted.root)
    assert_good(mounted.root, found)


@pytest.mark.parametrize("how", ["unmount", "kill", "forget"])
def test_what_is_gone_is_stale(layers: Layers, union: Mount, how: str) -> None:
    build.write(layers.lowers[0] / "lower", "lower")
    build.write(layers.lowers[0] / "directory" / "file", "below")
    build.write(layers.lowers[0] / "over", "to be replaced")
    mounted = union(EXPORT)
    root = mounted.root
    (root / "upper").write_text("upper")
    (root / "made").mkdir()
    names = ("lower", "upper", "made", "over", "directory", "directory/file")
    found = {name: handle_of(root / name) for name in names}
    (root / "lower").unlink()
    (root / "upper").unlink()
    (root / "made").rmdir()
    (root / "new").write_text("replaces it")
    (root / "new").rename(root / "over")
    (root / "directory/file").unlink()
    (root / "directory").rmdir()
    if how != "forget":
        mounted = _restart(union, mounted, how)
    forget_everything(mounted.root)
    assert [name for name in names if not is_stale(mounted.root, found[name])] == []


def test_who_gets_the_inode_number_is_not_meant(layers: Layers, union: Mount) -> None:
    mounted = union(EXPORT)
    root = mounted.root
    stale: list[FileHandle] = []
    numbers = set()
    for round_ in range(20):
        path = root / f"file{round_}"
        path.write_text(f"{round_}")
        stale.append(handle_of(path))
        numbers.add(path.stat().st_ino)
        path.unlink()
        forget_everything(root)
    (root / "last").write_text("last")
    last = handle_of(root / "last")
    assert len(numbers) < 20, "the disk was to use numbers again"
    root = _restart(union, mounted, "kill").root
    assert all(is_stale(root, handle) for handle in stale)
    assert read(root, last) == b"last"


def test_a_number_that_is_in_use_still(layers: Layers, union: Mount) -> None:
    """Whoever has the removed file open keeps its number: the next object has another one."""
    mounted = union(EXPORT)
    root = mounted.root
    made = {}
    held = []
    for round_ in range(10):
        path = root / "file"
        path.write_text(f"{round_}")
        held.append(os.open(path, os.O_RDONLY))
        path.unlink()
        path = root / f"kept{round_}"
        path.write_text(f"kept {round_}")
        made[path.name] = handle_of(path), path.stat().st_ino
    for fd in held:
        os.close(fd)
    root = _restart(union, mounted, "kill").root
    for name, (handle, number_) in made.items():
        assert read(root, handle).decode() == name.replace("kept", "kept ")
        assert (root / name).stat().st_ino == number_
    listed = {entry.name: entry.inode() for entry in os.scandir(root)}
    assert listed == {name: number_ for name, (_, number_) in made.items()}


@pytest.mark.parametrize("where", ["lower", "upper"])
def test_names_that_nobody_has_looked_up(layers: Layers, union: Mount, where: str) -> None:
    """Of a file of several names the one that was known goes."""
    layer = layers.lowers[0] if where == "lower" else layers.upper
    assert layer is not None
    build.write(layer / "a", "linked")
    (layer / "directory").mkdir()
    os.link(layer / "a", layer / "directory" / "b")
    mounted = union(EXPORT)
    handle = handle_of(mounted.root / "a")
    (mounted.root / "a").unlink()
    mounted = _restart(union, mounted, "kill")
    root = mounted.root
    write(root, handle, b"LINK")
    assert (root / "directory/b").read_bytes() == b"LINKed"
    assert number(root, handle) == (root / "directory/b").stat().st_ino
    (root / "directory/b").unlink()
    forget_everything(root)
    assert is_stale(root, handle)


@pytest.mark.parametrize("how", ["kill", "forget"])
def test_a_lower_file_is_written_by_its_handle(layers: Layers, union: Mount, how: str) -> None:
    build.write(layers.lowers[0] / "a" / "b" / "file", "lower")
    mounted = union(EXPORT)
    handle = handle_of(mounted.root / "a/b/file")
    if how == "kill":
        mounted = _restart(union, mounted, how)
    forget_everything(mounted.root)
    write(mounted.root, handle, b"WRITT")
    assert (mounted.root / "a/b/file").read_bytes() == b"WRITT"
    assert layers.upper is not None
    assert (layers.upper / "a/b/file").read_bytes() == b"WRITT"
    assert read(mounted.root, handle) == b"WRITT"


def test_directories_are_connected(layers: Layers, union: Mount) -> None:
    """From the handle of a directory the way leads up to the root, and to its path."""
    build.write(layers.lowers[0] / "a" / "b" / "c" / "file", "x")
    mounted = union(EXPORT)
    handle = handle_of(mounted.root / "a/b/c")
    (mounted.root / "a").rename(mounted.root / "A")
    root = _restart(union, mounted, "kill").root
    with opened(root, handle, os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert os.readlink(f"/proc/self/fd/{fd}") == str(root / "A/b/c")
        assert os.listdir(fd) == ["file"]
        above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        assert os.fstat(above).st_ino == (root / "A/b").stat().st_ino
        os.close(above)


def test_deep_directories(layers: Layers, union: Mount) -> None:
    mounted = union(EXPORT)
    fd = os.open(mounted.root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    handle, ino = handle_of(fd), os.fstat(fd).st_ino
    os.close(fd)
    root = _restart(union, mounted, "kill").root
    assert number(root, handle) == ino
    subprocess.run(["rm", "-rf", root / "d"], check=True)


@pytest.mark.device_session
def test_a_file_made_without_a_name(layers: Layers, union: Mount) -> None:
    mounted = union(EXPORT)
    fd = os.open(mounted.root, os.O_TMPFILE | os.O_RDWR)
    never = os.open(mounted.root, os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"named")
    handles = handle_of(fd), handle_of(never)
    here = os.open(mounted.root, os.O_RDONLY)
    os.link(f"/proc/self/fd/{fd}", "name", dst_dir_fd=here, follow_symlinks=True)
    os.close(here)
    os.close(fd)
    os.close(never)
    root = _restart(union, mounted, "kill").root
    assert read(root, handles[0]) == b"named"
    assert is_stale(root, handles[1])
