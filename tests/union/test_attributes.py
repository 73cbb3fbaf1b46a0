"""Owners, modes, times, xattrs, ACLs, and who may do what."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import xattr

from tests import build, system
from tests.oracle import OLD, Pair
from tests.system import Outcome, attempt, in_child

if TYPE_CHECKING:
    from tests.mounts import Layers

pytestmark = [pytest.mark.needs_root, pytest.mark.kernel_overlay]
#: How files are opened matters here.
OPENLESS_TOO = True

Make = Callable[..., Pair]

ALICE, BOB, STAFF = 4001, 4002, 4100

NAMED = build.acl(
    (build.USER_OBJ, 7, build.NO_ID),
    (build.USER, 7, ALICE),
    (build.GROUP_OBJ, 0, build.NO_ID),
    (build.MASK, 7, build.NO_ID),
    (build.OTHER, 0, build.NO_ID),
)


def people(layers: Layers) -> None:
    """Files of several owners, in a lower."""
    lower = layers.lowers[0]
    for layer in (*layers.lowers, layers.upper):
        assert layer is not None
        layer.chmod(0o777)
    for name, uid, mode in (
        ("alice", ALICE, 0o600),
        ("alice-shared", ALICE, 0o664),
        ("bob", BOB, 0o640),
        ("root", 0, 0o644),
        ("suid", ALICE, 0o6755),
        ("sgid", ALICE, 0o2775),
        ("for-alice", 0, 0o700),
    ):
        build.write(lower / name, name)
        os.chown(lower / name, uid, STAFF)
        (lower / name).chmod(mode)
    os.setxattr(lower / "for-alice", "system.posix_acl_access", NAMED)
    for name, uid, mode in (
        ("home", ALICE, 0o755),
        ("sticky", 0, 0o1777),
        ("setgid", ALICE, 0o2775),
        ("closed", BOB, 0o700),
    ):
        (lower / name).mkdir()
        for who, owner in (("alice", ALICE), ("bob", BOB)):
            build.write(lower / name / who, who)
            os.chown(lower / name / who, owner, STAFF)
        os.chown(lower / name, uid, STAFF)
        (lower / name).chmod(mode)


def as_user(
    both: Pair, uid: int, operation: Callable[[Path], Any], groups: tuple[int, ...] = ()
) -> Outcome:
    """Run *operation* on both as another user."""

    def run(root: Path) -> Any:
        return in_child(lambda: operation(root), uid=uid, gid=uid, groups=groups)

    return both.same(run)


def _append(path: Path) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(b"more")


OPERATIONS: dict[str, Callable[[Path], Any]] = {
    "read": lambda path: path.read_bytes() if path.is_file() else sorted(os.listdir(path)),
    "write": lambda path: path.write_text("changed"),
    "append": _append,
    "chmod": lambda path: path.chmod(0o7777),
    "chmod_suid_off": lambda path: path.chmod(0o755),
    "chown_self": lambda path: os.chown(path, os.getuid(), -1),
    "chgrp_staff": lambda path: os.chown(path, -1, STAFF),
    "touch_now": os.utime,
    "touch_then": lambda path: os.utime(path, ns=(OLD, OLD)),
    "truncate": lambda path: os.truncate(path, 2),
    "user_xattr": lambda path: os.setxattr(path, "user.mine", b"1"),
    "trusted_xattr": lambda path: os.setxattr(path, "trusted.mine", b"1"),
    "acl": lambda path: os.setxattr(path, "system.posix_acl_access", NAMED),
    "unlink": os.unlink,
    "rename": lambda path: path.rename(path.parent / "renamed"),
    "link": lambda path: os.link(path, path.parent / "linked"),
    "create": lambda path: build.write(path / "new", "new"),
    "mkdir": lambda path: (path / "sub").mkdir(mode=0o777),
    "unlink_other": lambda path: os.unlink(path / "bob"),
    "rename_other": lambda path: (path / "bob").rename(path / "moved"),
    "exec": lambda path: os.access(path, os.X_OK),
}


@pytest.mark.parametrize("uid", [ALICE, BOB, 0], ids=["alice", "bob", "root"])
@pytest.mark.parametrize("groups", [(), (STAFF,)], ids=["", "staff"])
def test_who_may_do_what(pair: Make, uid: int, groups: tuple[int, ...]) -> None:
    def make(layers: Layers) -> None:
        people(layers)
        names = sorted(path.name for path in layers.lowers[0].iterdir())
        for operation in OPERATIONS:
            os.system(f"cp -a {layers.lowers[0]} {layers.base}/copy-{operation}")
        for name in names:
            os.system(f"rm -r {layers.lowers[0] / name}")
        for operation in OPERATIONS:
            Path(f"{layers.base}/copy-{operation}").rename(layers.lowers[0] / operation)

    both = pair(make)
    names = sorted(os.listdir(both.theirs.root / "read"))

    def everything(root: Path) -> list[str]:
        return [
            f"{operation} {name}: {attempt(OPERATIONS[operation], root / operation / name)}"
            for operation in OPERATIONS
            for name in names
        ]

    def run(root: Path) -> Any:
        return in_child(lambda: everything(root), uid=uid, gid=uid, groups=groups)

    # What root writes keeps its suid bit here: pyfuse3 does not say who writes.
    assert run(both.ours.root) == run(both.theirs.root)
    both.same_tree(ignore=("mode",) if uid == 0 else ())
    both.remount()
    both.same_tree(ignore=("mode",) if uid == 0 else ())


def test_new_files_belong_to_who_makes_them(pair: Make) -> None:
    both = pair(people)

    def make(root: Path) -> list[tuple[int, int, str]]:
        os.umask(0o027)
        found = []
        for where in ("sticky", "setgid"):
            base = root / where
            build.write(base / "new", "new", 0o666)
            os.close(os.open(base / "masked", os.O_CREAT | os.O_WRONLY, 0o2777))
            (base / "directory").mkdir(mode=0o777)
            os.mkfifo(base / "fifo", 0o666)
            (base / "link").symlink_to("new")
            for name in ("new", "masked", "directory", "fifo", "link"):
                status = (base / name).lstat()
                found.append((status.st_uid, status.st_gid, stat.filemode(status.st_mode)))
        return found

    as_user(both, ALICE, make, groups=(STAFF,))
    as_user(both, ALICE, lambda root: (root / "sticky" / "alice").write_text("mine"))
    as_user(both, ALICE, lambda root: (root / "closed" / "alice").read_text())
    both.same_everywhere()


def test_setgid_is_dropped_for_strangers(pair: Make) -> None:
    both = pair(people)

    def make(root: Path) -> list[str]:
        base = root / "sticky"
        build.write(base / "file")
        os.chown(base / "file", -1, STAFF)
        (base / "file").chmod(0o2755)
        return [stat.filemode((base / "file").stat().st_mode)]

    as_user(both, ALICE, make, groups=(STAFF,))
    as_user(both, ALICE, lambda root: (root / "sticky" / "file").chmod(0o2775))
    both.same_tree()


@pytest.mark.parametrize("name", ["suid", "sgid"])
def test_suid_is_dropped_by_an_ordinary_writer(pair: Make, name: str) -> None:
    both = pair(people)

    def change(root: Path) -> str:
        with open(root / name, "ab") as file:
            file.write(b"x")
        return stat.filemode((root / name).stat().st_mode)

    as_user(both, ALICE, change, groups=(STAFF,))
    both.same_tree()


@pytest.mark.parametrize("change", ["truncate", "chown", "open_truncating"])
def test_suid_is_dropped_by_other_changes(pair: Make, change: str) -> None:
    both = pair(people)
    changes: dict[str, Callable[[Path], Any]] = {
        "truncate": lambda root: os.truncate(root / "suid", 1),
        "chown": lambda root: os.chown(root / "suid", -1, STAFF),
        "open_truncating": lambda root: (root / "suid").open("wb").close(),
    }
    as_user(both, ALICE, changes[change], groups=(STAFF,))
    both.same(lambda root: stat.filemode((root / "suid").stat().st_mode))
    both.same_tree()


def test_chown_by_root_drops_suid_and_capabilities(pair: Make) -> None:
    def make(layers: Layers) -> None:
        people(layers)
        capability = b"\x01\0\0\2" + b"\x01" + b"\0" * 15
        for name in ("root", "alice-shared"):
            os.setxattr(layers.lowers[0] / name, "security.capability", capability)

    both = pair(make)
    both.same(lambda root: os.chown(root / "suid", BOB, STAFF))
    both.same(lambda root: os.chown(root / "sgid", BOB, -1))
    both.same(lambda root: os.chown(root / "root", BOB, -1))
    as_user(both, ALICE, lambda root: (root / "alice-shared").write_text("new"))
    both.same_everywhere()


@pytest.mark.parametrize("name", ["root", "home", "for-alice", "bob"])
def test_access_acls(pair: Make, name: str) -> None:
    both = pair(people)
    both.same(lambda root: os.setxattr(root / name, "system.posix_acl_access", NAMED))
    both.same(lambda root: os.getxattr(root / name, "system.posix_acl_access"))
    both.same(lambda root: stat.filemode((root / name).stat().st_mode))
    for uid in (ALICE, BOB):
        as_user(both, uid, lambda root: os.access(root / name, os.R_OK | os.W_OK))
        as_user(both, uid, lambda root: OPERATIONS["read"](root / name))
    both.same(lambda root: (root / name).chmod(0o705))
    both.same(lambda root: os.getxattr(root / name, "system.posix_acl_access"))
    both.same(lambda root: os.removexattr(root / name, "system.posix_acl_access"))
    both.same_everywhere()


def test_default_acls_are_inherited(pair: Make) -> None:
    """With a umask of zero: more than that pyfuse3 does not carry."""

    def make(layers: Layers) -> None:
        people(layers)
        os.setxattr(layers.lowers[0] / "home", "system.posix_acl_default", NAMED)

    both = pair(make)

    def work(root: Path) -> None:
        os.umask(0)
        build.write(root / "home" / "new", "new", 0o644)
        os.close(os.open(root / "home" / "plain", os.O_CREAT | os.O_WRONLY, 0o666))
        (root / "home" / "sub").mkdir(mode=0o777)
        (root / "home" / "sub" / "subsub").mkdir(mode=0o777)
        os.mkfifo(root / "home" / "fifo", 0o666)
        (root / "home" / "link").symlink_to("new")

    as_user(both, ALICE, work)
    both.same_everywhere()


@pytest.mark.parametrize("name", ["root", "home", "suid"])
def test_times(pair: Make, name: str) -> None:
    both = pair(people)
    far = 4_000_000_000 * 10**9 + 999_999_999
    both.same(lambda root: os.utime(root / name, ns=(OLD + 1, OLD + 2)))
    both.same(lambda root: (root / name).stat().st_atime_ns)
    both.same(lambda root: os.utime(root / name, ns=(far, 0)))
    both.same(lambda root: (root / name).stat().st_mtime_ns)
    both.same_everywhere()


def test_change_time_moves_on(layers: Layers, union: Callable[..., Any]) -> None:
    people(layers)
    path = union().root / "root"
    changes: list[Callable[[], Any]] = [
        lambda: path.chmod(0o600),
        lambda: os.chown(path, 1, 1),
        lambda: os.setxattr(path, "user.x", b"1"),
        lambda: path.write_text("x"),
        lambda: os.link(path, path.parent / "linked"),
        lambda: path.rename(path.parent / "moved") and (path.parent / "moved").rename(path),
        (path.parent / "linked").unlink,
        lambda: os.truncate(path, 0),
    ]
    for change in changes:
        before = path.stat().st_ctime_ns
        time.sleep(0.012)
        change()
        assert path.stat().st_ctime_ns > before


XATTRS = [
    ("user.a", b"1"),
    ("user.a", b""),
    ("trusted.a", b"\0\xff"),
    ("security.a", b"x"),
    ("user." + "n" * 250, b"longest name"),
    ("user." + "n" * 251, b"too long"),
    ("user.large", b"v" * 3000),
    ("user.huge", b"v" * 65536),
    ("unknown.a", b"x"),
    ("user", b"x"),
    ("system.a", b"x"),
    ("user.overlay.opaque", b"y"),
    ("user.overlay.test", b"x"),
]
if system.release() >= (6, 7):  # before, overlayfs had no place for them, and refused them
    XATTRS += [
        ("trusted.overlay.opaque", b"y"),
        ("trusted.overlay.test", b"x"),
        ("trusted.overlay.overlay.opaque", b"y"),
    ]


def _set_all(path: Path) -> Iterator[Outcome]:
    for name, value in XATTRS:
        for flags in (os.XATTR_REPLACE, os.XATTR_CREATE, os.XATTR_CREATE, 0):
            yield attempt(partial(os.setxattr, follow_symlinks=False), path, name, value, flags)
        yield attempt(partial(os.getxattr, follow_symlinks=False), path, name)
        yield attempt(lambda: sorted(os.listxattr(path, follow_symlinks=False)))


def _remove_some(path: Path) -> Iterator[Outcome]:
    for name, _ in XATTRS[::2]:
        for _ in range(2):
            yield attempt(partial(os.removexattr, follow_symlinks=False), path, name)


@pytest.mark.parametrize("kind", ["lower_file", "upper_full", "merged_full", "lower_symlink"])
def test_xattrs(pair: Make, kind: str) -> None:
    both = pair(lambda layers: build.KINDS[kind](layers, "name"))
    both.same(lambda root: list(_set_all(root / "name")))
    both.same_everywhere()
    both.same(lambda root: list(_remove_some(root / "name")))
    both.same_everywhere()


def test_xattrs_through_the_xattr_package(layers: Layers, union: Callable[..., Any]) -> None:
    build.write(layers.lowers[0] / "file", "lower")
    os.setxattr(layers.lowers[0] / "file", "user.old", b"old")
    attributes = xattr.xattr(union().root / "file")
    attributes["user.new"] = b"\0new\xff"
    del attributes["user.old"]
    assert dict(attributes) == {"user.new": b"\0new\xff"}
    with pytest.raises(OSError, match="No data"):
        attributes.get("user.old")


def test_private_xattrs_are_not_shown(layers: Layers, union: Callable[..., Any]) -> None:
    people(layers)
    mounted = union()
    root = mounted.root
    (root / "home").rename(root / "moved")
    (root / "alice").chmod(0o600)
    (root / "sticky" / "bob").unlink()
    (root / "closed" / "bob").unlink()
    for path in (root, *root.rglob("*")):
        shown = os.listxattr(path, follow_symlinks=False)
        assert not [name for name in shown if name.startswith("trusted.overlay")], path


def test_statfs_is_the_uppers(layers: Layers, union: Callable[..., Any]) -> None:
    assert layers.upper is not None
    ours, disk = os.statvfs(union().root), os.statvfs(layers.upper)
    for field in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
        assert getattr(ours, field) == getattr(disk, field), field
    assert abs(ours.f_bavail - disk.f_bavail) < 100_000
