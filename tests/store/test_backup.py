"""Volumes as archives: with GNU tar as the oracle, while others write, and when all goes wrong."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import archives, tree
from tests.driver import changes
from tests.store.volume_ground import VolumeGround, assert_same
from unionfs.errors import ArchiveError, FailedPreconditionError, InvalidArgumentError
from unionfs.store.backup import backup, restore
from unionfs.store.volume_garbage import cleanup
from unionfs.store.volume_tree import VolumeTree
from unionfs.store.volumes import Volumes

pytestmark = pytest.mark.needs_root

#: GNU tar's name for each form.
_TAR = {"gzip": "--gzip", "zstd": "--zstd", "none": "--no-auto-compress"}


def saved(volumes: Volumes, name: str, compression: str = "none") -> tuple[bytes, list[str]]:
    """The archive of a volume, and what was told beside."""
    found, notices = io.BytesIO(), list[str]()
    backup(
        volumes,
        name,
        found.write,
        compression=compression,
        progress=lambda _size: None,
        notice=notices.append,
    )
    return found.getvalue(), notices


def load(volumes: Volumes, name: str, data: bytes) -> list[str]:
    """Restore *name*; what was told beside."""
    notices = list[str]()
    restore(volumes, name, io.BytesIO(data), progress=lambda _size: None, notice=notices.append)
    return notices


def odd(root: Path) -> None:
    """Names that mean something in layers, long ones, ones that are no text, and large ids."""
    for name in (".wh.hidden", ".wh..wh..opq", ".wh..wh.plnk", "a b", "-n", "new\nline", "ü"):
        (root / name).mkdir()
        (root / name / "inside").write_text(name)
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).touch()
    deep = root.joinpath(*["d" * 200] * 3)
    deep.mkdir(parents=True)
    (deep / ("f" * 255)).write_text("deep")
    (root / "link").symlink_to("/".join(["x" * 100] * 3))
    os.chown(root / "a b", 3_000_000, 4_000_000)
    os.setxattr(root / "a b", "user.bytes", bytes(range(256)))
    os.utime(root / "a b", ns=(1, 1_234_567_891_234_567_891))
    os.setxattr(root / "a b/inside", "system.posix_acl_access", changes._ACL)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_gnu_tar_reads_what_we_write(ground: VolumeGround, compression: str) -> None:
    ground.volumes.create("vol")
    ground.write("vol", changes.base)
    ground.write("vol", odd)
    data, notices = saved(ground.volumes, "vol", compression)
    assert notices == []
    plain = data
    if compression != "none":
        command = [compression, "-dc"]
        plain = subprocess.run(command, input=data, capture_output=True, check=True).stdout
    there = ground.place()
    archives.gnu_extract(plain, there)
    with ground.at("vol") as root:
        assert_same(tree.snapshot(root, holes=True), tree.snapshot(there, holes=True))


def test_we_read_what_gnu_tar_writes(any_ground: VolumeGround) -> None:
    host = any_ground.place()
    changes.base(host)
    odd(host)
    # GNU tar has the ACLs of this as text, and no archive of it has a socket.
    data = archives.gnu_create(host, "--format=posix", "--sparse")
    assert load(any_ground.volumes, "vol", data) == []
    with any_ground.at("vol") as root:
        assert_same(tree.snapshot(host, holes=True), tree.snapshot(root, holes=True))


def test_there_and_back(any_ground: VolumeGround) -> None:
    """Everything, by each driver; what was there before is gone."""
    volumes = any_ground.volumes
    volumes.create("vol", labels={"kept": "yes"})
    any_ground.write("vol", changes.base)
    any_ground.write("vol", odd)
    with any_ground.at("vol") as root:
        expected = tree.snapshot(root, holes=True)
    data, _ = saved(volumes, "vol", "zstd")
    any_ground.write("vol", changes.delete)
    any_ground.write("vol", changes.alter)
    load(volumes, "vol", data)
    with any_ground.at("vol") as root:
        assert_same(expected, tree.snapshot(root, holes=True))
    assert volumes.find("vol").labels == {"kept": "yes"}
    assert len(list(volumes.store.driver.walk())) == 1


def test_of_a_view_all_is_saved(ground: VolumeGround) -> None:
    host = ground.place()
    changes.base(host)
    ground.volumes.create("view", options={"from": str(host)})
    ground.write("view", changes.alter)
    with ground.at("view") as root:
        expected = tree.snapshot(root, private=False)
    data, _ = saved(ground.volumes, "view")
    with pytest.raises(FailedPreconditionError, match="not the store's alone"):
        load(ground.volumes, "view", data)
    load(ground.volumes, "copy", data)
    with ground.at("copy") as root:
        assert_same(expected, tree.snapshot(root, private=False))


def test_while_it_is_written(any_ground: VolumeGround) -> None:
    """Two files always say the same: of one moment they do, else it is said that it is not."""
    volumes = any_ground.volumes
    volumes.create("vol")
    stop = threading.Event()
    with any_ground.at("vol", "writer") as root:
        for number in range(300):
            (root / f"filler{number:03}").write_bytes(os.urandom(20_000))
        (root / "a-first").write_text("0")
        (root / "z-last").write_text("0")
        os.sync()

        def write() -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                for name in ("a-first", "z-last"):
                    temporary = root / f"tmp-{name}"
                    temporary.write_text(str(turn))
                    temporary.rename(root / name)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            data, notices = saved(volumes, "vol")
        finally:
            stop.set()
            writer.join()
    load(volumes, "copy", data)
    with any_ground.at("copy") as root:
        first, last = (int((root / name).read_text()) for name in ("a-first", "z-last"))
    if volumes.store.driver.capabilities.live_snapshot:
        assert notices == []
        assert first - last in (0, 1)
    else:
        assert any("vol: was in use by writer while it was read" in text for text in notices)


def test_what_shrinks_and_goes_while_it_is_read(
    ground: VolumeGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is a good one all the same, and it is told what happened."""
    ground.volumes.create("vol")
    with ground.at("vol", "writer") as root:
        (root / "gone").write_text("x")
        (root / "gone-too").write_text("x")
        os.link(root / "gone-too", root / "stays")
        (root / "large").write_bytes(b"x" * (5 << 20))
        real = os.pread

        def shrink(fd: int, size: int, position: int) -> bytes:
            if position == 1 << 20:
                os.truncate(root / "large", 1 << 20)
            return real(fd, size, position)

        stat_before = os.stat

        def remove(path: object, **more: object) -> os.stat_result:
            found = stat_before(path, **more)  # type: ignore[arg-type]
            if path in (b"gone", b"gone-too"):
                (root / os.fsdecode(path)).unlink()
            return found

        monkeypatch.setattr(os, "pread", shrink)
        monkeypatch.setattr(os, "stat", remove)
        data, notices = saved(ground.volumes, "vol")
        monkeypatch.undo()
    assert notices[:3] == [
        "gone: removed before it was read",
        "gone-too: removed before it was read",
        "large: became shorter while it was read; zeros take the place",
    ]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == [".", "large", "stays"]
        file = archive.extractfile("large")
        assert file is not None
        assert file.read() == b"x" * (1 << 20) + bytes(4 << 20)
    load(ground.volumes, "copy", data)


def test_mounted_while_it_is_read(ground: VolumeGround) -> None:
    """Not in use at the start, but meanwhile."""
    ground.volumes.create("vol")
    ground.write("vol", changes.base)
    used = list[bool]()

    def write(_data: bytes) -> None:
        if not used:
            used.append(True)
            with ground.at("vol"):
                pass

    notices = list[str]()
    backup(
        ground.volumes,
        "vol",
        write,
        compression="none",
        progress=lambda _size: None,
        notice=notices.append,
    )
    assert [text[:30] for text in notices] == ["vol: was in use while it was r"]


def broken() -> Iterator[tuple[str, bytes]]:
    """Archives of which nothing may be kept."""
    good = archives.archive(archives.directory("."), archives.member("new", data=b"x" * 1500))
    yield "nothing", b""
    yield "no archive", b"this is no archive" * 100
    yield "cut in a header", good[:700]
    yield "cut in a file", good[: 512 * 3]
    yield "cut before the end", good[:-1024]
    yield "a broken header", good[:512] + b"\xff" * 512 + good[1024:]
    packed = subprocess.run(["gzip"], input=good, capture_output=True, check=True).stdout
    yield "cut gzip", packed[:-9]
    yield "broken gzip", packed[:30] + bytes([packed[30] ^ 0xFF]) + packed[31:]
    yield "something after gzip", packed + b"more"
    zipped = subprocess.run(["zstd"], input=good, capture_output=True, check=True).stdout
    yield "cut zstd", zipped[:-5]
    yield "out by dots", archives.archive(archives.member("../out", data=b"x"))
    yield "absolute", archives.archive(archives.member("/out", data=b"x"))
    yield (
        "out by a link",
        archives.archive(archives.symlink("d", "/tmp"), archives.member("d/out", data=b"x")),
    )
    yield "a hard link out", archives.archive(archives.link("passwd", "../../etc/passwd"))
    yield "a mark", archives.archive(
        archives.member("f", pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y"})
    )  # fmt: skip
    yield "twice", archives.archive(archives.member("f"), archives.member("f"))


@pytest.mark.parametrize("what", [name for name, _ in broken()])
def test_a_bad_archive_changes_nothing(ground: VolumeGround, what: str) -> None:
    volumes = ground.volumes
    volumes.create("vol")
    ground.write("vol", changes.base)
    with ground.at("vol") as root:
        before = tree.snapshot(root, ctime=True)
    rows = volumes.all()
    data = dict(broken())[what]
    with pytest.raises(ArchiveError):
        load(volumes, "vol", data)
    with pytest.raises(ArchiveError):
        load(volumes, "new", data)
    assert [row._replace(holds=0) for row in volumes.all()] == [
        row._replace(holds=0) for row in rows
    ]
    with ground.at("vol") as root:
        tree.assert_same(before, tree.snapshot(root, ctime=True))
    assert len(list(volumes.store.driver.walk())) == 1


def test_names_mean_themselves(ground: VolumeGround) -> None:
    """No whiteouts in a volume: what an image's layer would hide is restored as it is called."""
    data = archives.archive(
        archives.member("kept", data=b"x"),
        archives.member(".wh.kept"),
        archives.member(".wh..wh..opq"),
    )
    load(ground.volumes, "vol", data)
    with ground.at("vol") as root:
        assert sorted(os.listdir(root)) == [".wh..wh..opq", ".wh.kept", "kept"]


def test_one_in_use_is_not_replaced(any_ground: VolumeGround) -> None:
    volumes = any_ground.volumes
    volumes.create("vol")
    any_ground.write("vol", changes.base)
    data, _ = saved(volumes, "vol")
    with any_ground.at("vol", "web") as root:
        with pytest.raises(FailedPreconditionError, match="in use by web"):
            load(volumes, "vol", data)
        assert (root / "etc/file1").exists()
    with pytest.raises(InvalidArgumentError):
        load(volumes, "a/b", data)


def test_begun_to_be_used_while_it_is_restored(ground: VolumeGround) -> None:
    volumes = ground.volumes
    volumes.create("vol")
    ground.write("vol", changes.base)
    data, _ = saved(volumes, "vol")
    held = list[int]()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if not held:
                held.append(volumes.hold("vol", "web", os.getpid()).id)
            return super().read(size)

    with pytest.raises(FailedPreconditionError, match="in use by web"):
        restore(volumes, "vol", Slow(data), progress=lambda _size: None, notice=lambda _text: None)
    volumes.release(held[0])
    assert len(list(volumes.store.driver.walk())) == 1


@pytest.mark.parametrize("new", [False, True])
def test_interrupted_when_the_files_are_the_volumes_already(
    ground: VolumeGround, monkeypatch: pytest.MonkeyPatch, *, new: bool
) -> None:
    """While the old ones are removed, say, which can take long."""
    ground.volumes.create("vol")
    with ground.at("vol") as root:
        (root / "file").write_text("saved")
    data, _ = saved(ground.volumes, "vol")
    name = "new" if new else "vol"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VolumeTree, "link", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(ground.volumes, name, data)
    with ground.at(name) as root:
        assert (root / "file").read_text() == "saved"
    cleanup(ground.volumes.store)


def test_a_full_disk(scratch: Path, ground: VolumeGround) -> None:
    """ENOSPC, and the volume as it was."""
    data = archives.archive(archives.member("big", data=bytes(64 << 20)))
    small = scratch / "small"
    small.mkdir()
    image = scratch / "image"
    with image.open("wb") as file:
        file.truncate(48 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(small)], check=True)
    try:
        other = VolumeGround(ground.kit, small, ground._watchdog)
        other.base = scratch
        other.volumes.create("vol")
        with pytest.raises(OSError, match="No space left"):
            load(other.volumes, "vol", data)
        assert len(list(other.volumes.store.driver.walk())) == 1
        other.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vol", "new"])
def test_killed_in_the_midst_of_restoring(any_ground: VolumeGround, name: str) -> None:
    """The old files or the new ones, and nothing else is left."""
    volumes = any_ground.volumes
    volumes.create("vol")

    def old(root: Path) -> None:
        (root / "which").write_text("old")

    any_ground.write("vol", old)
    source = archives.archive(
        archives.member("which", data=b"new"),
        *(archives.member(f"file{number}", data=b"x" * 100) for number in range(20)),
    )
    calls = any_ground.in_child(lambda opened: load(opened, "scratch", source))
    volumes.remove("scratch")
    dice = random.Random(name)
    seen = set()
    for kill_at in sorted(dice.sample(range(1, calls), 12)):
        any_ground.in_child(lambda opened: load(opened, name, source), kill_at)
        cleanup(volumes.store)
        volumes.store.driver.cleanup()
        found = {volume.name for volume in volumes.all()}
        assert found <= {"vol", name}
        assert len(list(volumes.store.driver.walk())) == len(found), kill_at
        with any_ground.at("vol") as root:
            which = (root / "which").read_text()
            assert len(os.listdir(root)) == {"old": 1, "new": 21}[which]
            seen.add(which)
        if "new" in found:
            volumes.remove("new")
    assert seen


@pytest.mark.slow
def test_killed_in_the_midst_of_a_backup(any_ground: VolumeGround) -> None:
    volumes = any_ground.volumes
    volumes.create("vol")
    any_ground.write("vol", changes.base)
    with any_ground.at("vol") as root:
        expected = tree.snapshot(root)
        calls = any_ground.in_child(lambda opened: saved(opened, "vol"))
        for kill_at in sorted(random.Random(0).sample(range(1, calls), 8)):
            any_ground.in_child(lambda opened: saved(opened, "vol"), kill_at)
            cleanup(volumes.store)
    assert volumes.in_use() == set()
    with any_ground.at("vol") as root:
        assert_same(expected, tree.snapshot(root))
    volumes.remove("vol")
    cleanup(volumes.store)
    assert list(volumes.store.driver.walk()) == []
