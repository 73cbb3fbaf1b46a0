"""Archives of layers against GNU tar, and what becomes of whiteouts."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests import build, tree
from tests.archives import (
    Nothing,
    apply_layer,
    apply_plain,
    archive,
    directory,
    framed,
    gnu_create,
    gnu_extract,
    link,
    member,
    pack,
    symlink,
)
from tests.system import mount, umount
from unionfs.errors import ArchiveError
from unionfs.layer import acl
from unionfs.store.below import merged

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.needs_root

#: cap_net_raw=ep, as setcap(8) writes it.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def everything(root: Path) -> Path:
    """A tree with something of all that a layer can have."""
    root.mkdir()
    build.write(root / "file", "content\n")
    build.write(root / "empty")
    build.write(root / "program", "#!/bin/sh\n", 0o4755)
    build.write(root / "unreadable", "secret", 0o000)
    build.write(root / "block", b"x" * 512)
    build.write(root / "large", os.urandom(3 << 20))
    os.chown(root / "large", 1234, 56789)
    os.chown(root / "empty", 3_000_000, 4_000_000_000)
    os.link(root / "file", root / "second")
    os.link(root / "file", root / "dir-third")
    build.write(root / "dir/sub/deep", "deep", 0o600)
    (root / "dir/sub").chmod(0o1777)
    (root / "dir").chmod(0o2750)
    (root / "no-entry").mkdir(mode=0o000)
    (root / "link").symlink_to("file")
    (root / "away").symlink_to("/etc/passwd")
    (root / "up").symlink_to("../../..")
    os.symlink("t" * 200, root / "long-target")
    os.link(root / "link", root / "link-again", follow_symlinks=False)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 300))
    build.write(root / ("n" * 255), "long name")
    deep = root.joinpath(*(f"{'d' * 60}{i}" for i in range(12)))
    build.write(deep / "bottom", "far away")
    build.write(root / "with space\nand newline", "odd")
    with open(os.fsencode(root) + b"/not-utf8-\xff\xfe", "wb") as file:
        file.write(b"bytes")
    build.write(root / "ünïcode", "umlaut")
    os.setxattr(root / "file", "user.note", b"binary \x00\xff=\n value")
    os.setxattr(root / "file", "trusted.admin", b"1")
    os.setxattr(root / "file", "user.a=b%3D%", b"odd")
    os.setxattr(root / "dir", "user.on-directory", b"yes")
    os.setxattr(root / "program", "security.capability", CAPABILITY)
    os.setxattr(root / "dir", "system.posix_acl_default", LIST)
    os.setxattr(root / "large", "system.posix_acl_access", LIST)
    for name in ("file", "dir", "no-entry", "fifo"):
        os.utime(root / name, ns=(1_500_000_000_123_456_789, 1_400_000_000_987_654_321))
    os.utime(root / "link", ns=(5, 1_000_000_001), follow_symlinks=False)
    os.utime(root / "empty", ns=(0, -1_500_000_000))
    os.utime(root, ns=(1, 1_300_000_000_000_000_001))
    return root


LIST = build.acl(
    (build.USER_OBJ, 7, build.NO_ID),
    (build.USER, 5, 1000),
    (build.GROUP_OBJ, 4, build.NO_ID),
    (build.GROUP, 6, 2000),
    (build.MASK, 7, build.NO_ID),
    (build.OTHER, 0, build.NO_ID),
)


def sparse(root: Path) -> Path:
    """Files whose holes are at the beginning, in the middle, at the end, everywhere."""
    root.mkdir()
    for name, places in {
        "none": (),
        "start": (1 << 20,),
        "middle": (0, 4 << 20),
        "many": tuple(range(0, 64 << 20, 1 << 20)),
        "end": (0,),
    }.items():
        with open(root / name, "wb") as file:
            for place in places:
                os.pwrite(file.fileno(), os.urandom(4096), place)
            os.ftruncate(file.fileno(), 65 << 20)
    return root


FORMATS = [
    ["--format=gnu"],
    ["--format=pax"],
    ["--format=posix", "--pax-option=delete=ctime"],
]


@pytest.mark.parametrize("options", FORMATS, ids=" ".join)
def test_what_gnu_tar_packs_is_what_it_was(scratch: Path, options: list[str]) -> None:
    source = everything(scratch / "source")
    target, theirs = scratch / "target", scratch / "theirs"
    target.mkdir()
    theirs.mkdir()
    data = gnu_create(source, *options)
    apply_layer(data, target)
    gnu_extract(data, theirs)
    tree.assert_same(tree.snapshot(theirs), tree.snapshot(target))
    if options != ["--format=gnu"]:  # that has neither xattrs nor nanoseconds
        tree.assert_same(tree.snapshot(source), tree.snapshot(target))


def test_gnu_tar_unpacks_what_we_pack(scratch: Path) -> None:
    source, target = everything(scratch / "source"), scratch / "target"
    target.mkdir()
    gnu_extract(pack(source), target)
    expected, found = tree.snapshot(source), tree.snapshot(target)
    # GNU tar has words of its own for ACLs and leaves out those that are written as xattrs.
    for one in (expected, found):
        for entry in one.values():
            for name in [name for name in entry.xattrs if "posix_acl" in name]:
                del entry.xattrs[name]  # type: ignore[attr-defined]
    tree.assert_same(expected, found, ignore=["mode"])


def test_what_we_pack_is_what_it_was_and_the_same_each_time(scratch: Path) -> None:
    source, target = everything(scratch / "source"), scratch / "target"
    target.mkdir()
    data = pack(source)
    apply_layer(data, target)
    tree.assert_same(tree.snapshot(source), tree.snapshot(target))
    assert pack(target) == data == pack(source)


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", None])
def test_sparse_members_keep_their_holes(scratch: Path, version: str | None) -> None:
    source, target = sparse(scratch / "source"), scratch / "target"
    target.mkdir()
    options = ["--format=pax", f"--sparse-version={version}"] if version else ["--format=gnu"]
    data = gnu_create(source, "--sparse", *options)
    assert len(data) < 2 << 20
    assert framed(data, target) == data
    expected = tree.snapshot(source, holes=True)
    ignore = [] if version else ["mtime"]  # of whole seconds
    tree.assert_same(expected, tree.snapshot(target, holes=True), ignore=ignore)


def test_holes_are_packed_as_holes_if_asked_for(scratch: Path) -> None:
    source = sparse(scratch / "source")
    theirs, ours = scratch / "theirs", scratch / "ours"
    theirs.mkdir()
    ours.mkdir()
    data = pack(source, holes=True)
    assert len(data) < 2 << 20
    gnu_extract(data, theirs)
    apply_layer(data, ours)
    for target in (theirs, ours):
        tree.assert_same(tree.snapshot(source, holes=True), tree.snapshot(target, holes=True))


@pytest.mark.parametrize("options", FORMATS, ids=" ".join)
def test_framing_gives_the_same_bytes(scratch: Path, options: list[str]) -> None:
    source, target = everything(scratch / "source"), scratch / "target"
    target.mkdir()
    data = gnu_create(source, *options)
    assert framed(data, target) == data


@pytest.mark.parametrize(
    "compress",
    [gzip.compress, bz2.compress, lzma.compress, zstd.compress, bytes],
    ids=["gzip", "bzip2", "xz", "zstd", "none"],
)
def test_compressed_archives(scratch: Path, compress: object) -> None:
    assert callable(compress)
    data = archive(member("a", data=b"1" * 3_000_000), member("b", data=b"2"))
    middle = 1_000_000
    for number, packed in enumerate(
        [compress(data), compress(data[:middle]) + compress(data[middle:])]
    ):
        target = scratch / str(number)
        target.mkdir()
        apply_layer(packed, target)
        assert (target / "a").read_bytes() == b"1" * 3_000_000
        assert (target / "b").read_bytes() == b"2"


def test_a_compressed_archive_that_is_cut_off_or_broken(scratch: Path) -> None:
    data = archive(member("a", data=os.urandom(100_000)))
    for compress in (gzip.compress, bz2.compress, lzma.compress, zstd.compress):
        packed = compress(data)
        flipped = packed[:50_000] + bytes((packed[50_000] ^ 0xFF,)) + packed[50_001:]
        # Zstandard has a checksum only where it was asked for.
        broken_ones = [packed[:-20], packed[:60_000], packed + b"more"]
        for broken in broken_ones + [flipped] * (compress is not zstd.compress):
            with pytest.raises(ArchiveError):
                apply_layer(broken, _new(scratch))


def _new(scratch: Path) -> Path:
    path = scratch / os.urandom(8).hex()
    path.mkdir()
    return path


def test_an_empty_layer(scratch: Path) -> None:
    before = tree.snapshot(scratch)
    apply_layer(bytes(1024), scratch)
    tree.assert_same(before, tree.snapshot(scratch))


def test_whiteouts_become_overlayfs_ones(scratch: Path) -> None:
    data = archive(
        directory("dir"),
        member("dir/.wh.gone"),
        member("dir/.wh..wh..opq"),
        member(".wh.file"),
        member(".wh.replaced"),
        directory("replaced"),
        member("replaced/new", data=b"new"),
        member("turned", data=b"file"),
        member(".wh.turned"),
        directory("filled"),
        member("filled/in", data=b"in"),
        member(".wh.filled"),
        member("implied/deep/.wh.name"),
    )
    apply_layer(data, scratch, Nothing())
    for name in ("dir/gone", "file", "implied/deep/name"):
        status = os.lstat(scratch / name)
        assert (stat.S_ISCHR(status.st_mode), status.st_rdev) == (True, 0), name
    for name in ("dir", "replaced", "filled"):
        assert os.getxattr(scratch / name, "trusted.overlay.opaque") == b"y", name
    assert (scratch / "turned").read_bytes() == b"file"
    assert sorted(os.listdir(scratch / "filled")) == ["in"]
    assert not [name for name in _names(scratch) if name.startswith(".wh.")]


def _names(path: Path) -> list[str]:
    return [name for _, directories, files in os.walk(path) for name in directories + files]


def test_whiteouts_come_back_out(scratch: Path) -> None:
    first, second = _new(scratch), _new(scratch)
    data = archive(
        directory("dir"), member("dir/.wh..wh..opq"), member("dir/.wh.a"), member(".wh.b")
    )
    apply_layer(data, first, Nothing())
    build.xattr_whiteout(first / "other/c")
    packed = pack(first)
    apply_layer(packed, second, Nothing())
    names = {"dir/a", "b", "other/c"}
    assert all(stat.S_ISCHR(os.lstat(second / name).st_mode) for name in names)
    assert os.getxattr(second / "dir", "trusted.overlay.opaque") == b"y"
    assert pack(second) == packed


def test_whiteouts_of_a_lowest_layer_hide_nothing(scratch: Path) -> None:
    apply_layer(archive(member(".wh.a"), member("dir/.wh..wh..opq"), member("b")), scratch)
    assert sorted(os.listdir(scratch)) == ["b", "dir"]
    assert tree.xattrs(scratch / "dir") == {}


def test_aufs_bookkeeping_is_hidden(scratch: Path) -> None:
    data = archive(
        member(".wh..wh.aufs"),
        directory(".wh..wh.orph"),
        directory(".wh..wh.plnk"),
        member(".wh..wh.plnk/1.2", data=b"linked"),
        directory("dir"),
        link("dir/first", ".wh..wh.plnk/1.2"),
        link("second", ".wh..wh.plnk/1.2"),
        link(".wh.gone", ".wh..wh.aufs"),
    )
    apply_layer(data, scratch, Nothing())
    assert sorted(os.listdir(scratch)) == ["dir", "gone", "second"]
    assert (scratch / "second").read_bytes() == b"linked"
    assert os.path.samefile(scratch / "second", scratch / "dir/first")


def lower_tree(root: Path) -> None:
    build.write(root / "kept/file", "kept")
    build.write(root / "dir/old", "old")
    build.write(root / "dir/sub/old", "old")
    build.write(root / "file", "file")
    build.write(root / "becomes-directory", "file")
    build.write(root / "becomes-file/inside", "inside")
    (root / "link").symlink_to("kept")
    os.setxattr(root / "dir", "user.old", b"1")
    os.utime(root / "kept", ns=(1, 1_000_000_000_000_000_001))


UPPER = archive(
    directory("dir", mode=0o700),
    member("dir/.wh.old"),
    member("dir/sub/new", data=b"new"),
    member("dir/sub/.wh..wh..opq"),
    member(".wh.file"),
    directory("becomes-directory"),
    member("becomes-directory/in", data=b"in"),
    member("becomes-file", data=b"file"),
    member("link/in", data=b"not through the link"),
    member("kept/second", data=b"second"),
    member(".wh.never-was"),
)


def test_a_plain_tree_becomes_what_overlayfs_shows(scratch: Path) -> None:
    """The same archive: applied to a plain tree, and as a layer that the kernel mounts."""
    lower, upper, plain, shown = (scratch / name for name in ("lower", "upper", "plain", "shown"))
    for path in (lower, upper, plain, shown):
        path.mkdir()
    lower_tree(lower)
    subprocess.run(["cp", "-a", f"{lower}/.", str(plain)], check=True)
    with merged((os.fsencode(lower),)) as below:
        apply_layer(UPPER, upper, below)
    apply_plain(UPPER, plain)
    mount("overlay", shown, "overlay", data=f"lowerdir={upper}:{lower}")
    try:
        expected = tree.snapshot(shown)
        tree.assert_same(
            expected, tree.snapshot(plain), ignore=["directory.nlink", "directory.mtime"]
        )
    finally:
        umount(shown)
    assert (plain / "kept/file").read_text() == "kept"
    assert os.stat(plain / "kept").st_mtime_ns == 1_000_000_000_000_000_001
    assert (plain / "dir/sub/new").exists()
    assert not (plain / "dir/sub/old").exists()
    assert not (plain / "link").is_symlink()


def test_directories_that_an_archive_leaves_out_are_those_below(scratch: Path) -> None:
    lower, upper = scratch / "lower", scratch / "upper"
    upper.mkdir()
    build.write(lower / "private/dir/file")
    os.chown(lower / "private", 12, 34)
    (lower / "private").chmod(0o710)
    os.setxattr(lower / "private", "user.kept", b"1")
    os.utime(lower / "private", ns=(1_000_000_000, 2_000_000_000))
    with merged((os.fsencode(lower),)) as below:
        apply_layer(archive(member("private/dir/new")), upper, below)
    found = tree.snapshot(upper)[b"private"]
    assert (found.mode, found.uid, found.gid, found.xattrs) == (0o710, 12, 34, {"user.kept": b"1"})
    assert found.mtime == 2_000_000_000


def test_an_opaque_root_hides_each_name_below(scratch: Path) -> None:
    class Below(Nothing):
        def names(self) -> list[bytes]:
            return [b"a", b"b"]

    apply_layer(archive(member("b"), member(".wh..wh..opq"), member("c")), scratch, Below())
    assert stat.S_ISCHR(os.lstat(scratch / "a").st_mode)
    assert stat.S_ISREG(os.lstat(scratch / "b").st_mode)
    assert sorted(os.listdir(scratch)) == ["a", "b", "c"]


def test_default_acls_and_set_gid_of_the_place_are_not_inherited(scratch: Path) -> None:
    os.setxattr(scratch, "system.posix_acl_default", LIST)
    scratch.chmod(0o2777)
    os.chown(scratch, 5, 5)
    apply_layer(archive(directory("dir"), member("dir/file"), symlink("link", "x")), scratch)
    for name, mode in (("dir", 0o755), ("dir/file", 0o644)):
        status = os.lstat(scratch / name)
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (mode, 0)
        assert tree.xattrs(scratch / name) == {}


def test_acls_in_words() -> None:
    text = "user::rwx,user:1000:r-x,group::r--,group:2000:rw-,mask::rwx,other::---"
    assert acl.from_text(text) == LIST
    stars = "u::rwx\nuser:nobody-here:r-x:1000\ng::r--\ngroup:x:rw-:2000\nm::rwx\no::---\n"
    assert acl.from_text(stars) == LIST
    for bad in ("", "user::rwx", "user::rwx,group::r-z,other::---", "x::r,user::r,group::r"):
        with pytest.raises(ValueError, match=r"\A"):
            acl.from_text(bad)
