"""Ids that layers have, ids that are shown: overlayfs over idmapped mounts shows how.

`uidmapping=` and `gidmapping=` do what mount_setattr(2) does to the mounts that layers lie on.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import build, system, tree
from tests.mounts import KernelMount, Layers
from tests.oracle import settle
from tests.system import Outcome, attempt, in_child
from unionfs.layer import acl, capability
from unionfs.options import IdRange
from unionfs.union.mapping import IdMap

if TYPE_CHECKING:
    from tests.oracle import Subject

pytestmark = pytest.mark.needs_root

Mount = Callable[..., Any]

OVERFLOW = 65534
#: Ranges with holes between them; other ones for groups. Who mounts an overlayfs must be in one.
USERS = ((0, 100000, 1000), (1000, 200000, 10), (50000, 0, 1))
GROUPS = ((0, 300000, 1000), (1000, 400000, 10), (50000, 0, 1))
CAPABILITY_V2 = bytes.fromhex("0100000202000000000000000000000000000000")


def joined(ranges: tuple[tuple[int, ...], ...], between: str = ":") -> str:
    return between.join(between.join(str(number) for number in one) for one in ranges)


MAPPING = f"uidmapping=:{joined(USERS)},gidmapping={joined(GROUPS)}"


def lines(ranges: tuple[tuple[int, ...], ...]) -> str:
    return "".join(f"{disk} {shown} {length}\n" for disk, shown, length in ranges)


def named(user: int, group: int) -> bytes:
    """The value of an ACL with a named user and a named group."""
    return acl.from_text(
        f"user::rwx,user:{user}:rw-,group::r--,group:{group}:r--,mask::rwx,other::---"
    )


def fill(layers: Layers) -> None:
    """Files of users inside the ranges and outside of them, with all that names ids."""
    lower, lowest = layers.lowers
    for place, name in ((lower, "lower"), (lowest, "lowest"), (layers.upper, "upper")):
        assert place is not None
        directory = place / f"{name}.d"
        directory.mkdir(mode=0o777)
        directory.chmod(0o1777)
        for kind in ("plain", "script", "foreign", "alien"):
            build.write(directory / kind, kind, 0o755)
        os.symlink("plain", directory / "link")
        os.mkfifo(directory / "fifo")
        os.chown(directory / "plain", 5, 6)
        os.lchown(directory / "link", 7, 8)
        os.chown(directory / "fifo", 1003, 1004)
        os.chown(directory / "script", 1000, 1009)
        (directory / "script").chmod(0o6755)
        os.chown(directory / "foreign", 1010, 5000)
        os.chown(directory / "alien", 70000, 6)
        (directory / "alien").chmod(0o666)
        os.setxattr(directory / "plain", "system.posix_acl_access", named(1001, 9))
        os.setxattr(directory, "system.posix_acl_default", named(12, 1002))
        os.setxattr(directory / "foreign", "security.capability", CAPABILITY_V2)
        os.setxattr(directory / "script", "user.note", b"kept")
    (lower / "both").mkdir()
    (lowest / "both").mkdir()
    os.chown(lower / "both", 20, 20)
    build.write(lowest / "both" / "deep", "deep")


class MappedPair:
    """The same layers twice: mapped by us, and mapped by the kernel below its overlayfs."""

    def __init__(self, base: Path, subject: Subject) -> None:
        self.kernels, self.own = Layers(base / "kernel"), Layers(base / "ours")
        for layers in (self.kernels, self.own):
            fill(layers)
            settle(*layers.lowers, layers.upper)
            (layers.base / "mapped").mkdir()
        mapped = base / "kernel" / "mapped"
        system.bind_idmapped(base / "kernel", mapped, lines(USERS), lines(GROUPS))
        shown = Layers.__new__(Layers)
        shown.__dict__.update(self.kernels.__dict__)
        shown.lowers = [mapped / lower.name for lower in self.kernels.lowers]
        shown.upper, shown.work = mapped / "upper", mapped / "work"
        self.theirs = KernelMount(shown)
        self.ours = subject(self.own, MAPPING)

    def unmount(self) -> None:
        self.ours.unmount()
        self.theirs.unmount()

    def same(
        self, operation: Callable[[Path], Any], uid: int = 100000, gid: int = 300000
    ) -> Outcome:
        """Let a user do *operation* on both, and demand the same outcome."""

        def run(root: Path) -> Outcome:
            outcome: Outcome = in_child(lambda: attempt(operation, root), uid=uid, gid=gid)
            return outcome

        expected, found = run(self.theirs.root), run(self.ours.root)
        assert found == expected, f"the kernel: {expected}; ours: {found}"
        return expected

    def same_shown(self, operation: Callable[[Path], Any]) -> Any:
        """Look with *operation*, as root, and demand to see the same."""
        expected, found = (attempt(operation, one.root) for one in (self.theirs, self.ours))
        assert found == expected, f"the kernel: {expected}; ours: {found}"
        return expected.value

    def same_on_disk(self) -> None:
        """Demand that both uppers have the same on the disk, but for marks and times."""
        assert self.own.upper is not None
        assert self.kernels.upper is not None
        theirs, ours = (
            tree.snapshot(upper, private=False) for upper in (self.kernels.upper, self.own.upper)
        )
        tree.assert_same(theirs, ours, ignore=("mtime", "nlink"))


@pytest.fixture
def pair(scratch: Path, mounts: Any, subject: Subject, ours_only: None) -> MappedPair:
    made: MappedPair = mounts.add(MappedPair(scratch / "pair", subject))
    return made


NAMES = ("plain", "script", "foreign", "alien", "link", "fifo", ".")
PLACES = [f"{layer}.d/{name}" for layer in ("lower", "lowest", "upper") for name in NAMES]


def owner(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid, status.st_mode


def owner_at(place: str) -> Callable[[Path], tuple[int, int, int]]:
    return lambda root: owner(root / place)


def value_at(place: str, name: str) -> Callable[[Path], bytes]:
    return lambda root: os.getxattr(root / place, name)


def test_owners_are_shown_as_the_kernel_shows_them(pair: MappedPair) -> None:
    seen = {place: pair.same_shown(owner_at(place)) for place in PLACES}
    assert seen["lower.d/plain"][:2] == (100005, 300006)
    assert seen["upper.d/script"] == (200000, 400009, stat.S_IFREG | 0o6755)
    assert seen["lowest.d/foreign"][:2] == (OVERFLOW, OVERFLOW)
    assert seen["lower.d/alien"][:2] == (OVERFLOW, 300006)
    pair.same_shown(lambda root: owner(root / "both"))


@pytest.mark.since(6, 2, "overlayfs maps the ACLs of idmapped layers")
def test_acls_are_shown_mapped(pair: MappedPair) -> None:
    for layer in ("lower", "upper"):
        value = pair.same_shown(value_at(f"{layer}.d/plain", "system.posix_acl_access"))
        assert value == named(200001, 300009)
        default = pair.same_shown(value_at(f"{layer}.d", "system.posix_acl_default"))
        assert default == named(100012, 400002)


def test_values_of_attributes_are_shown_mapped(pair: MappedPair) -> None:
    for layer in ("lower", "upper"):
        directory = f"{layer}.d"
        ability = pair.same_shown(value_at(f"{directory}/foreign", "security.capability"))
        assert struct.unpack("<I16sI", ability)[2] == 100000, "root of the user namespace"
        assert pair.same_shown(value_at(f"{directory}/script", "user.note"))


def test_what_is_made_belongs_to_its_maker(pair: MappedPair) -> None:
    def make(root: Path) -> None:
        os.umask(0)
        for directory in ("lower.d", "upper.d"):
            (root / directory / "new").write_text("x")
            (root / directory / "dir").mkdir()
            os.symlink("x", root / directory / "sym")
            os.mkfifo(root / directory / "pipe")
            os.link(root / directory / "new", root / directory / "second")

    pair.same(make, 100009, 300010)
    pair.same(make, 200009, 400009)
    for name in ("new", "dir", "sym", "pipe"):
        shown = pair.same_shown(owner_at(f"lower.d/{name}"))
        assert shown[:2] == (100009, 300010)
    pair.same_on_disk()
    assert pair.own.upper is not None
    assert owner(pair.own.upper / "lower.d" / "new")[:2] == (9, 10)


def test_nobody_outside_of_the_ranges_can_make_anything(pair: MappedPair) -> None:
    for uid, gid in ((1, 1), (5, 300000), (100000, 5), (201000, 300000)):
        for operation in (
            lambda root: (root / "lower.d" / "new").touch(),
            lambda root: (root / "upper.d" / "new").mkdir(),
            lambda root: os.symlink("x", root / "upper.d" / "new"),
            lambda root: os.mkfifo(root / "upper.d" / "new"),
        ):
            assert pair.same(operation, uid, gid).error == "EOVERFLOW"
    assert pair.own.upper is not None
    assert os.listdir(pair.own.upper) == ["upper.d"], "nothing was copied up for it"


def test_chown(pair: MappedPair) -> None:
    def chown(uid: int, gid: int, at: str) -> Outcome:
        # By root, who may: a user who owns nothing in the ranges is refused before.
        expected, found = (
            attempt(os.lchown, one.root / at, uid, gid) for one in (pair.theirs, pair.ours)
        )
        assert found == expected
        return expected

    for place in ("lower.d/plain", "upper.d/plain", "lower.d", "lower.d/link", "both"):
        assert chown(100044, 300055, place).error is None
        assert chown(100044, -1, place).error is None
        for uid, gid in ((44, -1), (-1, 55), (OVERFLOW, -1), (100999 + 1, -1), (-1, 400010)):
            assert chown(uid, gid, place).error == "EOVERFLOW"
        assert pair.same_shown(owner_at(place))[:2] == (100044, 300055)
    pair.same_on_disk()


def test_copies_have_the_owners_of_the_originals(pair: MappedPair) -> None:
    for place in ("lower.d/plain", "lowest.d/script", "both/deep"):
        for one in (pair.theirs, pair.ours):
            os.utime(one.root / place, ns=(1, 2))
    pair.same_on_disk()
    assert pair.own.upper is not None
    assert owner(pair.own.upper / "lowest.d" / "script")[:2] == (1000, 1009)
    assert os.getxattr(pair.own.upper / "lower.d/plain", "system.posix_acl_access") == named(
        1001, 9
    )


def test_of_a_stranger_too(pair: MappedPair) -> None:
    """Better than overlayfs, which cannot copy what it cannot name; see docs/semantics.md."""
    path = pair.ours.root / "lower.d" / "alien"
    assert attempt(os.utime, pair.theirs.root / "lower.d" / "alien").error == "EACCES"
    in_child(lambda: path.write_text("changed"), uid=100001, gid=300001)
    assert owner(path)[:2] == (OVERFLOW, 300006)
    assert pair.own.upper is not None
    assert owner(pair.own.upper / "lower.d" / "alien")[:2] == (70000, 6)


def test_attributes_that_are_set_name_ids_of_the_disk(pair: MappedPair) -> None:
    def acls(root: Path) -> None:
        os.setxattr(root / "lower.d" / "plain", "system.posix_acl_access", named(100033, 400001))
        os.setxattr(root / "upper.d", "system.posix_acl_default", named(200002, 300001))

    pair.same_shown(acls)
    for user, group in ((33, 300001), (100033, 1)):
        found = attempt(
            os.setxattr,
            pair.ours.root / "upper.d" / "plain",
            "system.posix_acl_access",
            named(user, group),
        )
        assert found.error == "EOVERFLOW"
    pair.same_on_disk()
    assert pair.own.upper is not None
    stored = os.getxattr(pair.own.upper / "lower.d" / "plain", "system.posix_acl_access")
    assert stored == named(33, 1001)


def test_capabilities_are_for_the_root_of_the_range(
    layers: Layers, union: Mount, ours_only: None
) -> None:
    build.write(layers.lowers[0] / "program", "x", 0o755)
    root = union(MAPPING).root
    version_3 = capability.with_root(CAPABILITY_V2, lambda _: 100000)
    os.setxattr(root / "program", "security.capability", version_3)
    assert os.getxattr(root / "program", "security.capability") == version_3
    assert layers.upper is not None
    # As an engine puts it into an image: revision 2, which every program knows.
    assert os.getxattr(layers.upper / "program", "security.capability") == CAPABILITY_V2
    assert capability.with_root(version_3, lambda _: 0) == CAPABILITY_V2
    elsewhere = capability.with_root(CAPABILITY_V2, lambda _: 7)
    found = attempt(os.setxattr, root / "program", "security.capability", elsewhere)
    assert found.error == "EOVERFLOW"


def test_permissions_are_checked_by_the_ids_that_are_shown(pair: MappedPair) -> None:
    def write(root: Path) -> None:
        os.close(os.open(root / "lower.d" / "plain", os.O_WRONLY))

    assert pair.same(write, 100005, 300006).error is None
    assert pair.same(write, 200001, 300001).error is None, "the named user of its ACL"
    assert pair.same(write, 5, 6).error == "EACCES"
    assert pair.same(write, 1001, 9).error == "EACCES"


def touch(path: Path) -> None:
    os.umask(0)  # on pyfuse3 it counts in spite of a default ACL
    path.touch()


def test_lowers_that_the_kernel_maps_are_not_mapped_twice(
    scratch: Path, mounts: Any, subject: Subject, ours_only: None
) -> None:
    """Engines make such mounts and give the mapping, too: all is as overlayfs has it then.

    The upper, which is no such mount, has the ids that are shown (podman 4.3 with `--uidmap`).
    """
    uppers = []
    roots = []
    for name, mount in (("kernel", KernelMount), ("ours", subject)):
        layers = Layers(scratch / name)
        fill(layers)
        os.chown(layers.base / "upper", 100000, 300000)
        (layers.base / "mapped").mkdir()
        system.bind_idmapped(layers.base, layers.base / "mapped", lines(USERS), lines(GROUPS))
        layers.lowers = [layers.base / "mapped" / lower.name for lower in layers.lowers]
        mounted = mount(layers) if mount is KernelMount else mount(layers, MAPPING)
        roots.append(mounts.add(mounted).root)
        uppers.append(layers.base / "upper")
    for root in roots:
        os.utime(root / "lower.d" / "plain")
        os.chown(root / "lower.d" / "script", 1, 1)
        os.symlink("x", root / "made by root")
        in_child(partial(touch, root / "new"), uid=100000, gid=300000)
        in_child(partial(touch, root / "upper.d" / "new"), uid=100002, gid=300002)
    for place in PLACES:
        one, other = (owner(root / place) for root in roots)
        assert one == other, place
    acls = [value_at("lower.d/plain", "system.posix_acl_access")(root) for root in roots]
    assert acls == [named(200001, 300009)] * 2
    theirs, ours = (tree.snapshot(upper, private=False) for upper in uppers)
    tree.assert_same(theirs, ours, ignore=("mtime", "nlink"))
    assert owner(uppers[1] / "lower.d" / "plain")[:2] == (100005, 300006)


@pytest.mark.usefixtures("ours_only")
def test_who_mounts_need_be_no_user_of_the_mapping(layers: Layers, union: Mount) -> None:
    """Podman makes /etc/mtab as root of the host, and then gives it to the container's root."""
    (layers.lowers[0] / "etc").mkdir()
    root = union("uidmapping=:0:100000:65536,gidmapping=:0:100000:65536").root
    os.symlink("/proc/mounts", root / "etc" / "mtab")
    os.lchown(root / "etc" / "mtab", 100000, 100000)
    (root / "etc" / "hosts").touch()
    assert owner(root / "etc" / "hosts")[:2] == owner(root / "etc" / "mtab")[:2] == (100000, 100000)
    assert layers.upper is not None
    assert owner(layers.upper / "etc" / "hosts")[:2] == (0, 0)
    (root / "etc").chmod(0o777)
    found = in_child(lambda: attempt((root / "etc" / "passwd").touch), uid=1, gid=1)
    assert found.error == "EOVERFLOW"


@pytest.mark.usefixtures("ours_only")
def test_squashed_owners_are_shown_in_place_of_mapped_ones(layers: Layers, union: Mount) -> None:
    fill(layers)
    mounted = union(f"{MAPPING},squash_to_uid=7,squash_to_root")
    assert owner(mounted.root / "lower.d" / "plain")[:2] == (7, 0)
    (mounted.root / "lower.d" / "new").touch()
    mounted.unmount()
    mounted = union(f"{MAPPING},squash_to_uid=7")
    assert owner(mounted.root / "lower.d" / "plain")[:2] == (7, 300006)


def test_lookups_take_the_first_range_that_fits() -> None:
    one = IdMap([IdRange(0, 1000, 10), IdRange(5, 2000, 10), IdRange(20, 1005, 10)], OVERFLOW)
    assert [one.shown(number) for number in (0, 9, 10, 14, 15, 25)] == [
        *(1000, 1009, 2005, 2009, OVERFLOW, 1010),
    ]
    assert [one.stored(number) for number in (1000, 1009, 1010, 2000)] == [0, 9, 25, 5]
    for number in (0, 999, 1015, 2010, OVERFLOW):
        with pytest.raises(OSError, match="too large"):
            one.stored(number)
    assert IdMap([], OVERFLOW).shown(5) == IdMap([], OVERFLOW).stored(5) == 5
