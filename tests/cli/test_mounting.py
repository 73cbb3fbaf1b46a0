from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import system
from unionfs.errors import MountError
from unionfs.fuse import mounting
from unionfs.fuse.mounting import MountEntry, allows_other_users, parse_mountinfo

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /mnt1 /mnt/a\040b\134c rw,noatime master:1 - ext3 /dev/root rw,errors=continue
66 43 0:39 / /m\011x rw shared:7 - fuse.unionfs a\040b rw,user_id=1000,group_id=5,allow_other
67 43 0:40 / /e rw - tmpfs  rw
"""


def test_mountinfo_as_proc_documents_it() -> None:
    assert parse_mountinfo(SAMPLE) == [
        MountEntry(22, "0:21", b"/proc", "proc", b"proc", "rw"),
        MountEntry(
            36, "98:0", b"/mnt/a b\\c", "ext3", b"/dev/root", "rw,errors=continue", b"/mnt1"
        ),
        MountEntry(
            66,
            "0:39",
            b"/m\tx",
            "fuse.unionfs",
            b"a b",
            "rw,user_id=1000,group_id=5,allow_other",
        ),
        MountEntry(67, "0:40", b"/e", "tmpfs", b"", "rw"),
    ]


def test_the_owner_of_a_fuse_mount() -> None:
    assert [entry.owner for entry in parse_mountinfo(SAMPLE)] == [None, None, 1000, None]


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_names_are_unescaped_as_the_kernel_escapes_them(name: bytes) -> None:
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in name)
    line = b"1 0 0:1 / /%s rw - fuse.unionfs %s rw" % (escaped, escaped)
    (entry,) = parse_mountinfo(line + b"\n")
    assert (entry.target, entry.source) == (b"/" + name, name)


def test_this_machine_has_mounts() -> None:
    assert any(entry.target == b"/proc" and entry.kind == "proc" for entry in mounting.mounts())


def test_paths_are_resolved_by_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "real" / "diff").mkdir(parents=True)
    (tmp_path / "other" / "NAME").mkdir(parents=True)
    (tmp_path / "l").symlink_to(tmp_path / "other" / "NAME")
    os.symlink(tmp_path / "real", tmp_path / "other" / "up")
    # As text this would be tmp_path/up, which is not there.
    assert mounting.resolve(bytes(tmp_path / "l" / ".." / "up" / "diff")) == bytes(
        tmp_path / "real" / "diff"
    )


@pytest.mark.needs_root
def test_the_topmost_of_two_mounts(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path)
    assert mounting.mount_at(place) is None
    system.mount("lower one", tmp_path, "tmpfs")
    system.mount("upper one", tmp_path, "tmpfs")
    found = mounting.mount_at(place)
    assert found is not None
    assert found.source == b"upper one"
    mounting.unmount(place)
    found = mounting.mount_at(place)
    assert found is not None
    assert found.source == b"lower one"
    mounting.unmount(place, lazy=True)
    assert mounting.mount_at(place) is None


@pytest.mark.needs_root
def test_unmounting_says_why_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(MountError, match=rf"^{tmp_path}: Invalid argument$"):
        mounting.unmount(os.fsencode(tmp_path))
    system.mount("none", tmp_path, "tmpfs")
    with open(tmp_path / "busy", "wb"), pytest.raises(MountError, match="resource busy"):
        mounting.unmount(os.fsencode(tmp_path))
    mounting.unmount(os.fsencode(tmp_path))


@pytest.mark.needs_root
def test_another_mount_namespace_is_entered(tmp_path: Path) -> None:
    mine = os.stat("/proc/self/ns/mnt").st_ino
    parent = os.getpid()

    def leave_and_come_back() -> tuple[int, int]:
        system.private_mount_namespace()
        away = os.stat("/proc/self/ns/mnt").st_ino
        mounting.enter_namespace(str(parent))
        mounting.enter_namespace(f"/proc/{parent}/ns/mnt")
        return away, os.stat("/proc/self/ns/mnt").st_ino

    away, back = system.in_child(leave_and_come_back)
    assert away != mine
    assert back == mine


@pytest.mark.parametrize("name", ["/no/such", "999999999"])
def test_no_such_namespace(name: str) -> None:
    with pytest.raises(MountError, match=f"namespace {name}: No such file"):
        mounting.enter_namespace(name)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", False),
        ("#user_allow_other\n", False),
        ("mount_max = 9\nuser_allow_other\n", True),
        ("  user_allow_other  \n", True),
        ("user_allow_others\n", False),
        ("# user_allow_other - as the comment says\n", False),
    ],
)
def test_fuse_conf(text: str, allowed: bool) -> None:
    assert allows_other_users(text) is allowed
