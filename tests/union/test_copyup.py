"""Copy-up: on the first change and not before, with all that belongs to a file."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests import build, tree
from tests.oracle import OLD, Pair, settle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mounts import Layers

pytestmark = pytest.mark.needs_root
#: How files are opened matters here.
OPENLESS_TOO = True

Mount = Callable[..., Any]


def above(layers: Layers, name: str) -> Path:
    assert layers.upper is not None
    return layers.upper / name


@pytest.mark.parametrize(
    "flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_CREAT]
)
@pytest.mark.usefixtures("ours_only")
def test_opening_copies_nothing(layers: Layers, union: Mount, flags: int) -> None:
    build.write(layers.lowers[0] / "d" / "file", "lower")
    root = union().root
    fd = os.open(root / "d" / "file", flags)
    assert os.fstat(fd).st_size == 5
    if flags & os.O_ACCMODE != os.O_WRONLY:
        assert os.pread(fd, 100, 0) == b"lower"
    os.fsync(fd)
    os.close(fd)
    assert os.listdir(above(layers, "")) == []


@pytest.mark.usefixtures("ours_only")
def test_looking_copies_nothing(layers: Layers, union: Mount) -> None:
    for name, kind in build.KINDS.items():
        kind(layers, f"d/{name}")
    before = tree.snapshot(above(layers, ""))
    root = union().root
    tree.snapshot(root)
    for where, directories, files in os.walk(root):
        for name in (*directories, *files):
            os.access(os.path.join(where, name), os.W_OK)
    os.statvfs(root)
    after = tree.snapshot(above(layers, ""))
    tree.assert_same(before, after, ignore=("mtime",))


@pytest.mark.usefixtures("ours_only")
def test_write_copies_at_the_first_byte(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "file", "lower")
    root = union().root
    with open(root / "file", "r+b", buffering=0) as file:
        assert not above(layers, "file").exists()
        file.write(b"L")
        os.fsync(file.fileno())
        assert above(layers, "file").read_bytes() == b"Lower"


def test_truncating_open_does_not_copy_data(layers: Layers, union: Mount) -> None:
    big = layers.lowers[0] / "big"
    build.write(big, b"x" * (32 << 20), 0o640)
    os.setxattr(big, "user.kept", b"yes")
    os.chown(big, 12, 34)
    root = union().root
    with open(root / "big", "wb") as file:
        assert os.fstat(file.fileno()).st_size == 0
    status = (root / "big").stat()
    assert (status.st_size, status.st_mode & 0o7777) == (0, 0o640)
    assert (status.st_uid, status.st_gid) == (12, 34)
    assert os.getxattr(root / "big", "user.kept") == b"yes"
    assert above(layers, "big").stat().st_blocks < 64


@pytest.mark.kernel_overlay
def test_everything_that_belongs_to_a_file_is_kept(pair: Callable[..., Pair]) -> None:
    access = build.acl(
        (build.USER_OBJ, 6, build.NO_ID),
        (build.USER, 4, 1234),
        (build.GROUP_OBJ, 4, build.NO_ID),
        (build.GROUP, 2, 5678),
        (build.MASK, 6, build.NO_ID),
        (build.OTHER, 0, build.NO_ID),
    )

    def make(layers: Layers) -> None:
        for name in ("file", "changed"):
            path = build.write(layers.lowers[0] / "d" / name, "content")
            os.chown(path, 1000, 2000)
            path.chmod(0o6755)
            os.setxattr(path, "system.posix_acl_access", access)
            os.setxattr(path, "user.text", b"\x00binary\xff")
            os.setxattr(path, "user.empty", b"")
            os.setxattr(path, "user.large", b"v" * 2000)
            os.setxattr(path, "trusted.mine", b"1")
            os.setxattr(path, "security.capability", b"\x01\0\0\2" + b"\x01" + b"\0" * 15)
        os.chown(layers.lowers[0] / "d", 3, 4)
        (layers.lowers[0] / "d").chmod(0o3775)
        os.setxattr(layers.lowers[0] / "d", "system.posix_acl_default", access)
        os.setxattr(layers.lowers[0] / "d", "user.directory", b"d")
        build.lower_symlink(layers, "d/link")
        os.lchown(layers.lowers[0] / "d" / "link", 7, 8)
        os.setxattr(layers.lowers[0] / "d" / "link", "trusted.l", b"l", follow_symlinks=False)

    both = pair(make)
    both.same(lambda root: os.utime(root / "d" / "file", ns=(OLD, OLD)))
    both.same(lambda root: os.lchown(root / "d" / "link", 9, -1))
    both.same(lambda root: os.setxattr(root / "d" / "changed", "user.new", b"n"))
    both.same_everywhere()
    assert tree.xattrs(above(both.ours_layers, "d/file"), private=False) == tree.xattrs(
        above(both.theirs_layers, "d/file"), private=False
    )


def test_times_are_kept_to_the_nanosecond(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "d" / "file", "lower")
    os.utime(layers.lowers[0] / "d" / "file", ns=(OLD + 1, OLD + 2))
    settle(layers.lowers[0] / "d")
    os.utime(layers.lowers[0] / "d" / "file", ns=(OLD + 1, OLD + 2))
    root = union().root
    (root / "d" / "file").chmod(0o600)
    assert (root / "d" / "file").stat().st_mtime_ns == OLD + 2
    assert above(layers, "d/file").stat().st_mtime_ns == OLD + 2
    assert (root / "d").stat().st_mtime_ns == OLD


@pytest.mark.usefixtures("ours_only")
def test_holes_are_kept(layers: Layers, union: Mount) -> None:
    path = layers.lowers[0] / "sparse"
    with open(path, "wb") as file:
        for offset in (0, 10 << 20, 500 << 20):
            file.seek(offset)
            file.write(b"data" * 1024)
        file.truncate(1 << 30)
    before = tree.data_segments(path)
    root = union().root
    (root / "sparse").chmod(0o600)
    assert tree.data_segments(above(layers, "sparse")) == before
    assert above(layers, "sparse").stat().st_blocks * 512 < 1 << 20
    assert (root / "sparse").stat().st_size == 1 << 30


def test_parents_come_first_with_their_own_metadata(layers: Layers, union: Mount) -> None:
    path = layers.lowers[0]
    for index, name in enumerate(("a", "b", "c")):
        path /= name
        path.mkdir()
        path.chmod(0o750 + index)
        os.chown(path, index, index + 10)
        os.setxattr(path, "user.n", name.encode())
    build.write(path / "file")
    build.write(layers.lowers[1] / "a" / "b" / "other")
    root = union().root
    os.truncate(root / "a" / "b" / "c" / "file", 1)
    path = above(layers, "")
    for index, name in enumerate(("a", "b", "c")):
        path /= name
        status = path.stat()
        assert status.st_mode & 0o777 == 0o750 + index
        assert (status.st_uid, status.st_gid) == (index, index + 10)
        assert os.getxattr(path, "user.n") == name.encode()
    assert sorted(os.listdir(root / "a" / "b")) == ["c", "other"]


def test_readers_see_the_new_content(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "file", "old content")
    root = union().root
    reader = os.open(root / "file", os.O_RDONLY)
    assert os.pread(reader, 3, 0) == b"old"
    with open(root / "file", "r+b") as writer:
        writer.write(b"new")
    assert os.pread(reader, 100, 0) == b"new content"
    with open(root / "file", "ab") as writer:
        writer.write(b" appended")
    assert os.fstat(reader).st_size == 20
    assert os.pread(reader, 100, 0) == b"new content appended"
    os.truncate(root / "file", 2)
    assert os.pread(reader, 100, 0) == b"ne"
    os.close(reader)


@pytest.mark.usefixtures("ours_only")
def test_shared_mappings_see_the_new_content(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "file", b"old" + b"." * 8189)
    root = union().root
    with open(root / "file", "rb") as file:
        view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    assert view[:3] == b"old"
    with open(root / "file", "r+b", buffering=0) as writer:
        writer.write(b"new")
        assert view[:3] == b"new"
        writer.seek(5000)
        writer.write(b"far")
        assert view[5000:5003] == b"far"
    view.close()


@pytest.mark.usefixtures("ours_only")
def test_writing_through_a_shared_mapping(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "file", b"old" + b"." * 8189)
    root = union().root
    reader = os.open(root / "file", os.O_RDONLY)
    with open(root / "file", "r+b") as file:
        view = mmap.mmap(file.fileno(), 0)
    view[:3] = b"map"
    view.flush()
    view.close()
    assert (root / "file").read_bytes()[:3] == b"map"
    assert above(layers, "file").read_bytes()[:3] == b"map"
    assert (layers.lowers[0] / "file").read_bytes()[:3] == b"old"
    assert os.pread(reader, 3, 0) == b"map"
    os.close(reader)


def test_reader_open_while_another_writes_never_touches_the_lower(
    layers: Layers, union: Mount
) -> None:
    """What fuse-overlayfs 2.0 with passthrough gets wrong."""
    build.write(layers.lowers[0] / "file", "lower" * 100)
    root = union().root
    readers = [os.open(root / "file", os.O_RDONLY) for _ in range(3)]
    writer = os.open(root / "file", os.O_RDWR)
    os.write(writer, b"WRITTEN")
    os.close(writer)
    assert (layers.lowers[0] / "file").read_bytes() == b"lower" * 100
    for reader in readers:
        os.close(reader)
    assert (root / "file").read_bytes().startswith(b"WRITTEN")


@pytest.mark.slow
@pytest.mark.usefixtures("ours_only")
def test_large_copy_does_not_hold_up_others(layers: Layers, union: Mount) -> None:
    with open(layers.lowers[0] / "large", "wb") as file:
        block = os.urandom(1 << 20)
        file.writelines(block for _ in range(1024))
    build.write(layers.lowers[0] / "small", "small")
    root = union(seconds=200.0).root
    copying = threading.Thread(target=(root / "large").chmod, args=(0o600,))
    begin = time.monotonic()
    copying.start()
    pauses = []
    index = 0
    while copying.is_alive():
        index += 1
        before = time.monotonic()
        (root / f"new-{index}").write_text("x")
        assert (root / "small").read_text() == "small"
        pauses.append(time.monotonic() - before)
    copying.join()
    took = time.monotonic() - begin
    if took > 1.0:  # else the disk shares blocks, and there was nothing to wait for
        assert len(pauses) > 5
        assert max(pauses) < took / 2, (max(pauses), took)
    assert (root / "large").stat().st_size == 1 << 30


@pytest.mark.usefixtures("ours_only")
def test_two_at_once_make_one_copy(layers: Layers, union: Mount) -> None:
    build.write(layers.lowers[0] / "file", os.urandom(64 << 20))
    mounted = union()
    path = mounted.root / "file"
    descriptors = [os.open(path, os.O_RDWR) for _ in range(8)]
    writers = [
        threading.Thread(target=os.pwrite, args=(fd, b"%d" % index, index))
        for index, fd in enumerate(descriptors)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for fd in descriptors:
        os.close(fd)
    assert path.read_bytes()[:8] == b"01234567"
    assert path.read_bytes()[8:] == (layers.lowers[0] / "file").read_bytes()[8:]
    assert os.listdir(above(layers, "")) == ["file"]


def test_changes_to_many_files_at_once(layers: Layers, union: Mount) -> None:
    for index in range(64):
        build.write(layers.lowers[index % 2] / "d" / f"{index}", str(index))
    root = union().root

    def change(start: int) -> None:
        for index in range(start, 64, 8):
            with open(root / "d" / f"{index}", "a") as file:
                file.write("!")

    threads = [threading.Thread(target=change, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(64):
        assert (root / "d" / f"{index}").read_text() == f"{index}!"
