"""Archives not to be trusted: refused with the member's name, and nothing outside changed."""

from __future__ import annotations

import errno
import gzip
import os
import random
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tree
from tests.archives import (
    Nothing,
    apply_layer,
    apply_plain,
    archive,
    directory,
    framed,
    link,
    member,
    pack,
    symlink,
)
from tests.ordinary import as_user
from unionfs.errors import ArchiveError
from unionfs.layer import compression
from unionfs.layer.pack import TarWriter
from unionfs.layer.xattrs import Marks

pytestmark = pytest.mark.needs_root


def pax(name: str, kind: bytes = tarfile.REGTYPE, **records: str) -> bytes:
    named = {key.replace("__", "."): value for key, value in records.items()}
    return member(name, kind, pax_headers=named)


def raw_pax(records: bytes, then: bytes, size: int | None = None) -> bytes:
    header = tarfile.TarInfo("PaxHeader")
    header.type = tarfile.XHDTYPE
    header.size = len(records) if size is None else size
    return header.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512) + then


def record(key: bytes, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d%s" % (length, rest)


GOOD = member("good", data=b"good")
#: What is refused: members, the name that is told, a word of the reason.
HOSTILE = {
    "absolute": ([member("/etc/absolute")], "/etc/absolute", "absolute"),
    "dot dot": ([member("../outside")], "../outside", "leads out"),
    "dot dot inside": ([member("a/../../outside")], "a/../../outside", "leads out"),
    "dot dot alone": ([directory("..")], "..", "leads out"),
    "through a link out": (
        [symlink("way", "../outside"), member("way/in")],
        "way/in",
        "symbolic link",
    ),
    "through a link to the root": ([symlink("way", "/"), member("way/in")], "way/in", "symbolic"),
    "through a link inside": (
        [directory("dir"), symlink("way", "dir"), member("way/in")],
        "way/in",
        "symbolic link",
    ),
    "deep through a link": ([symlink("way", "."), member("way/a/b/c")], "way/a/b/c", "symbolic"),
    "through a file": ([member("file"), member("file/in")], "file/in", "lies below"),
    "link replaced": ([directory("dir"), symlink("dir", "../outside")], "dir", "twice"),
    "directory over link": ([symlink("dir", "../outside"), directory("dir")], "dir", "twice"),
    "file twice": ([member("file"), member("./file")], "file", "twice"),
    "file over link": ([symlink("x", "../outside/kept"), member("x", data=b"!")], "x", "twice"),
    "hard link out": ([link("x", "../outside/kept")], "x", "leads out"),
    "hard link absolute": ([link("x", "/etc/passwd")], "x", "absolute"),
    "hard link to nothing": ([link("x", "nothing")], "x", "no member before it"),
    "hard link to itself": ([link("x", "x")], "x", "no member before it"),
    "hard link to a directory": ([directory("d"), link("x", "d")], "x", "a directory"),
    "hard link through a link": (
        [symlink("way", "../outside"), link("x", "way/kept")],
        "x",
        "no member before it",
    ),
    "whiteout of dot dot": ([member(".wh...")], ".wh...", "no name"),
    "whiteout of dot": ([member(".wh..")], ".wh..", "no name"),
    "whiteout of nothing": ([member(".wh.")], ".wh.", "no name"),
    "whiteout of the parent": ([member("a/.wh...")], "a/.wh...", "no name"),
    "whiteout through a link": (
        [symlink("way", "../outside"), member("way/.wh.kept")],
        "way/.wh.kept",
        "symbolic link",
    ),
    "opaque through a link": (
        [symlink("way", "../outside"), member("way/.wh..wh..opq")],
        "way/.wh..wh..opq",
        "symbolic link",
    ),
    "through a link among bookkeeping": (
        [symlink(".wh..wh.plnk", "../outside"), member(".wh..wh.plnk/kept")],
        ".wh..wh.plnk/kept",
        "symbolic link",
    ),
    "in an opaque mark": ([member(".wh..wh..opq/a")], ".wh..wh..opq/a", "lies in a whiteout"),
    "in a whiteout": ([member(".wh.a/b")], ".wh.a/b", "lies in a whiteout"),
    "device 0:0": ([member("x", tarfile.CHRTYPE)], "x", "would hide"),
    "device numbers": ([member("x", tarfile.BLKTYPE, devmajor=4096)], "x", "4096:0"),
    "root is a file": ([member(".", data=b"x")], ".", "root of a tree"),
    "root is a link": ([symlink("./", "/etc")], "./", "root of a tree"),
    "root is a device": ([member(".", tarfile.BLKTYPE, devmajor=8)], ".", "root of a tree"),
    "long name": ([member("n" * 256)], "n" * 200 + "...", "too long"),
    "long path": ([member("/".join(["n" * 200] * 21))], "nnn", "too long"),
    "volume": ([member("label", b"V")], "label", "of a type"),
    "multi-volume": ([member("part", b"M")], "part", "of a type"),
    "unknown type": ([member("what", b"Z")], "what", "of a type"),
    "NUL in a name": ([raw_pax(record(b"path", b"a\0b"), member("x"))], "a\\0b", "NUL"),
    "empty link": ([symlink("x", "")], "x", "symbolic link to nothing"),
    "NUL in a link": (
        [raw_pax(record(b"linkpath", b"a\0b"), symlink("x", "y"))],
        "x",
        "symbolic link",
    ),
    "link target too long": ([symlink("x", "t" * 5000)], "x", "too long"),
    "owner -1": ([pax("x", uid="4294967295")], "x", "owner"),
    "owner too large": ([pax("x", gid="99999999999")], "x", "owner"),
    "size of nonsense": ([pax("x", size="nonsense")], "x", "no number"),
    "negative owner": ([pax("x", uid="-1")], "x", "no number"),
    "time too far": ([pax("x", mtime="1e30")], "x", "a time"),
    "time is none": ([pax("x", mtime="nan")], "x", "a time"),
    "overlay mark": ([pax("x", SCHILY__xattr__trusted__overlay__opaque="y")], "x", "a mark"),
    "user mark": ([pax("x", SCHILY__xattr__user__overlay__redirect="/etc")], "x", "a mark"),
    "escaped mark": (
        [pax("x", SCHILY__xattr__trusted__overlay__overlay__opaque="y")],
        "x",
        "a mark",
    ),
    "foreign mark": ([pax("x", SCHILY__xattr__user__fuseoverlayfs__opaque="y")], "x", "a mark"),
    "stat override": (
        [pax("x", SCHILY__xattr__user__containers__override_stat="0:0:0755")],
        "x",
        "a mark",
    ),
    "privileged stat override": (
        [pax("./", tarfile.DIRTYPE, SCHILY__xattr__security__fuseoverlayfs__override_stat="0:0:0")],
        ".",
        "a mark",
    ),
    "mark on the root": (
        [pax("./", tarfile.DIRTYPE, SCHILY__xattr__trusted__overlay__metacopy="")],
        ".",
        "a mark",
    ),
    "xattr of no namespace": ([pax("x", SCHILY__xattr__nonsense="y")], "x", "nonsense"),
    "xattr without a name": ([pax("x", SCHILY__xattr__="y")], "x", "proper name"),
    "acl": ([pax("x", SCHILY__acl__access="nonsense")], "x", "ACL"),
    "sparse beyond": (
        [pax("x", GNU__sparse__map="100,10", GNU__sparse__size="50")],
        "x",
        "no sense",
    ),
    "sparse backward": (
        [pax("x", GNU__sparse__map="10,5,0,5", GNU__sparse__size="50")],
        "x",
        "no sense",
    ),
    "sparse of nothing": (
        [pax("x", GNU__sparse__map="0,1000000", GNU__sparse__size="1000000")],
        "x",
        "more than there is",
    ),
    "sparse and huge": (
        [pax("x", GNU__sparse__map="0,0", GNU__sparse__size=str(1 << 70))],
        "x",
        "size",
    ),
    "sparse and too huge for the file system": (
        [pax("x", GNU__sparse__map="0,0", GNU__sparse__size=str((1 << 63) - 1))],
        "x",
        "too large",
    ),
}


@pytest.fixture
def outside(scratch: Path) -> Iterator[Path]:
    """A directory beside the layer that must stay as it is."""
    path = scratch / "outside"
    path.mkdir()
    (path / "kept").write_text("kept")
    before = tree.snapshot(path, ctime=True)
    yield path
    tree.assert_same(before, tree.snapshot(path, ctime=True))


@pytest.mark.parametrize("plain", [False, True], ids=["layer", "plain"])
@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_with_its_name(
    scratch: Path, outside: Path, name: str, *, plain: bool
) -> None:
    members, shown, reason = HOSTILE[name]
    target = scratch / "layer"
    target.mkdir()
    data = archive(GOOD, *members, member("after", data=b"after"))
    with pytest.raises(ArchiveError) as caught:
        apply_plain(data, target) if plain else apply_layer(data, target, Nothing())
    told = str(caught.value)
    assert told.startswith("member ")
    assert shown.replace("\\0", "\0") in told
    assert reason in told
    assert len(told) < 600
    assert (target / "good").read_bytes() == b"good"
    assert not (target / "after").exists()


def test_bookkeeping_that_is_a_link_does_not_stay(scratch: Path, outside: Path) -> None:
    target = scratch / "layer"
    target.mkdir()
    apply_layer(archive(symlink(".wh..wh.plnk", "../outside"), GOOD), target)
    assert os.listdir(target) == ["good"]


def cut(data: bytes, at: int) -> bytes:
    return data[:at]


LARGE = archive(GOOD, member("large", data=b"L" * 10_000), member("last", data=b"last"))


@pytest.mark.parametrize("plain", [False, True], ids=["layer", "plain"])
def test_a_negative_size_is_refused(scratch: Path, *, plain: bool) -> None:
    target = scratch / "layer"
    target.mkdir()
    data = archive(GOOD, pax("x", size="-1000"), member("after", data=b"after"))
    # Newer releases of Python read no such header at all.
    with pytest.raises(ArchiveError, match=r"^(member x: .*no number|after member good: a broken)"):
        apply_plain(data, target) if plain else apply_layer(data, target, Nothing())
    assert not (target / "after").exists()


BROKEN = {
    "in a header": (cut(LARGE, 1024 + 100), "too early"),
    "between members": (cut(LARGE, 1024), "too early"),
    "in a file": (cut(LARGE, 1024 + 512 + 5000), "in the midst"),
    "in the padding": (cut(LARGE, 1024 + 512 + 10_000 + 20), "too early"),
    "before the end": (LARGE[:-1024], "too early"),
    "a broken header": (archive(GOOD, b"x" * 512, member("x")), "broken header"),
    "a wrong sum": (archive(GOOD, member("x").replace(b"0000644", b"0000645")), "broken header"),
    "more after the end": (archive(GOOD) + member("x"), "follows the end"),
    "nothing": (b"", "no tar archive"),
    "no archive": (b"#!/bin/sh\n" * 100, "no tar archive"),
    "an absurd pax size": (
        archive(GOOD, raw_pax(b"", member("x"), size=8_000_000_000)),
        "more than 8 MiB",
    ),
    "a name of 10 MB": (archive(GOOD, member("n" * 10_000_000)), "more than 8 MiB"),
    "a GNU name of 7 GB": (
        archive(GOOD, member("././@LongLink", b"L").replace(b"0" * 11, b"7" * 11, 1)),
        "header",
    ),
    "pax headers without an end": (
        archive(GOOD, raw_pax(record(b"a", b"b"), b"") * 3000, member("x")),
        "header",
    ),
    "pax records of nonsense": (
        archive(GOOD, raw_pax(b"99999999999999999999 path=x\n", member("x"))),
        "header",
    ),
    "a map without an end": (
        archive(
            GOOD,
            raw_pax(
                record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"),
                member("x", data=b"999999999999\n".ljust(2048, b"0")),
            ),
        ),
        "header",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_archive_is_refused(scratch: Path, name: str) -> None:
    data, reason = BROKEN[name]
    with pytest.raises(ArchiveError) as caught:
        apply_layer(data, scratch)
    assert reason in str(caught.value)


def test_a_header_chain_of_gnu_sparse_parts_has_an_end(scratch: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[482] = 1  # more parts follow
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    part = bytearray(512)
    part[504] = 1
    with pytest.raises(ArchiveError, match="more than 8 MiB"):
        apply_layer(archive(bytes(block), bytes(part) * 20_000), scratch)


def test_a_bomb_is_refused_with_its_name(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_HARMLESS", 16 << 20)  # as much as 1 GiB takes its time
    header = tarfile.TarInfo("bomb")
    header.size = 96 << 20
    # A member of gzip is 1 MiB here: 1,030 times less.
    zeros = gzip.compress(bytes(1 << 20))
    data = gzip.compress(header.tobuf(tarfile.GNU_FORMAT)) + zeros * 96
    with pytest.raises(ArchiveError, match="member bomb: unpacks to more than 500 times"):
        apply_layer(data, scratch)
    assert (scratch / "bomb").stat().st_size < header.size


def test_what_finds_no_room_is_not_begun(scratch: Path) -> None:
    header = tarfile.TarInfo("huge")
    header.size = 1 << 60
    with pytest.raises(OSError, match="No space left") as caught:
        apply_layer(header.tobuf(tarfile.GNU_FORMAT) + b"x" * 4096, scratch)
    assert caught.value.filename == "huge"
    assert not (scratch / "huge").exists()


def test_an_ordinary_user_has_no_devices_and_owns_all(scratch: Path) -> None:
    good = archive(
        member("setuid", mode=0o4755, uid=12, gid=34),
        pax("noted", SCHILY__xattr__user__note="1", SCHILY__xattr__trusted__note="1"),
        directory("dir", mode=0o555),
        member("dir/file"),
        member("dir/.wh.gone"),
        directory("replaced"),
        member(".wh.replaced"),
    )
    os.chown(scratch, 65534, 65534)

    def work() -> tuple[int, set[bytes]]:
        marks = Marks(user=True)
        done = apply_layer(good, scratch, Nothing(), privileged=False, marks=marks)
        device = archive(member("null", tarfile.CHRTYPE, devmajor=1, devminor=3))
        with pytest.raises(ArchiveError, match="member null: a character device, which only root"):
            apply_layer(device, scratch, Nothing(), privileged=False, marks=marks)
        return done.squashed, done.dropped

    assert as_user(work) == (5, {b"trusted.note"})
    status = os.stat(scratch / "setuid")
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (65534, 0o755)
    assert stat.S_IMODE(os.stat(scratch / "dir").st_mode) == 0o555
    assert stat.S_ISCHR(os.lstat(scratch / "dir/gone").st_mode)
    assert os.getxattr(scratch / "replaced", "user.overlay.opaque") == b"y"
    assert tree.xattrs(scratch / "noted") == {"user.note": b"1"}


RICH = archive(
    directory("dir", mode=0o750),
    member("dir/file", data=b"x" * 700, mtime=1.5),
    symlink("dir/link", "../elsewhere"),
    link("dir/second", "dir/file"),
    member("n" * 150, data=b"long"),
    pax("noted", SCHILY__xattr__user__note="value", mtime="1500000000.123456789"),
    pax("sparse", GNU__sparse__map="0,0", GNU__sparse__size="100000"),
    member("dir/.wh.gone"),
    member("dir/.wh..wh..opq"),
    member("fifo", tarfile.FIFOTYPE),
    member("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_archives_are_applied_or_refused(scratch: Path, outside: Path, seed: int) -> None:
    """Whatever bytes change: no other exception, nothing outside, and framing stays exact."""
    chance = random.Random(seed)
    refused = 0
    for number in range(250):
        data = bytearray(RICH)
        for _ in range(chance.choice((1, 1, 2, 8))):
            mutate(data, chance)
        target = scratch / f"layer-{number}"
        target.mkdir()
        try:
            assert framed(bytes(data), target) == bytes(data)
        except ArchiveError:
            refused += 1
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    assert 0 < refused < 250


def mutate(data: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(data))
    match chance.randrange(6):
        case 0:
            data[place] ^= 1 << chance.randrange(8)
        case 1:
            data[place : place + 8] = b"7" * 8
        case 2:
            del data[place : place + chance.choice((1, 512, 700))]
        case 3:
            start = chance.randrange(0, len(data), 512)
            data[place // 512 * 512 :] = data[start : start + 512] + data[place // 512 * 512 :]
        case 4:
            data[place : place + 4] = bytes(4)
        case _:
            data[place : place + 3] = chance.choice((b"../", b"/..", b".wh", b"\xff\xfe\x80"))
    if chance.random() < 0.7:
        correct_sums(data)


def correct_sums(data: bytearray) -> None:
    """Make each header's sum right again, so that mutations get past it."""
    for start in range(0, len(data) - 511, 512):
        block = data[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(block)


NAMES = st.lists(
    st.binary(min_size=1, max_size=20).filter(
        lambda name: not {0, 47} & set(name) and name not in (b".", b"..") and name[:4] != b".wh."
    ),
    min_size=1,
    max_size=4,
).map(b"/".join)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    names=st.dictionaries(NAMES, st.binary(max_size=1500), max_size=8),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    mtime=st.integers(-(2**31) + 1, 15_000_000_000).map(
        lambda seconds: seconds * 10**9 + 123_456_789
    ),
    xattr=st.binary(max_size=200),
    text=st.text(max_size=30),
)
def test_members_come_back_as_they_were(
    module_scratch: Path,
    names: dict[bytes, bytes],
    mode: int,
    uid: int,
    mtime: int,
    xattr: bytes,
    text: str,
) -> None:
    from unionfs.layer.archive import Kind, Member  # noqa: PLC0415

    paths = [path for path in names if not any(other.startswith(path + b"/") for other in names)]
    written: list[bytes] = []
    writer = TarWriter(written.append)
    note = {b"user.note": xattr, b"user." + (text.encode().replace(b"\0", b"") or b"x"): b"="}
    expected = []
    for path in sorted(paths):
        data = names[path]
        segments = ((0, len(data)),) if data else ()
        one = Member(path, Kind.FILE, mode, uid, uid, mtime, None, len(data), segments, xattrs=note)
        expected.append(one)
        writer.add(one, [data])
    writer.finish()
    target = module_scratch / os.urandom(8).hex()
    target.mkdir()
    data = b"".join(written)
    assert framed(data, target) == data
    for one in expected:
        place = os.fsencode(target) + b"/" + one.path
        status = os.lstat(place)
        assert stat.S_IMODE(status.st_mode) == mode
        assert (status.st_uid, status.st_mtime_ns) == (uid, mtime)
        assert Path(os.fsdecode(place)).read_bytes() == names[one.path]
        assert {os.fsencode(n): os.getxattr(place, n) for n in os.listxattr(place)} == note
    assert pack(target) == pack(target)
