"""A union that the kernel's server exports to the kernel's client, versions 3 and 4.2."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import build, tree
from tests.mounts import Layers
from tests.system import in_child
from tests.vm.guest.nfs.server import Nfsd

pytestmark = [pytest.mark.needs_root, pytest.mark.any_session]

Mount = Callable[..., Any]
VERSIONS = pytest.mark.parametrize("version", ["3", "4.2"])
EXPORT = "nfs_export=on"
LARGE = os.urandom(300_000)


def fill(layers: Layers) -> None:
    build.write(layers.lowers[0] / "file", "from below")
    build.write(layers.lowers[0] / "gone", "to be removed")
    build.write(layers.lowers[1] / "a" / "b" / "deep", "deep")
    build.write(layers.lowers[1] / "a" / "large", LARGE)
    for number in range(100):
        build.write(layers.lowers[0] / "many" / f"name{number}")


def write_synced(path: Path, data: bytes) -> None:
    """Write over what *path* begins with, and have it on the server's disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


@VERSIONS
def test_a_client_changes_the_union(layers: Layers, union: Mount, nfsd: Nfsd, version: str) -> None:
    """Each kind of change, and afterwards the server's tree is the client's."""
    fill(layers)
    root = union(EXPORT).root
    nfsd.export(root)
    client = nfsd.mount(root, version)
    assert (client / "a/b/deep").read_bytes() == b"deep"
    assert (client / "a/large").read_bytes() == LARGE
    assert sorted(os.listdir(client / "many")) == sorted(os.listdir(layers.lowers[0] / "many"))

    write_synced(client / "file", b"FROM")
    assert layers.upper is not None
    assert (layers.upper / "file").read_bytes() == b"FROM below"
    write_synced(client / "new", LARGE)
    assert (layers.upper / "new").read_bytes() == LARGE
    os.link(client / "new", client / "another name")
    os.symlink("file", client / "symlink")
    os.mkfifo(client / "fifo")
    (client / "made").mkdir()
    (client / "a").rename(client / "made" / "moved")
    (client / "many/name1").rename(client / "many/name2")
    (client / "gone").unlink()
    os.truncate(client / "made/moved/large", 10)
    os.chmod(client / "many/name3", 0o4640)
    os.chown(client / "many/name4", 1000, 1001)
    os.utime(client / "many/name5", ns=(10**18, 10**18 + 5))
    for name in os.listdir(client / "made/moved/b"):
        (client / "made/moved/b" / name).unlink()
    (client / "made/moved/b").rmdir()
    with pytest.raises(FileExistsError):
        os.open(client / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with pytest.raises(OSError, match="not empty"):
        (client / "many").rmdir()

    assert not (client / "gone").exists()
    # Version 3 has no xattrs, and no version those of other namespaces.
    left_out = ["xattrs", "directory.nlink", "directory.size"]
    tree.assert_same(tree.snapshot(root), tree.snapshot(client), ignore=left_out)
    assert sorted(os.listdir(layers.upper / "made/moved")) == ["b", "large"]
    assert stat.S_ISCHR(os.lstat(layers.upper / "made/moved/b").st_mode), "no whiteout"
    assert os.statvfs(client).f_blocks > 0


def test_what_version_4_2_has(layers: Layers, union: Mount, nfsd: Nfsd) -> None:
    """Holes, and copies that the server makes; no xattrs, which nfsd takes FUSE to lack."""
    fill(layers)
    root = union(EXPORT).root
    nfsd.export(root)
    client = nfsd.mount(root, "4.2")
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(client / "file", "user.name", b"value")
    with (client / "sparse").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        assert os.fstat(file.fileno()).st_blocks >= (1 << 20) // 512
        os.pwrite(file.fileno(), b"data", 4 << 20)
        os.fsync(file.fileno())
        assert os.lseek(file.fileno(), 1 << 20, os.SEEK_DATA) == 4 << 20
    source = os.open(client / "a/large", os.O_RDONLY)
    target = os.open(client / "copy", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        done = 0
        while done < len(LARGE):
            done += os.copy_file_range(source, target, len(LARGE) - done)
    finally:
        os.close(source)
        os.close(target)
    assert (root / "copy").read_bytes() == LARGE


@VERSIONS
def test_a_file_that_is_open_loses_its_name(
    layers: Layers, union: Mount, nfsd: Nfsd, version: str
) -> None:
    """The client renames it out of the way, and removes it when it is closed."""
    fill(layers)
    root = union(EXPORT).root
    nfsd.export(root)
    client = nfsd.mount(root, version)
    with (client / "file").open("rb+", buffering=0) as file:
        (client / "file").unlink()
        build.write(client / "file", "another")
        file.write(b"FROM")
        assert os.pread(file.fileno(), 100, 0) == b"FROM below"
    end = time.monotonic() + 20
    while any(name.startswith(".nfs") for name in os.listdir(root)):
        assert time.monotonic() < end, os.listdir(root)
        time.sleep(0.1)
    assert (client / "file").read_bytes() == b"another"


@VERSIONS
@pytest.mark.parametrize("how", ["unmount", "kill"])
def test_handles_stay_over_a_restart(
    layers: Layers, union: Mount, nfsd: Nfsd, version: str, how: str
) -> None:
    """Of the union's daemon and of the server: a client goes on with what it has open."""
    fill(layers)
    mounted = union(EXPORT)
    nfsd.export(mounted.root)
    client = nfsd.mount(mounted.root, version)
    reader = os.open(client / "a/b/deep", os.O_RDONLY)
    writer = os.open(client / "file", os.O_WRONLY)
    here = os.open(client / "many", os.O_RDONLY)
    try:
        os.write(writer, b"FROM")
        os.fsync(writer)
        (client / "a").rename(client / "moved")
        nfsd.stop()
        nfsd.forget()
        if how == "kill":
            mounted.kill()
        else:
            mounted.unmount()
        root = union(EXPORT).root
        nfsd.start()
        os.pwrite(writer, b"BELOW", 5)
        os.fsync(writer)
        assert (root / "file").read_bytes() == b"FROM BELOW"
        os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(reader, 100, 0) == b"deep"
        os.stat("name7", dir_fd=here)
        assert (client / "moved/b/deep").read_bytes() == b"deep"
    finally:
        for fd in (reader, writer, here):
            os.close(fd)


def test_without_the_option_handles_end_with_the_daemon(
    layers: Layers, union: Mount, nfsd: Nfsd
) -> None:
    """Names lead to the files of the new mount; what was open is stale."""
    fill(layers)
    mounted = union()
    nfsd.export(mounted.root)
    client = nfsd.mount(mounted.root, "3", "actimeo=0")
    file = os.open(client / "a/b/deep", os.O_RDONLY)
    try:
        assert os.pread(file, 100, 0) == b"deep"
        nfsd.stop()
        nfsd.forget()
        mounted.kill()
        union()
        nfsd.start()
        with pytest.raises(OSError, match="Stale") as caught:
            os.fstat(file)
        assert caught.value.errno == errno.ESTALE
        assert (client / "a/b/deep").read_bytes() == b"deep"
    finally:
        os.close(file)


@VERSIONS
def test_what_another_client_locked(layers: Layers, union: Mount, nfsd: Nfsd, version: str) -> None:
    """Locks are the server's; they are seen by programs on the union itself, too."""
    fill(layers)
    root = union(EXPORT).root
    nfsd.export(root)
    one, two = (nfsd.mount(root, version, "nosharecache") for _ in range(2))

    def is_locked(path: Path) -> bool:
        """Ask as another process: two of this one's mounts are one owner for version 3."""
        with path.open("rb+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    places = [client / "file" for client in (one, two)] + [root / "file"]
    with (one / "file").open("rb+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert [in_child(partial(is_locked, place)) for place in places] == [True] * 3
        fcntl.lockf(file, fcntl.LOCK_UN)
        assert [in_child(partial(is_locked, place)) for place in places] == [False] * 3
