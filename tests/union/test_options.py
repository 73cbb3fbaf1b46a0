"""Unions that are read-only, volatile or show another owner."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests import build, system, tree
from tests.mounts import Layers
from tests.system import attempt, in_child
from tests.union.client import opened
from unionfs.errors import LayerError
from unionfs.layer import acl, syscalls

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs_root

Mount = Callable[..., Any]


def everything_that_writes(root: Path) -> dict[str, str | None]:
    operations: dict[str, Callable[[], Any]] = {
        "create": (root / "new").touch,
        "write": lambda: (root / "file").open("r+b"),
        "truncate": lambda: os.truncate(root / "file", 0),
        "mkdir": (root / "new").mkdir,
        "unlink": (root / "file").unlink,
        "rmdir": (root / "empty").rmdir,
        "rename": lambda: (root / "file").rename(root / "new"),
        "link": lambda: os.link(root / "file", root / "new"),
        "symlink": lambda: (root / "new").symlink_to("file"),
        "mkfifo": lambda: os.mkfifo(root / "new"),
        "chmod": lambda: (root / "file").chmod(0o600),
        "chown": lambda: os.chown(root / "file", 1, 1),
        "utime": lambda: os.utime(root / "file"),
        "setxattr": lambda: os.setxattr(root / "file", "user.x", b"1"),
        "removexattr": lambda: os.removexattr(root / "file", "user.kept"),
    }
    return {name: attempt(operation).error for name, operation in operations.items()}


def filled(layers: Layers) -> None:
    build.write(layers.lowers[0] / "file", "lower")
    os.setxattr(layers.lowers[0] / "file", "user.kept", b"1")
    build.write(layers.lowers[1] / "d" / "lowest", "lowest")
    (layers.lowers[0] / "empty").mkdir()


def test_without_an_upper(layers: Layers, union: Mount) -> None:
    filled(layers)
    layers.upper = layers.work = None
    root = union().root
    errors = everything_that_writes(root)
    assert errors == dict.fromkeys(errors, "EROFS")
    assert sorted(os.listdir(root)) == ["d", "empty", "file"]
    assert (root / "d" / "lowest").read_text() == "lowest"


@pytest.mark.usefixtures("ours_only")
def test_one_lower_alone(scratch: Path, union: Mount) -> None:
    layers = Layers(scratch / "one", lowers=1)
    layers.upper = layers.work = None
    build.write(layers.lowers[0] / "file", "lower")
    build.whiteout(layers.lowers[0] / "gone")
    root = union(layers=layers).root
    assert os.listdir(root) == ["file"]


@pytest.mark.usefixtures("ours_only")
def test_read_only_with_an_upper(layers: Layers, union: Mount) -> None:
    filled(layers)
    assert layers.upper is not None
    build.write(layers.upper / "upper", "upper")
    before = tree.snapshot(layers.upper, ctime=True)
    root = union("ro").root
    errors = everything_that_writes(root)
    assert errors == dict.fromkeys(errors, "EROFS")
    assert (root / "upper").read_text() == "upper"
    tree.assert_same(before, tree.snapshot(layers.upper, ctime=True))


@pytest.mark.opens
@pytest.mark.usefixtures("ours_only")
def test_read_only_holds_against_a_remount(layers: Layers, union: Mount) -> None:
    """The kernel turns a FUSE mount read-write without a word to the daemon."""
    filled(layers)
    root = union("ro").root
    system.mount(None, root, None, system.MS_REMOUNT)
    errors = everything_that_writes(root)
    assert errors == dict.fromkeys(errors, "EROFS")


def test_access_times_of_lowers_stay(layers: Layers, union: Mount) -> None:
    filled(layers)
    root = union().root
    for path in (layers.lowers[0], layers.lowers[0] / "file"):
        os.utime(path, ns=(10**18, 10**18 + 1))
    layers.lower_may_change = True
    (root / "file").read_text()
    os.listdir(root)
    for path in (layers.lowers[0], layers.lowers[0] / "file"):
        assert path.stat().st_atime_ns == 10**18


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("option", ["volatile", "fsync=0"])
def test_volatile(layers: Layers, union: Mount, option: str) -> None:
    filled(layers)
    assert layers.work is not None
    marker = layers.work / "work" / "incompat" / "volatile"
    mounted = union(option)
    assert marker.is_dir()
    fd = os.open(mounted.root / "file", os.O_RDWR)
    os.write(fd, b"x")
    os.fsync(fd)
    os.close(fd)
    mounted.unmount()
    assert marker.is_dir()
    with pytest.raises(AssertionError, match="volatile"):
        union()
    marker.rmdir()
    assert (union().root / "file").read_text() == "xower"


@pytest.mark.usefixtures("ours_only")
def test_volatile_marker_of_the_kernel_is_honoured(
    layers: Layers, union: Mount, kernel: Callable[..., Any]
) -> None:
    filled(layers)
    kernel(options="volatile").unmount()
    with pytest.raises(AssertionError, match="volatile"):
        union()


SQUASHES = {
    "squash_to_root": (0, 0),
    "squash_to_uid=77,squash_to_gid=88": (77, 88),
    "squash_to_uid=77": (77, 2),
    "squash_to_gid=88": (1, 88),
}


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("option", SQUASHES)
def test_squash_shows_another_owner(layers: Layers, union: Mount, option: str) -> None:
    filled(layers)
    os.chown(layers.lowers[0] / "file", 1, 2)
    mounted = union(option)
    status = (mounted.root / "file").stat()
    assert (status.st_uid, status.st_gid) == SQUASHES[option]
    (mounted.root / "file").chmod(0o600)
    (mounted.root / "new").touch()
    for name in ("file", "new"):
        status = (mounted.root / name).stat()
        if "uid" in option or "root" in option:
            assert status.st_uid == SQUASHES[option][0]
        if "gid" in option or "root" in option:
            assert status.st_gid == SQUASHES[option][1]
    mounted.unmount()
    assert layers.upper is not None
    status = (layers.upper / "new").stat()
    assert (status.st_uid, status.st_gid) == (0, 0)


ACL = acl.from_text("user::rw-,user:5:rw-,group::r--,mask::rw-,other::---")


@pytest.mark.usefixtures("ours_only")
def test_without_acls(layers: Layers, union: Mount) -> None:
    filled(layers)
    lower = layers.lowers[0]
    os.setxattr(lower / "file", "system.posix_acl_access", ACL)
    os.setxattr(lower / "empty", "system.posix_acl_default", ACL)
    (lower / "empty").chmod(0o777)

    def write(root: Path) -> str | None:
        return attempt(lambda: os.close(os.open(root / "file", os.O_RDWR))).error

    mounted = union()
    assert in_child(lambda: write(mounted.root), uid=5) is None
    mounted.unmount()
    mounted = union("noacl")
    root = mounted.root
    assert in_child(lambda: write(root), uid=5) == "EACCES"
    assert os.listxattr(root / "file") == ["user.kept"]
    assert attempt(os.getxattr, root / "file", "system.posix_acl_access").error in (
        "ENODATA",
        "ENOTSUP",
    )
    assert attempt(os.setxattr, root / "file", "system.posix_acl_access", ACL).error == "ENOTSUP"
    in_child(lambda: (os.umask(0o027), (root / "empty" / "new").touch(0o666)), uid=7)
    assert (root / "empty" / "new").stat().st_mode & 0o777 == 0o640, "the umask's, not the ACL's"
    (root / "file").write_text("copied up")
    mounted.unmount()
    # They are not lost, either: a mount without the option has them again.
    assert os.getxattr(union().root / "file", "system.posix_acl_access") == ACL


@pytest.mark.usefixtures("ours_only")
def test_without_extended_attributes(layers: Layers, union: Mount) -> None:
    filled(layers)
    mounted = union("noxattrs=1")
    file = mounted.root / "file"
    for operation in (
        lambda: os.listxattr(file),
        lambda: os.getxattr(file, "user.kept"),
        lambda: os.setxattr(file, "user.new", b"1"),
        lambda: os.removexattr(file, "user.kept"),
    ):
        assert attempt(operation).error == "ENOTSUP"
    file.write_text("changed")
    mounted.unmount()
    assert os.getxattr(union().root / "file", "user.kept") == b"1", "copied up with the file"


@pytest.mark.usefixtures("ours_only")
def test_directories_of_one_link(layers: Layers, union: Mount) -> None:
    for name in ("a", "b", "c"):
        (layers.lowers[0] / "dir" / name).mkdir(parents=True)
    os.link(build.write(layers.lowers[0] / "one"), layers.lowers[0] / "two")
    mounted = union()
    assert (mounted.root / "dir").stat().st_nlink == 5
    mounted.unmount()
    root = union("static_nlink").root
    assert (root / "dir").stat().st_nlink == root.stat().st_nlink == 1
    assert (root / "one").stat().st_nlink == 2
    (root / "dir" / "d").mkdir()
    assert (root / "dir").stat().st_nlink == 1


@pytest.mark.usefixtures("ours_only")
def test_numbers_of_32_bits(layers: Layers, union: Mount) -> None:
    """Also those of layers of several file systems, of which none is shown twice."""
    filled(layers)
    system.mount("tmpfs", layers.lowers[1], "tmpfs")
    layers.lower_may_change = True
    for index in range(20):
        build.write(layers.lowers[1] / f"memory{index}", "x")
    root = union("ino32_t").root
    numbers = [path.stat().st_ino for path in root.rglob("*")]
    assert max(numbers) < 2**32
    assert len(set(numbers)) == len(numbers) == 22
    assert (root / "file").stat().st_ino == (layers.lowers[0] / "file").stat().st_ino
    listing = system.Listing(root)
    for name, number, _ in listing.rest():
        if name not in (b".", b".."):
            assert number == (root / os.fsdecode(name)).stat().st_ino
    listing.close()
    (root / "memory1").write_text("copied up")
    assert (root / "memory1").stat().st_ino in numbers


@pytest.mark.usefixtures("ours_only")
def test_upper_that_cannot_exchange_names_is_refused(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS answers renameat2(2); the work directory is left as it was."""

    def refuses(*arguments: int | bytes) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(syscalls, "renameat2", refuses)
    with pytest.raises(LayerError, match=r"upperdir=.*cannot exchange two names"), opened(layers):
        pass
    assert os.listdir(layers.work or "") == []


@pytest.mark.usefixtures("ours_only")
def test_upper_that_another_mount_writes_is_refused(
    layers: Layers, union: Mount, scratch: Path
) -> None:
    filled(layers)
    union()
    second = Layers(scratch / "second")
    second.upper = layers.upper
    with pytest.raises(AssertionError, match="upperdir="):
        union(layers=second)
    second.upper, second.work = scratch / "second" / "upper", layers.work
    with pytest.raises(AssertionError, match="workdir="):
        union(layers=second)
    assert layers.upper is not None
    second.upper = second.work = None
    second.lowers.insert(0, layers.upper)
    second.lower_may_change = True
    assert os.listdir(union(layers=second).root) == []


@pytest.mark.usefixtures("ours_only")
def test_workdir_holds_only_what_the_kernel_has(layers: Layers, union: Mount) -> None:
    filled(layers)
    mounted = union()
    (mounted.root / "file").write_text("x")
    (mounted.root / "d").rename(mounted.root / "e")
    mounted.unmount()
    assert layers.work is not None
    assert sorted(os.listdir(layers.work)) == ["index", "work"]
    assert os.listdir(layers.work / "work") == []


@pytest.mark.usefixtures("ours_only")
def test_leftovers_in_the_workdir_are_cleared(layers: Layers, union: Mount) -> None:
    filled(layers)
    assert layers.work is not None
    build.write(layers.work / "work" / "left" / "deep" / "file", "left")
    build.whiteout(layers.work / "work" / "#1")
    subject = layers.work / "work" / "unreadable"
    subject.mkdir(mode=0)
    mounted = union()
    (mounted.root / "file").write_text("x")
    mounted.unmount()
    assert os.listdir(layers.work / "work") == []


@pytest.mark.usefixtures("ours_only")
def test_unknown_session_names_are_refused(layers: Layers, union: Mount) -> None:
    with pytest.raises(AssertionError, match="session"):
        union("session=nonsense")
    assert os.listdir(layers.merged) == []
