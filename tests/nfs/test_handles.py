"""File handles stay good as long as their objects live, whatever becomes of the daemon."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import build, system, tree
from tests.mounts import Layers
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
    from tests.mounts import UnionMount

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


def test_listings_show_the_numbers_of_handles(layers: Layers, union: Mount) -> None:
    zoo(layers)
    mounted = union(EXPORT)
    handles_below(mounted.root)
    (mounted.root / "deep/er/file").chmod(0o600)
    (mounted.root / "new").touch()
    root = _restart(union, mounted, "kill").root
    for where in (root, root / "zoo", root / "deep/er"):
        listed = {entry.name: entry.inode() for entry in os.scandir(where)}
        assert listed == {name: (where / name).lstat().st_ino for name in listed}


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


def test_names_of_which_one_is_lower_still(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "a", "linked")
    os.link(layers.lowers[0] / "a", layers.lowers[0] / "b")
    root = union(EXPORT).root
    (root / "a").chmod(0o600)
    handle = handle_of(root / "a")
    assert layers.upper is not None
    assert os.listdir(layers.upper) == ["a"]
    for name in ("b", "a", "b"):
        forget_everything(root)
        assert handle_of(root / name) == handle


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


def test_layers_change_places(layers: Layers, union: Mount) -> None:
    """Numbers name file systems by their place in the stack: handles do not fall for that."""
    for lower in layers.lowers:  # fresh file systems give the same numbers to different files
        system.mount("tmpfs", lower, "tmpfs")
        for name in ("one", "two"):
            build.write(lower / f"{lower.name}-{name}", f"{name} of {lower.name}")
    try:
        mounted = union(EXPORT)
        names = [f"{lower.name}-one" for lower in layers.lowers]
        handles = [handle_of(mounted.root / name) for name in names]
        mounted.unmount()
        layers.lowers.reverse()
        mounted = union(EXPORT)
        more = [f"{lower.name}-two" for lower in layers.lowers]
        handles += [handle_of(mounted.root / name) for name in more]
        mounted.unmount()
        mounted = union(EXPORT)
        for name, handle in zip(names + more, handles, strict=True):
            layer, which = name.split("-")
            assert read(mounted.root, handle).decode() == f"{which} of {layer}"
        mounted.unmount()
    finally:
        for lower in layers.lowers:
            system.umount(lower, system.MNT_DETACH)


def _rows(layers: Layers) -> int:
    """How many objects are written down."""
    assert layers.work is not None
    table = sqlite3.connect(layers.work / "nfs_export" / "handles.sqlite")
    ((count,),) = table.execute("SELECT count(*) FROM objects")
    table.close()
    return int(count)


def test_what_is_gone_is_not_written_down_for_ever(layers: Layers, union: Mount) -> None:
    mounted = union(EXPORT)
    for name in "abc":
        (mounted.root / name).touch()
    (mounted.root / "directory").mkdir()
    (mounted.root / "a").unlink()
    (mounted.root / "b").rename(mounted.root / "c")
    (mounted.root / "directory").rmdir()
    mounted.unmount()
    assert _rows(layers) == 1


def test_a_layer_copied_by_hand_with_its_marks(layers: Layers, union: Mount) -> None:
    """Copies claim one origin: the handle of the first one never leads to another."""
    build.write(layers.lowers[0] / "file", "content")
    mounted = union(EXPORT)
    (mounted.root / "file").write_text("file")
    handles = {"file": handle_of(mounted.root / "file")}
    assert layers.upper is not None
    for name in ("copy", "third"):
        mounted.unmount()
        subprocess.run(["cp", "-a", layers.upper / "file", layers.upper / name], check=True)
        (layers.upper / name).write_text(name)
        mounted = union(EXPORT)
        handles[name] = handle_of(mounted.root / name)  # asked for before the first
        for other, handle in handles.items():
            assert read(mounted.root, handle) == other.encode()
    root = _restart(union, mounted, "kill").root
    for name in reversed(handles):
        assert read(root, handles[name]) == name.encode()


def test_moved_by_the_kernel(layers: Layers, union: Mount, kernel: Mount) -> None:
    """Moved while we do not serve: handles lead there again once the new name is asked for."""
    build.write(layers.lowers[0] / "directory" / "file", "content")
    mounted = union(EXPORT)
    (mounted.root / "directory/file").chmod(0o600)
    handle = handle_of(mounted.root / "directory/file")
    mounted.unmount()
    overlay = kernel()
    (overlay.root / "directory/file").rename(overlay.root / "file")
    (overlay.root / "directory/file").write_text("another")
    overlay.unmount()
    mounted = union(EXPORT)
    assert is_stale(mounted.root, handle)
    assert handle_of(mounted.root / "file") == handle
    assert read(mounted.root, handle) == b"content"


def test_a_read_only_union_keeps_its_table_in_a_workdir(
    layers: Layers, union: Mount, scratch: Path
) -> None:
    build.write(layers.lowers[0] / "a" / "file", "content")
    work, layers.upper, layers.work = layers.work, None, None
    mounted = union(f"{EXPORT},workdir={work}")
    handle = handle_of(mounted.root / "a/file")
    mounted.unmount()
    root = union(f"{EXPORT},workdir={work}").root
    assert read(root, handle) == b"content"
    with pytest.raises(OSError, match="Read-only"):
        write(root, handle, b"x")


def test_the_kernel_mounts_the_same_directories(
    layers: Layers, union: Mount, kernel: Mount
) -> None:
    """The table is nothing to overlayfs, and overlayfs leaves it alone."""
    zoo(layers)
    mounted = union(EXPORT)
    (mounted.root / "deep").rename(mounted.root / "moved")
    (mounted.root / "zoo/lower_links").chmod(0o600)
    found = handles_below(mounted.root)
    expected = tree.snapshot(mounted.root)
    mounted.unmount()
    overlay = kernel()
    tree.assert_same(expected, tree.snapshot(overlay.root))
    (overlay.root / "by the kernel").touch()
    overlay.unmount()
    assert_good(union(EXPORT).root, found)


def test_a_full_disk_is_no_reason_to_fail(layers: Layers, union: Mount, scratch: Path) -> None:
    """What can no longer be written down is shown all the same; the log says what that costs."""
    disk = scratch / "disk"
    disk.mkdir()
    system.mount("none", disk, "tmpfs", 0, "size=2m")
    try:
        layers.upper, layers.work = disk / "upper", disk / "work"
        layers.upper.mkdir()
        layers.work.mkdir()
        build.write(layers.lowers[0] / "first", "first")
        for number in range(500):
            build.write(layers.lowers[0] / "many" / f"{number}{'x' * 200}")
        mounted = union(EXPORT)
        first = handle_of(mounted.root / "first")
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        assert len([path.stat() for path in (mounted.root / "many").iterdir()]) == 500
        filler.unlink()
        mounted.expect_log("handles of new files end with this mount")
        mounted.unmount()
        mounted = union(EXPORT)
        assert read(mounted.root, first) == b"first"
        mounted.unmount()
    finally:
        system.umount(disk, system.MNT_DETACH)


@pytest.mark.parametrize("content", [b"not a table" * 1000, None])
def test_a_table_that_cannot_be_used(layers: Layers, union: Mount, content: bytes | None) -> None:
    """One that is broken, or of a newer version: refused by its path, and left as it is."""
    assert layers.work is not None
    path = layers.work / "nfs_export" / "handles.sqlite"
    path.parent.mkdir()
    if content is None:
        with contextlib.closing(sqlite3.connect(path)) as made:
            made.execute("PRAGMA user_version = 99")
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(AssertionError, match=str(path)):
        union(EXPORT)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("nfs_export=on,userxattr", "nfs_export=on: only for root, and not with userxattr"),
        ("nfs_export=maybe", "nfs_export=maybe: nfs_export is on or off"),
    ],
)
def test_what_excludes_it(layers: Layers, union: Mount, options: str, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        union(options)


def test_a_layer_without_handles_is_named(
    layers: Layers, union: Mount, mounts: Any, scratch: Path
) -> None:
    """A union of ours as a lower: its numbers are not for another union to keep."""
    inner = Layers(scratch / "inner")
    build.write(inner.lowers[0] / "file", "x")
    layers.lowers[0] = union(layers=inner).root
    with pytest.raises(AssertionError, match=f"lowerdir={layers.lowers[0]}: nfs_export=on: "):
        union(EXPORT)


def test_a_read_only_union_needs_a_workdir(layers: Layers, union: Mount) -> None:
    layers.upper = layers.work = None
    with pytest.raises(AssertionError, match="workdir= is missing"):
        union(EXPORT)
