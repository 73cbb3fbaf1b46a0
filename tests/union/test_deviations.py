"""What differs from overlayfs, as `docs/semantics.md` lists it: each pinned on both sides.

A test here that fails because ours has become like the kernel's is good news: the entry
goes from the list, and the test becomes a comparison.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
import stat
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import build, system
from tests.mounts import REPOSITORY
from tests.system import attempt, in_child

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.mounts import Layers
    from tests.oracle import Pair

    Make = Callable[..., Pair]

pytestmark = [pytest.mark.needs_root, pytest.mark.kernel_overlay]

_libc = ctypes.CDLL(None, use_errno=True)
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
FS_IOC_GETFLAGS = 0x80086601
STATX_BTIME = 0x800


def some_files(layers: Layers) -> None:
    for name in ("file", "other"):
        build.write(layers.lowers[0] / name, "lower")
    (layers.lowers[0] / "a" / "b" / "c").mkdir(parents=True)


@pytest.fixture
def both(pair: Make, ours_only: None) -> Pair:
    return pair(some_files)


def fallocate(path: Path, mode: int) -> None:
    with path.open("r+b") as file:
        if _libc.fallocate64(file.fileno(), mode, ctypes.c_long(0), ctypes.c_long(4096)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


@pytest.mark.pyfuse3_session
@pytest.mark.parametrize("mode", [0, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE])
def test_fallocate_is_not_carried(both: Pair, mode: int) -> None:
    assert attempt(fallocate, both.theirs.root / "file", mode).error is None
    assert attempt(fallocate, both.ours.root / "file", mode).error == "ENOTSUP"


def test_posix_fallocate_writes_instead(both: Pair) -> None:
    with (both.ours.root / "file").open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 8192)
    assert (both.ours.root / "file").read_bytes() == b"lower" + bytes(8192 - 5)


@pytest.mark.pyfuse3_session
def test_holes_are_not_told(both: Pair) -> None:
    def first_hole(root: Path) -> int:
        with (root / "sparse").open("wb") as file:
            file.truncate(1 << 20)
            return os.lseek(file.fileno(), 0, os.SEEK_HOLE)

    assert first_hole(both.theirs.root) == 0
    assert first_hole(both.ours.root) == 1 << 20


@pytest.mark.pyfuse3_session
def test_files_without_a_name_cannot_be_made(both: Pair) -> None:
    def make(root: Path) -> None:
        os.close(os.open(root, os.O_TMPFILE | os.O_RDWR))

    assert attempt(make, both.theirs.root).error is None
    assert attempt(make, both.ours.root).error == "ENOTSUP"


@pytest.mark.pyfuse3_session
def test_ioctls_are_not_carried(both: Pair) -> None:
    def flags(root: Path) -> None:
        with (root / "file").open("rb") as file:
            fcntl.ioctl(file, FS_IOC_GETFLAGS, bytes(8))

    assert attempt(flags, both.theirs.root).error is None
    assert attempt(flags, both.ours.root).error in ("ENOTTY", "ENOSYS")


@pytest.mark.pyfuse3_session
def test_birth_times_are_not_told(both: Pair) -> None:
    def knows(root: Path) -> bool:
        buffer = ctypes.create_string_buffer(256)
        _libc.statx(system.AT_FDCWD, os.fsencode(root / "file"), 0, STATX_BTIME, buffer)
        return bool(struct.unpack_from("=I", buffer.raw)[0] & STATX_BTIME)

    assert knows(both.theirs.root)
    assert not knows(both.ours.root)


def test_copy_file_range_reads_and_writes(both: Pair) -> None:
    """No deviation in what it does, only in how: the bytes pass through the daemon."""

    def copy(root: Path) -> bytes:
        with (root / "file").open("rb") as source, (root / "copy").open("wb") as target:
            os.copy_file_range(source.fileno(), target.fileno(), 5)
        return (root / "copy").read_bytes()

    both.same(copy)
    both.same_tree()


@pytest.mark.pyfuse3_session
def test_umask_counts_in_spite_of_a_default_acl(pair: Make, ours_only: None) -> None:
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, permissions, 0xFFFFFFFF)
        for tag, permissions in ((0x01, 7), (0x04, 7), (0x20, 7))
    )

    def make(layers: Layers) -> None:
        (layers.lowers[0] / "home").mkdir()
        os.setxattr(layers.lowers[0] / "home", "system.posix_acl_default", acl)

    both = pair(make)

    def work(root: Path) -> int:
        os.umask(0o077)
        os.close(os.open(root / "home" / "new", os.O_CREAT | os.O_WRONLY, 0o666))
        return stat.S_IMODE((root / "home" / "new").stat().st_mode)

    assert in_child(lambda: work(both.theirs.root)) == 0o666
    assert in_child(lambda: work(both.ours.root)) == 0o600


@pytest.mark.pyfuse3_session
def test_roots_writes_drop_setuid_too(pair: Make, ours_only: None) -> None:
    def make(layers: Layers) -> None:
        build.write(layers.lowers[0] / "program", "lower", 0o4755)

    both = pair(make)
    for one, mode in ((both.theirs, 0o4755), (both.ours, 0o755)):
        with (one.root / "program").open("ab") as file:
            file.write(b"more")
        assert stat.S_IMODE((one.root / "program").stat().st_mode) == mode


def test_times_of_append_only_files_can_be_set(pair: Make, ours_only: None) -> None:
    """Whether "now" is meant, which is allowed, or a time, which is not, is not told."""

    def make(layers: Layers) -> None:
        build.write(layers.lowers[0] / "log", "lower")

    both = pair(make)
    logs = [one.layers.lowers[0] / "log" for one in (both.theirs, both.ours)]
    both.unmount()
    for log in logs:
        subprocess.run(["chattr", "+a", log], check=True)
    for layers in (both.theirs_layers, both.ours_layers):
        layers.lower_may_change = True  # the attribute, and its change time
    both.mount()
    for one, error in ((both.theirs, "EPERM"), (both.ours, None)):
        assert attempt(os.utime, one.root / "log").error is None
        assert attempt(os.utime, one.root / "log", (5, 5)).error == error
    both.unmount()
    for log in logs:
        subprocess.run(["chattr", "-a", log], check=True)


def test_access_times_stay(both: Pair) -> None:
    """As any mount with `noatime`, which is the default for root."""
    before = os.stat(both.ours.root / "file").st_atime_ns
    assert (both.ours.root / "file").read_bytes() == b"lower"
    assert os.stat(both.ours.root / "file").st_atime_ns == before


def test_opening_for_writing_is_no_change(both: Pair) -> None:
    """The kernel copies up on open; ours waits for the first change."""
    for one, copied in ((both.theirs, True), (both.ours, False)):
        (one.root / "other").open("r+b").close()
        upper = one.layers.upper
        assert upper is not None
        assert (upper / "other").exists() == copied


def test_mappings_made_before_the_copy_show_what_is_written(both: Pair) -> None:
    """Better than the kernel's, whose mappings stay with the lower file."""
    for one, seen in ((both.theirs, b"lower"), (both.ours, b"LOWER")):
        with (one.root / "file").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 5, mmap.MAP_SHARED, mmap.PROT_READ)
            assert mapped[:] == b"lower"
            with (one.root / "file").open("r+b") as writer:
                writer.write(b"LOWER")
            assert mapped[:] == seen
            mapped.close()


@pytest.mark.parametrize("name", [".wh.name", ".wh..wh..opq", ".wh."])
def test_names_of_whiteouts_are_taken(both: Pair, name: str) -> None:
    for one, error in ((both.theirs, None), (both.ours, "EPERM")):
        assert attempt(lambda root: (root / name).touch(), one.root).error == error


def test_a_union_of_ours_is_a_lower_of_overlayfs(both: Pair) -> None:
    merged = both.ours.layers.base / "over"
    for name in ("over", "over-upper", "over-work"):
        (both.ours.layers.base / name).mkdir()
    base = both.ours.layers.base
    options = f"lowerdir={both.ours.root},upperdir={base}/over-upper,workdir={base}/over-work"
    system.mount("overlay", merged, "overlay", 0, options)
    try:
        assert (merged / "file").read_bytes() == b"lower"
        (merged / "file").write_bytes(b"above")
        assert (both.ours.root / "file").read_bytes() == b"lower"
    finally:
        system.umount(merged)


def test_each_entry_of_the_list_names_tests_that_are_there() -> None:
    text = (REPOSITORY / "docs" / "semantics.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    known = {
        name
        for file in (REPOSITORY / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert named
    assert named <= known, f"no such tests: {sorted(named - known)}"
