"""Owners, modes and types that a layer keeps in an attribute, as engines have it (`force_mask`).

What is on the disk is checked byte by byte; fuse-overlayfs reads what we write and writes what
we read, as far as it knows the form.
"""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import build, system, tree
from tests.mounts import Layers
from tests.oracle import settle
from tests.ordinary import USER, as_user
from tests.system import attempt, in_child
from unionfs.layer import acl
from unionfs.layer.override import Recorded, parse

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

Mount = Callable[..., Any]

CONTAINERS = "user.containers.override_stat"
PRIVILEGED = "security.fuseoverlayfs.override_stat"
OLDER = "user.fuseoverlayfs.override_stat"
#: `xattr_permissions=` and where the upper then keeps owners.
FORMS = {"1": PRIVILEGED, "2": CONTAINERS}
CAPABILITY = bytes.fromhex("0100000202000000000000000000000000000000")
NOBODY = 65534


def kept(path: Path, value: str, name: str = CONTAINERS, mode: int = 0o755) -> Path:
    """Let a file or directory of a layer be what *value* says."""
    path.chmod(mode)
    os.setxattr(path, name, value.encode())
    return path


def value(path: Path, name: str = CONTAINERS) -> str:
    return os.getxattr(path, name, follow_symlinks=False).decode()


def seen(path: Path) -> tuple[int, int, str]:
    status = path.lstat()
    return status.st_uid, status.st_gid, stat.filemode(status.st_mode)


def fill(layer: Path, name: str = CONTAINERS) -> None:
    """What an engine leaves of a layer: all is root's and 0755, attributes say what it is."""
    kept(layer, "0:0:0755:dir", name)
    kept(build.write(layer / "file", "content"), "1:2:0640:file", name)
    kept(build.write(layer / "suid", "x"), "0:4:4750:file", name)
    kept(build.write(layer / "three"), "7:8:600", name)
    kept(build.write(layer / "null"), "0:0:0666:char-1-3", name)
    kept(build.write(layer / "disk"), "0:6:0660:block-8-16", name)
    kept(build.write(layer / "pipe"), "5:5:0600:pipe", name)
    kept(build.write(layer / "sock"), "5:5:0777:socket", name)
    (layer / "dir").mkdir()
    kept(layer / "dir", "9:9:1777:dir", name)
    kept(build.write(layer / "dir" / "inner", "inner"), "9:9:0444:file", name)
    os.symlink("file", layer / "link")
    os.lchown(layer / "link", 3, 4)
    build.write(layer / "plain", "no attribute", 0o600)


SEEN = {
    "file": (1, 2, "-rw-r-----"),
    "suid": (0, 4, "-rwsr-x---"),
    "three": (7, 8, "-rw-------"),
    "null": (0, 0, "crw-rw-rw-"),
    "disk": (0, 6, "brw-rw----"),
    "pipe": (5, 5, "prw-------"),
    "sock": (5, 5, "srwxrwxrwx"),
    "dir": (9, 9, "drwxrwxrwt"),
    "dir/inner": (9, 9, "-r--r--r--"),
    "link": (3, 4, "lrwxrwxrwx"),
    "plain": (0, 0, "-rw-------"),
}


def show(root: Path) -> dict[str, tuple[int, int, str]]:
    return {name: seen(root / name) for name in SEEN}


@pytest.mark.parametrize("name", [CONTAINERS, PRIVILEGED, OLDER])
def test_a_lower_tells_by_its_root(layers: Layers, union: Mount, name: str) -> None:
    fill(layers.lowers[0], name)
    kept(build.write(layers.lowers[1] / "below", "x"), "1:1:0600:file", name)
    root = union().root
    assert show(root) == SEEN
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert (root / "disk").stat().st_rdev == os.makedev(8, 16)
    assert seen(root / "below") == (0, 0, "-rwxr-xr-x"), "its layer's root says nothing"
    for path in ("file", "dir", "."):
        assert name not in os.listxattr(root / path)
        assert attempt(os.getxattr, root / path, name).error == "ENODATA"


def test_types_in_listings(layers: Layers, union: Mount) -> None:
    """With attributes, and without, as directories are listed that nobody looks into."""
    fill(layers.lowers[0])
    for index in range(4):
        (layers.lowers[0] / f"{index}").mkdir()
        kept(layers.lowers[0] / f"{index}", "0:0:0755:dir")
        kept(build.write(layers.lowers[0] / f"{index}" / "null"), "0:0:0666:char-1-3")
        kept(build.write(layers.lowers[0] / f"{index}" / "file"), "0:0:0666:file")
        os.symlink("x", layers.lowers[0] / f"{index}" / "link")
    root = union().root
    for index in range(4):
        listing = system.Listing(root / f"{index}")
        listed = {entry: kind for entry, _, kind in listing.rest()}
        listing.close()
        assert listed[b"null"] == stat.S_IFCHR >> 12
        assert listed[b"file"] == stat.S_IFREG >> 12
        assert listed[b"link"] == stat.S_IFLNK >> 12


def test_permissions_are_those_that_are_kept(layers: Layers, union: Mount) -> None:
    fill(layers.lowers[0])
    root = union().root
    for uid, allowed in ((1, True), (NOBODY, False)):
        found = in_child(lambda: attempt((root / "file").read_text), uid=uid, gid=uid)
        assert (found.error is None) == allowed
    (root / "null").write_bytes(b"gone")
    assert (root / "null").read_bytes() == b"", "it is the device"


@pytest.mark.parametrize("form", FORMS)
def test_what_is_copied_up_keeps_it(layers: Layers, union: Mount, form: str) -> None:
    """From a layer that keeps it in inodes, and from one that does not, to both sorts."""
    fill(layers.lowers[0])
    for name in ("c", "fifo", "reg"):
        (layers.lowers[1] / name).parent.mkdir(exist_ok=True)
    os.mknod(layers.lowers[1] / "c", stat.S_IFCHR | 0o620, os.makedev(1, 5))
    os.mkfifo(layers.lowers[1] / "fifo")
    (layers.lowers[1] / "c").chmod(0o620)
    (layers.lowers[1] / "fifo").chmod(0o604)
    build.write(layers.lowers[1] / "reg", "x", 0o4711)
    os.chown(layers.lowers[1] / "reg", 3, 4)
    (layers.lowers[1] / "reg").chmod(0o4711)
    layers.lower_may_change = False
    mounted = union(f"xattr_permissions={form}")
    before = tree.snapshot(mounted.root)
    for name in (*SEEN, "c", "fifo", "reg"):
        os.utime(mounted.root / name, follow_symlinks=False)
    after = tree.snapshot(mounted.root)
    tree.assert_same(before, after, ignore=("mtime", "directory.nlink"))
    mounted.unmount()
    upper = layers.upper
    assert upper is not None
    assert value(upper / "file", FORMS[form]) == "1:2:0640:file"
    assert value(upper / "suid", FORMS[form]) == "0:4:4750:file"
    assert value(upper / "null", FORMS[form]) == "0:0:0666:char-1-3"
    assert value(upper / "c", FORMS[form]) == "0:0:0620:char-1-5"
    assert value(upper / "fifo", FORMS[form]) == "0:0:0604:pipe"
    assert value(upper / "reg", FORMS[form]) == "3:4:4711:file"
    assert value(upper / "dir", FORMS[form]) == "9:9:1777:dir"
    if form == "1":
        assert value(upper / "link", PRIVILEGED) == "3:4:0777:symlink"
    else:
        assert seen(upper / "link")[:2] == (3, 4)
    for path in {upper, *upper.rglob("*")} - {upper / "link"}:
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0)
        assert stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o755, path
    tree.assert_same(after, tree.snapshot(union(f"xattr_permissions={form}").root))


def test_out_of_such_a_layer_into_a_usual_one(layers: Layers, union: Mount) -> None:
    fill(layers.lowers[0])
    mounted = union()
    for name in SEEN:
        os.utime(mounted.root / name, follow_symlinks=False)
    assert show(mounted.root) == SEEN
    mounted.unmount()
    assert layers.upper is not None
    assert show(layers.upper) == SEEN, "real owners, modes and devices"
    assert (layers.upper / "null").stat().st_rdev == os.makedev(1, 3)
    assert [name for name in os.listxattr(layers.upper / "file") if "override" in name] == []


@pytest.mark.parametrize("form", FORMS)
def test_what_is_made(layers: Layers, union: Mount, form: str) -> None:
    name = FORMS[form]
    assert layers.upper is not None
    build.write(layers.lowers[0] / "d" / "below", "x")
    (layers.lowers[0] / "d").chmod(0o2777)
    os.chown(layers.lowers[0] / "d", 0, 77)
    (layers.lowers[0] / "d").chmod(0o2777)
    mounted = union(f"xattr_permissions={form}")
    root = mounted.root
    root.chmod(0o777)

    def make() -> None:
        os.umask(0o027)
        (root / "file").write_text("x")
        (root / "dir").mkdir()
        os.mkfifo(root / "pipe")
        os.symlink("file", root / "sym")
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.fspath(root / "sock"))
        (root / "d" / "file").write_text("x")
        (root / "d" / "dir").mkdir()

    in_child(make, uid=12, gid=34)
    os.umask(0)
    os.mknod(root / "device", stat.S_IFCHR | 0o640, os.makedev(1, 7))
    os.umask(0o022)
    expected = {
        "file": (12, 34, "-rw-r-----"),
        "dir": (12, 34, "drwxr-x---"),
        "pipe": (12, 34, "prw-r-----"),
        "sock": (12, 34, "srwxr-x---"),
        "d/file": (12, 77, "-rw-r-----"),
        "d/dir": (12, 77, "drwxr-s---"),
        "device": (0, 0, "crw-r-----"),
    }
    for _ in range(2):
        assert {one: seen(root / one) for one in expected} == expected
        assert (root / "device").stat().st_rdev == os.makedev(1, 7)
        assert os.readlink(root / "sym") == "file"
        mounted.unmount()
        mounted = union(f"xattr_permissions={form}")
    upper = layers.upper
    assert value(upper / "file", name) == "12:34:0640:file"
    assert value(upper / "device", name) == "0:0:0640:char-1-7"
    assert value(upper / "sock", name) == "12:34:0750:socket"
    assert value(upper / "d" / "dir", name) == "12:77:2750:dir"
    assert value(upper, name) == "0:0:0777:dir"
    for one in expected:
        assert seen(upper / one)[:2] == (0, 0)


@pytest.mark.device_session
def test_files_without_a_name(layers: Layers, union: Mount) -> None:
    root = union("xattr_permissions=2").root
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o604)
    os.fchown(fd, 3, 4)
    here = os.open(root, os.O_RDONLY)
    os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=here, follow_symlinks=True)
    os.close(here)
    os.close(fd)
    assert seen(root / "named") == (3, 4, "-rw----r--")
    assert layers.upper is not None
    assert value(layers.upper / "named") == "3:4:0604:file"


OPERATIONS: dict[str, Callable[[Path], Any]] = {
    "chmod": lambda root: (root / "file").chmod(0o4611),
    "chown": lambda root: os.chown(root / "file", 100, 200),
    "chgrp of a set-uid program": lambda root: os.chown(root / "suid", -1, 200),
    "chown of a symbolic link": lambda root: os.lchown(root / "link", 5, 6),
    "chown of a directory": lambda root: os.chown(root / "dir", 5, 6),
    "chmod of a directory": lambda root: (root / "dir").chmod(0o3700),
    "chmod of a fifo": lambda root: (root / "pipe").chmod(0o644),
    "chown of a device": lambda root: os.chown(root / "null", 5, 6),
    "write to a set-uid program": lambda root: (root / "suid").write_text("longer"),
    "append": lambda root: _append(root / "file"),
    "truncate": lambda root: os.truncate(root / "suid", 0),
    "rename": lambda root: (root / "file").rename(root / "dir" / "moved"),
    "rename of a directory": lambda root: (root / "dir").rename(root / "moved"),
    "link": lambda root: os.link(root / "file", root / "second"),
    "link to a device": lambda root: os.link(root / "null", root / "second"),
    "unlink": lambda root: (root / "null").unlink(),
    "remove and make again": lambda root: _other_kind(root / "file"),
    "a directory in place of one": lambda root: _again(root / "dir"),
    "a program with a capability": lambda root: os.setxattr(
        root / "three", "security.capability", CAPABILITY
    ),
    "user attributes": lambda root: os.setxattr(root / "file", "user.note", b"x"),
}


def _append(path: Path) -> None:
    with path.open("a") as file:
        file.write("more")


def _other_kind(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _again(path: Path) -> None:
    (path / "inner").unlink()
    path.rmdir()
    path.mkdir(0o711)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_come_to_the_same(scratch: Path, union: Mount, operation: str) -> None:
    """As on layers whose inodes have all of it: only where it is kept differs."""
    usual, overriding = Layers(scratch / "usual"), Layers(scratch / "overriding")
    made = Layers(scratch / "made", lowers=1)
    fill(made.lowers[0])
    made.upper = made.work = None
    fill(overriding.lowers[0])
    source = union(layers=made)
    subprocess.run(["cp", "-a", f"{source.root}/.", usual.lowers[0]], check=True)
    source.unmount()
    settle(*usual.lowers, *overriding.lowers, usual.upper, overriding.upper)
    expected, found = union(layers=usual), union("xattr_permissions=2", layers=overriding)
    outcomes = [attempt(OPERATIONS[operation], one.root).error for one in (expected, found)]
    assert outcomes[0] == outcomes[1]
    for _ in range(2):
        one, other = (tree.snapshot(mounted.root) for mounted in (expected, found))
        tree.assert_same(one, other, ignore=("mtime",))
        expected.unmount()
        found.unmount()
        expected = union(layers=usual)
        found = union("xattr_permissions=2", layers=overriding)


def test_the_mask_is_that_of_the_uppers_root(layers: Layers, union: Mount) -> None:
    assert layers.upper is not None
    kept(layers.upper, "0:0:0755:dir", mode=0o700)
    build.write(layers.lowers[0] / "lower", "x", 0o644)
    root = union("xattr_permissions=2").root
    (root / "file").write_text("x")
    (root / "lower").chmod(0o666)
    assert seen(root)[2] == "drwxr-xr-x"
    for name in ("file", "lower"):
        assert stat.S_IMODE((layers.upper / name).stat().st_mode) == 0o700


def test_an_upper_goes_on_in_its_own_form(layers: Layers, union: Mount) -> None:
    """One that an older fuse-overlayfs has begun, or one without the option."""
    assert layers.upper is not None
    fill(layers.upper, OLDER)
    for options in ("xattr_permissions=2", ""):
        mounted = union(options)
        (mounted.root / f"new{len(options)}").touch()
        (mounted.root / "file").chmod(0o600)
        assert seen(mounted.root / "file") == (1, 2, "-rw-------")
        mounted.unmount()
        assert value(layers.upper / f"new{len(options)}", OLDER) == "0:0:0644:file"
        assert CONTAINERS not in os.listxattr(layers.upper / "file")


def test_a_layer_begun_by_an_engine_and_written_by_an_older_program(
    layers: Layers, union: Mount
) -> None:
    fill(layers.lowers[0])
    kept(build.write(layers.lowers[0] / "older", "x"), "44:55:100604", OLDER)
    root = union().root
    assert seen(root / "older") == (44, 55, "-rw----r--"), "its mode tells the type, too"
    assert os.listxattr(root / "older") == []


@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        ("0:0:0755:dir", None),
        ("1:2:644", Recorded(1, 2, stat.S_IFREG | 0o644)),
        ("1:2:100644", Recorded(1, 2, stat.S_IFREG | 0o644)),
        ("1:2:4711:file", Recorded(1, 2, stat.S_IFREG | 0o4711)),
        ("4294967294:0:0000:pipe", Recorded(4294967294, 0, stat.S_IFIFO)),
        ("0:0:0660:block-8-0", Recorded(0, 0, stat.S_IFBLK | 0o660, os.makedev(8, 0))),
        ("0:0:0660:block8:0", Recorded(0, 0, stat.S_IFBLK | 0o660, os.makedev(8, 0))),
        ("0:0:0666:char-1-3", Recorded(0, 0, stat.S_IFCHR | 0o666, os.makedev(1, 3))),
        ("0:0:0777:symlink", Recorded(0, 0, stat.S_IFREG | 0o777)),
    ],
)
def test_values_of_every_form(tmp_path: Path, text: str, recorded: Recorded | None) -> None:
    file = build.write(tmp_path / "file")
    found = parse(text.encode(), file.stat())
    if recorded is None:
        # What says of itself that it is a directory is the file that it is.
        assert found == Recorded(0, 0, stat.S_IFREG | 0o755)
        assert parse(text.encode(), tmp_path.stat()).mode == stat.S_IFDIR | 0o755
        return
    assert found == recorded
    assert parse(found.packed(), file.stat()) == found


TOO_LARGE = [
    "4294967295:0:644",
    "0:9999999999:644",
    "0:0:600:char-4096-0",
    "0:0:600:block-1-1048576",
]


@pytest.mark.parametrize(
    "text", ["", "0:0", "a:0:644", "0:0:999", "0:0:644:bogus", "-1:0:644", *TOO_LARGE]
)
def test_a_malformed_value_is_an_error_and_not_root(
    layers: Layers, union: Mount, text: str
) -> None:
    fill(layers.lowers[0])
    os.setxattr(layers.lowers[0] / "file", CONTAINERS, text.encode())
    root = union().root
    assert attempt((root / "file").stat).error == "EINVAL"
    assert "file" in os.listdir(root)
    assert (root / "dir" / "inner").read_text() == "inner"


def test_private_names_are_kept_under_the_engines_prefix(layers: Layers, union: Mount) -> None:
    root = union("xattr_permissions=2").root
    (root / "program").touch()
    assert layers.upper is not None
    names = ("security.capability", "security.other", "trusted.overlay.opaque", "user.overlay.x")
    for name in names:
        content = CAPABILITY if name == "security.capability" else b"y"
        os.setxattr(root / "program", name, content)
        assert os.getxattr(root / "program", name) == content
        assert os.getxattr(layers.upper / "program", f"user.containers.override_{name}") == content
    assert set(names) == set(os.listxattr(root / "program"))
    os.setxattr(layers.upper / "program", "security.selinux.of.the.host", b"x")
    assert set(names) == set(os.listxattr(root / "program"))
    os.removexattr(root / "program", "security.other")
    assert "security.other" not in os.listxattr(root / "program")
    for name in (CONTAINERS, "user.containers.override_x"):
        assert attempt(os.setxattr, root / "program", name, b"0:0:0777").error == "EPERM"
        assert attempt(os.removexattr, root / "program", name).error == "EPERM"
    longest = "security." + "x" * (255 - len("user.containers.override_security."))
    os.setxattr(root / "program", longest, b"1")
    assert attempt(os.setxattr, root / "program", longest + "x", b"1").error == "EPERM"


@pytest.mark.parametrize("name", [CONTAINERS, PRIVILEGED, OLDER])
def test_users_of_a_usual_layer_cannot_make_it_one(layers: Layers, union: Mount, name: str) -> None:
    """The next mount would believe them: root's set-id bits and disks, written by anybody."""
    build.write(layers.lowers[0] / "file", "x")
    root = union().root
    assert attempt(os.setxattr, root, name, b"0:0:0755:dir").error == "EPERM"
    assert layers.upper is not None
    assert name not in os.listxattr(layers.upper)
    if name == CONTAINERS:  # what an engine inside of a container keeps is its own
        os.setxattr(root / "file", name, b"0:0:4755:file")
        assert os.getxattr(root / "file", name) == b"0:0:4755:file"


def test_there_are_no_acls(layers: Layers, union: Mount) -> None:
    """They would change the modes that the mask has set; see docs/semantics.md."""
    build.write(layers.lowers[0] / "file", "x")
    entries = acl.from_text("user::rwx,user:5:rwx,group::r--,mask::rwx,other::---")
    os.setxattr(layers.lowers[0] / "file", "system.posix_acl_access", entries)
    root = union("xattr_permissions=2").root
    assert (
        attempt(os.setxattr, root / "file", "system.posix_acl_access", entries).error == "ENOTSUP"
    )
    (root / "file").chmod(0o640)
    assert os.listxattr(root / "file") == []
    assert layers.upper is not None
    assert "system.posix_acl_access" not in os.listxattr(layers.upper / "file")


def test_whiteouts_stay_what_they_are(layers: Layers, union: Mount) -> None:
    fill(layers.lowers[1])
    kept(layers.lowers[0], "0:0:0755:dir")
    build.whiteout(layers.lowers[0] / "file")
    mounted = union("xattr_permissions=2")
    assert not (mounted.root / "file").exists()
    (mounted.root / "null").unlink()
    (mounted.root / "dir" / "inner").unlink()
    (mounted.root / "dir").rmdir()
    (mounted.root / "dir").mkdir()
    mounted.unmount()
    assert layers.upper is not None
    status = (layers.upper / "null").lstat()
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == 0
    mounted = union("xattr_permissions=2")
    assert os.listdir(mounted.root / "dir") == []
    assert not (mounted.root / "null").exists()


def test_ids_that_are_kept_are_mapped(layers: Layers, union: Mount) -> None:
    fill(layers.lowers[0])
    mounted = union("xattr_permissions=2,uidmapping=0:1000:100,gidmapping=0:2000:100")
    assert seen(mounted.root / "file")[:2] == (1001, 2002)
    os.chown(mounted.root / "file", 1050, 2060)
    with pytest.raises(OSError, match="too large"):
        os.chown(mounted.root / "file", 50, -1)
    in_child((mounted.root / "dir" / "new").touch, uid=1007, gid=2007)
    mounted.unmount()
    assert layers.upper is not None
    assert value(layers.upper / "file") == "50:60:0640:file"
    assert value(layers.upper / "dir" / "new") == "7:7:0644:file"


def test_without_privilege(layers: Layers, rootless: Callable[..., Any]) -> None:
    """As engines of ordinary users have it: owners that nobody could give."""
    mounted = rootless("xattr_permissions=2")
    root = mounted.root

    def use() -> tuple[int, int, str]:
        (root / "file").write_text("x")
        (root / "file").chmod(0o4711)
        (root / "dir").mkdir()
        (root / "dir").chmod(0)
        return seen(root / "file")

    assert as_user(use) == (USER, USER, "-rws--x--x")
    mounted.unmount()
    assert layers.upper is not None
    assert value(layers.upper / "file") == f"{USER}:{USER}:4711:file"
    assert value(layers.upper / "dir") == f"{USER}:{USER}:0000:dir"
    assert stat.S_IMODE((layers.upper / "file").stat().st_mode) & 0o7700 == 0o700


def test_where_an_upper_cannot_keep_owners_it_is_refused(layers: Layers, union: Mount) -> None:
    """In memory, say, before Linux 6.6; or a disk that has no room for another attribute."""
    assert layers.upper is not None
    for size in (1000, 100, 10, 0):
        for number in range(60):
            name = f"user.filler{size}-{number}"
            if attempt(os.setxattr, layers.upper, name, b"x" * size).error is not None:
                break
    with pytest.raises(AssertionError, match=r"upperdir=.*cannot keep owners in user.containers"):
        union("xattr_permissions=2")
    assert os.listdir(layers.merged) == []


def plain(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """Owner and mode of what fuse-overlayfs 1.10 has overridden: files and directories."""
    found = tree.snapshot(root)
    return {
        name: (one.kind, one.mode, one.uid, one.gid, one.content)
        for name, one in found.items()
        if one.kind in ("file", "directory")
    }


def test_fuse_overlayfs_reads_what_we_wrote(
    layers: Layers, union: Mount, fuse_overlayfs: Callable[..., Any], scratch: Path
) -> None:
    mounted = union("xattr_permissions=2")
    root = mounted.root
    for number, mode in enumerate((0o600, 0o4755, 0o2711, 0o444, 0o000)):
        build.write(root / "d" / f"f{number}", "x")
        os.chown(root / "d" / f"f{number}", number, number + 10)
        (root / "d" / f"f{number}").chmod(mode)
    (root / "d").chmod(0o1777)
    expected = plain(root)
    mounted.unmount()
    assert layers.upper is not None
    theirs = Layers(scratch / "theirs", lowers=1)
    theirs.lowers = [layers.upper]
    theirs.upper = theirs.work = None
    found = plain(fuse_overlayfs(layers=theirs).root)
    assert found == expected


def test_we_read_what_fuse_overlayfs_wrote(
    layers: Layers, union: Mount, fuse_overlayfs: Callable[..., Any]
) -> None:
    """It writes the older name, whole modes, and devices as they are."""
    mounted = fuse_overlayfs(options="xattr_permissions=2")
    root = mounted.root
    (root / "d").mkdir()
    for number, mode in enumerate((0o600, 0o4755, 0o711)):
        build.write(root / "d" / f"f{number}", "x")
        os.chown(root / "d" / f"f{number}", number, number + 10)
        (root / "d" / f"f{number}").chmod(mode)
    os.chown(root / "d", 21, 22)
    expected = plain(root)
    mounted.unmount()
    assert layers.upper is not None
    assert OLDER in os.listxattr(layers.upper)
    mounted = union("xattr_permissions=2")
    assert plain(mounted.root) == expected
    os.chown(mounted.root / "d" / "f0", 77, 78)
    build.write(mounted.root / "new", "x", 0o604)
    expected = plain(mounted.root)
    mounted.unmount()
    assert plain(fuse_overlayfs(options="xattr_permissions=2").root) == expected
