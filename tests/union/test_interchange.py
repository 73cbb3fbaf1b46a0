"""Upper directories go from us to the kernel's overlayfs and fuse-overlayfs, and back."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import build, tree
from tests.mounts import Layers, Mounted
from tests.system import RENAME_EXCHANGE, attempt, renameat2

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

Mount = Callable[..., Any]
Change = Callable[[Path], Any]


def fill(layers: Layers) -> None:
    """Every kind of name, once at the root and once deeper."""
    for name, kind in build.KINDS.items():
        if name not in ("redirected", "upper_links"):
            kind(layers, name)
            kind(layers, f"sub/{name}")
    for index in range(8):
        build.write(layers.lowers[index % 2] / "many" / f"d{index}" / "f", f"{index}")


def change(root: Path) -> None:
    """What all three filesystems can do, one of each."""
    change_plain(root)
    for where in (root, root / "sub"):
        (where / "lower_fifo").rename(where / "renamed_fifo")
        (where / "lower_socket").chmod(0o700)
        os.lchown(where / "lower_device", 5, 5)


def change_plain(root: Path) -> None:
    """The same without special files: fuse-overlayfs opens the originals to look at them."""
    for where in (root, root / "sub"):
        (where / "lower_file").write_text("rewritten")
        (where / "lowest_file").chmod(0o4711)
        os.chown(where / "lowest_file", 123, 456)
        (where / "upper_file").unlink()
        (where / "covered_file").unlink()
        (where / "deleted_file").write_text("again")
        shutil.rmtree(where / "lower_full")
        (where / "lower_full").mkdir()
        build.write(where / "lower_full" / "new", "new")
        shutil.rmtree(where / "merged_full")
        (where / "merged_empty").rmdir()
        (where / "deleted_directory").mkdir()
        (where / "lower_symlink").rename(where / "renamed_symlink")
        os.setxattr(where / "lower_file", "user.kept", b"value")
        (where / "directory_over_file" / "inside").rename(where / "out")
        os.link(where / "out", where / "out-link")
        (where / "sparse").touch()
        os.truncate(where / "sparse", 1 << 20)
    os.utime(root / "many" / "d0", ns=(10**18, 10**18))
    (root / "many" / "d1" / "f").rename(root / "many" / "d0" / "moved")


def rearrange(root: Path) -> None:
    """What needs redirects and the index."""
    (root / "many").rename(root / "sub" / "many")
    (root / "sub" / "many" / "d2").rename(root / "d2")
    (root / "sub" / "many" / "d3").rename(root / "sub" / "many" / "d4" / "d3")
    renameat2(root / "sub" / "many" / "d5", root / "sub" / "many" / "d6", RENAME_EXCHANGE)
    (root / "lower_links").write_text("all of them")
    os.link(root / "lower_links-other", root / "d2" / "third")
    (root / "sub" / "lower_links").unlink()


def look(mounted: Mounted, *, links: bool = True, since: int | None = None) -> tree.Tree:
    """The tree; without lower links for fuse-overlayfs, which does not know the index."""
    found = tree.snapshot(mounted.root, since=since)
    return found if links else {k: v for k, v in found.items() if b"lower_links" not in k}


IGNORE = ("directory.nlink",)


def test_ours_under_the_kernel_and_back(layers: Layers, union: Mount, kernel: Mount) -> None:
    fill(layers)
    ours = union()
    change(ours.root)
    rearrange(ours.root)
    seen = look(ours)
    ours.unmount()
    theirs = kernel()
    tree.assert_same(seen, look(theirs))
    _more(theirs.root)
    seen = look(theirs)
    theirs.unmount()
    ours = union()
    tree.assert_same(seen, look(ours))


def test_the_kernels_under_ours_and_back(layers: Layers, union: Mount, kernel: Mount) -> None:
    fill(layers)
    theirs = kernel()
    change(theirs.root)
    rearrange(theirs.root)
    seen = look(theirs)
    theirs.unmount()
    ours = union()
    tree.assert_same(seen, look(ours))
    _more(ours.root)
    seen = look(ours)
    ours.unmount()
    tree.assert_same(seen, look(kernel()))


def _more(root: Path) -> None:
    """Changes on top of the changes of the other."""
    (root / "sub" / "many").rename(root / "many")
    (root / "d2").rename(root / "many" / "d4" / "d3" / "d2")
    (root / "sub" / "lower_full" / "new").unlink()
    (root / "sub" / "lower_full").rmdir()
    (root / "sub" / "lower_full").mkdir()
    (root / "lower_links-other").write_text("once more")
    (root / "covered_file").mkdir()
    (root / "out-link").write_text("out")


def test_ours_under_fuse_overlayfs(layers: Layers, union: Mount, fuse_overlayfs: Mount) -> None:
    fill(layers)
    ours = union("redirect_dir=off")
    change_plain(ours.root)
    seen = look(ours, links=False)
    ours.unmount()
    tree.assert_same(seen, look(fuse_overlayfs(), links=False), ignore=IGNORE)


def test_fuse_overlayfs_under_ours(layers: Layers, union: Mount, fuse_overlayfs: Mount) -> None:
    fill(layers)
    since = time.time_ns() - 50_000_000  # its view of fresh times is the FUSE client's own
    theirs = fuse_overlayfs()
    change_plain(theirs.root)
    theirs.unmount()
    # 2.0 forgets over a remount that a directory it made anew is opaque: what it wrote counts.
    theirs = fuse_overlayfs()
    seen = look(theirs, links=False, since=since)
    theirs.unmount()
    assert layers.work is not None
    shutil.rmtree(layers.work)  # as the engines do: it leaves there what it has removed
    layers.work.mkdir()
    ours = union()
    tree.assert_same(seen, look(ours, links=False, since=since), ignore=IGNORE)


def test_forms_that_only_fuse_overlayfs_writes(layers: Layers, union: Mount) -> None:
    """As its rootless uppers have them: `.wh.` files and its own opaque mark."""
    assert layers.upper is not None
    build.write(layers.lowers[0] / "gone", "gone")
    build.write(layers.lowers[0] / "d" / "old", "old")
    build.write(layers.upper / ".wh.gone")
    build.write(layers.upper / "d" / ".wh..wh..opq")
    os.setxattr(layers.upper / "d", "user.fuseoverlayfs.opaque", b"y")
    build.write(layers.upper / "d" / "new", "new")
    mounted = union()
    assert os.listdir(mounted.root) == ["d"]
    assert os.listdir(mounted.root / "d") == ["new"]
    (mounted.root / "gone").write_text("again")
    (mounted.root / "d").rename(mounted.root / "e")
    mounted.unmount()
    mounted = union()
    assert sorted(os.listdir(mounted.root)) == ["e", "gone"]
    assert os.listdir(mounted.root / "e") == ["new"]


def test_an_upper_of_ours_as_a_lower(
    layers: Layers, union: Mount, kernel: Mount, scratch: Path
) -> None:
    """Engines do so with every image layer that they commit."""
    fill(layers)
    ours = union()
    change(ours.root)
    rearrange(ours.root)
    seen = look(ours)
    del seen[b"."]  # the root is the new upper's
    ours.unmount()
    assert layers.upper is not None
    above = Layers(scratch / "above", lowers=0)
    above.lowers = [layers.upper, *layers.lowers]
    for mount in (union, kernel):
        mounted = mount(layers=above)
        found = look(mounted)
        del found[b"."]
        tree.assert_same(seen, found, ignore=("nlink", "group"))
        mounted.unmount()
        assert above.work is not None
        shutil.rmtree(above.work)
        above.work.mkdir()


@pytest.mark.since(6, 7, "overlayfs takes a file with an xattr for a whiteout")
@pytest.mark.parametrize("value", [b"y", b"x"])
def test_xattr_whiteouts_of_a_lower_under_both(
    layers: Layers, union: Mount, kernel: Mount, value: bytes
) -> None:
    build.write(layers.lowers[1] / "d" / "hidden", "hidden")
    build.write(layers.lowers[1] / "d" / "shown", "shown")
    build.xattr_whiteout(layers.lowers[0] / "d" / "hidden")
    os.setxattr(layers.lowers[0] / "d", "trusted.overlay.opaque", value)
    os.setxattr(layers.lowers[0], "trusted.overlay.opaque", b"x")
    theirs = kernel()
    expected = sorted(os.listdir(theirs.root / "d"))
    theirs.unmount()
    assert sorted(os.listdir(union().root / "d")) == expected


def test_metadata_only_copies_of_the_kernel_are_not_followed_in_silence(
    layers: Layers, union: Mount, kernel: Mount
) -> None:
    """A file that holds only metadata must not read as an empty one or as zeros."""
    build.write(layers.lowers[0] / "file", "content")
    theirs = kernel(options="metacopy=on,redirect_dir=on,index=on")
    (theirs.root / "file").chmod(0o600)
    theirs.unmount()
    mounted = union()
    mounted.allow_log("metacopy")
    outcome = attempt((mounted.root / "file").read_bytes)
    assert outcome.error is not None or outcome.value == b"content"
