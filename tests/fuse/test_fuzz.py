"""Requests that no kernel makes: each is answered once, and the union and its lowers survive."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests import build, tree
from tests.fuse.wire import SILENT, Wire, message, wired
from tests.mounts import Layers
from tests.union.client import Client, opened
from unionfs.fuse import protocol
from unionfs.fuse.interface import ROOT_ID
from unionfs.fuse.protocol import Opcode
from unionfs.fuse.requests import (
    FS_IOC_FSGETXATTR,
    FS_IOC_GETFLAGS,
    FS_IOC_MEASURE_VERITY,
    FS_IOC_SETFLAGS,
)

pytestmark = [pytest.mark.needs_root]

NAMES = [b"file", b"big", b"dir", b"link", b"new", b"other", b"inner", b"hard", b"made", b"absent"]
BAD_NAMES = [
    b"",
    b"../lower1/file",
    b"dir/inner",
    b"/etc/passwd",
    b"..",
    b".",
    b"a" * 256,
    b"a" * 5000,
    b".wh.file",
    b".wh..wh..opq",
    b"\xff\xfe",
    b"nul\0inside",
]
WILD = [0, 1, 2, 3, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
#: What the kernel asks to be the answer of the right length, by opcode.
SIZES = {
    Opcode.LOOKUP: protocol.ENTRY_OUT.size,
    Opcode.MKNOD: protocol.ENTRY_OUT.size,
    Opcode.MKDIR: protocol.ENTRY_OUT.size,
    Opcode.SYMLINK: protocol.ENTRY_OUT.size,
    Opcode.LINK: protocol.ENTRY_OUT.size,
    Opcode.GETATTR: protocol.ATTR_OUT.size,
    Opcode.SETATTR: protocol.ATTR_OUT.size,
    Opcode.OPEN: protocol.OPEN_OUT.size,
    Opcode.CREATE: protocol.ENTRY_OUT.size + protocol.OPEN_OUT.size,
    Opcode.TMPFILE: protocol.ENTRY_OUT.size + protocol.OPEN_OUT.size,
    Opcode.WRITE: protocol.WRITE_OUT.size,
    Opcode.STATFS: 80,
    Opcode.STATX: 288,
    Opcode.LSEEK: 8,
    Opcode.COPY_FILE_RANGE: 8,
    Opcode.COPY_FILE_RANGE_64: 8,
    Opcode.UNLINK: 0,
    Opcode.RMDIR: 0,
    Opcode.RENAME: 0,
    Opcode.RENAME2: 0,
    Opcode.RELEASE: 0,
    Opcode.FSYNC: 0,
    Opcode.FSYNCDIR: 0,
    Opcode.SETXATTR: 0,
    Opcode.REMOVEXATTR: 0,
    Opcode.FALLOCATE: 0,
    Opcode.SYNCFS: 0,
}


#: What never succeeds where there is no upper layer.
CHANGES = {
    Opcode.SETATTR,
    Opcode.SYMLINK,
    Opcode.MKNOD,
    Opcode.MKDIR,
    Opcode.UNLINK,
    Opcode.RMDIR,
    Opcode.RENAME,
    Opcode.RENAME2,
    Opcode.LINK,
    Opcode.WRITE,
    Opcode.SETXATTR,
    Opcode.REMOVEXATTR,
    Opcode.CREATE,
    Opcode.TMPFILE,
    Opcode.FALLOCATE,
    Opcode.COPY_FILE_RANGE,
    Opcode.COPY_FILE_RANGE_64,
}


@dataclass
class Fuzz:
    """Makes requests: good ones, and what becomes of them."""

    rng: random.Random
    nodes: list[int] = field(default_factory=lambda: [ROOT_ID])
    handles: list[int] = field(default_factory=lambda: [0])

    def name(self) -> bytes:
        return self.rng.choice(NAMES if self.rng.random() < 0.85 else BAD_NAMES) + b"\0"

    def node(self) -> int:
        kind = self.rng.random()
        if kind < 0.4:
            return ROOT_ID
        return self.rng.choice(self.nodes[-20:] if kind < 0.93 else WILD)

    def handle(self) -> int:
        return self.rng.choice(self.handles[-10:] if self.rng.random() < 0.9 else WILD)

    def number(self) -> int:
        if self.rng.random() < 0.8:
            return self.rng.choice([0, 1, 100, 4096, 70_000])
        return self.rng.choice(WILD)

    def fields(self, form: struct.Struct, *given: int) -> bytes:
        """*form* with what is *given*, and numbers for the rest."""
        letters = form.format.lstrip("=")
        values = [*given, *(self.number() for _ in letters[len(given) :])]
        return form.pack(*(_fit(value, code) for value, code in zip(values, letters, strict=True)))

    def body(self, opcode: int) -> bytes:
        maker = BODIES.get(opcode)
        return self.rng.randbytes(self.rng.choice([0, 8, 40])) if maker is None else maker(self)

    def request(self, unique: int) -> tuple[int, bytes]:
        """An opcode, and a request of it that may be good."""
        odd = self.rng.random() < 0.03
        opcode = self.rng.choice([0, 7, 19, 54, 4096, (1 << 32) - 1] if odd else list(Opcode))
        body = self.body(opcode)
        damage = self.rng.random()
        if damage < 0.08:
            body = body[: self.rng.randrange(len(body) + 1)]
        elif damage < 0.13:
            body += self.rng.randbytes(self.rng.choice([1, 7, 64, 5000]))
        elif damage < 0.20 and body:
            noisy = bytearray(body)
            for _ in range(self.rng.randint(1, 8)):
                noisy[self.rng.randrange(len(noisy))] = self.rng.randrange(256)
            body = bytes(noisy)
        raw = bytearray(message(opcode, bytes(body), self.node(), unique=unique))
        if self.rng.random() < 0.02:
            raw[:4] = self.rng.randbytes(4)
        return opcode, bytes(raw)

    def learn(self, opcode: int, body: bytes) -> None:
        """Use in what follows what an answer told."""
        if opcode in (Opcode.LOOKUP, Opcode.CREATE, Opcode.MKDIR, Opcode.TMPFILE) and body:
            node = protocol.ENTRY_OUT.unpack_from(body)[0]
            if node:
                self.nodes.append(node)
        if opcode in (Opcode.OPEN, Opcode.CREATE, Opcode.TMPFILE) and body:
            self.handles.append(protocol.OPEN_OUT.unpack(body[-protocol.OPEN_OUT.size :])[0])


def _fit(value: int, code: str) -> int:
    """*value* as a field of the struct format *code* takes it."""
    bits = 8 * struct.calcsize(f"={code}")
    value %= 1 << bits
    return value - (1 << bits) if code.islower() and value >> (bits - 1) else value


def _xattr(fuzz: Fuzz) -> bytes:
    return fuzz.rng.choice([b"user.a", b"trusted.overlay.opaque", b"security.other", b"x"])


def _mode(fuzz: Fuzz) -> int:
    kind = fuzz.rng.choice([stat.S_IFREG, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR, 0xFFFF])
    return kind | fuzz.rng.choice([0o644, 0o4755, 0, 0o7777])


def _flags(fuzz: Fuzz) -> int:
    wild = os.O_PATH | os.O_DIRECTORY | os.O_TMPFILE | os.O_CREAT | 0xFF000000
    return fuzz.rng.choice([os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_TRUNC, wild, 3])


def _data(fuzz: Fuzz) -> bytes:
    return fuzz.rng.randbytes(fuzz.rng.choice([0, 5, 4096]))


def _write(fuzz: Fuzz) -> bytes:
    data = _data(fuzz)
    size = len(data) if fuzz.rng.random() < 0.8 else fuzz.number()
    offset = fuzz.rng.choice([0, 10, 50_000, 1 << 63, (1 << 64) - 1])
    return fuzz.fields(protocol.WRITE_IN, fuzz.handle(), offset, size) + data


def _setxattr(fuzz: Fuzz) -> bytes:
    data = _data(fuzz)
    size = len(data) if fuzz.rng.random() < 0.8 else fuzz.number()
    flags = fuzz.rng.choice([0, 1, 2, 3, 1 << 31])
    return protocol.SETXATTR_IN.pack(size % (1 << 32), flags) + _xattr(fuzz) + b"\0" + data


def _setattr(fuzz: Fuzz) -> bytes:
    # No size in the gigabytes, which is no error and would fill the disk's numbers, not the disk.
    size = fuzz.rng.choice([0, 3, 5000, 1 << 63, (1 << 64) - 1])
    valid = fuzz.rng.choice([0, 1, 8, 16, 32, 48, 2, 4, 6, 0x7FF, 0xFFFFFFFF])
    return fuzz.fields(protocol.SETATTR_IN, valid, 0, fuzz.handle(), size)


def _fallocate(fuzz: Fuzz) -> bytes:
    place = fuzz.rng.choice([0, 4096, 1 << 63]), fuzz.rng.choice([0, 4096, 60_000, 1 << 63])
    mode = fuzz.rng.choice([0, 1, 3, 8, 16, 32, 0xFFFFFFFF])
    return fuzz.fields(protocol.FALLOCATE_IN, fuzz.handle(), *place, mode)


def _ioctl(fuzz: Fuzz) -> bytes:
    known = [FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_MEASURE_VERITY, 0x5401]
    sizes = [fuzz.rng.choice([0, 4, 8, 70_000, (1 << 32) - 1]) for _ in range(2)]
    # Neither immutable nor append-only: nobody could clean up.
    value = fuzz.rng.choice([0, 0x80, 0x40000, 8])
    head = protocol.IOCTL_IN.pack(fuzz.handle(), 0, fuzz.rng.choice(known), 0, *sizes)
    return head + struct.pack("=Q", value)


def _copy_range(fuzz: Fuzz) -> bytes:
    form = protocol.COPY_FILE_RANGE_IN
    offset, length = fuzz.rng.choice([0, 100, 1 << 63]), fuzz.rng.choice([0, 5000, (1 << 64) - 1])
    return fuzz.fields(form, fuzz.handle(), offset, fuzz.node(), fuzz.handle(), 0, length)


def _batch(fuzz: Fuzz) -> bytes:
    pairs = [(fuzz.node(), fuzz.rng.choice([0, 1])) for _ in range(fuzz.rng.randrange(4))]
    count = len(pairs) if fuzz.rng.random() < 0.8 else fuzz.number() % (1 << 32)
    packed = b"".join(protocol.FORGET_ONE.pack(*pair) for pair in pairs)
    return protocol.BATCH_FORGET_IN.pack(count, 0) + packed


BODIES: dict[int, Callable[[Fuzz], bytes]] = {
    Opcode.LOOKUP: Fuzz.name,
    Opcode.UNLINK: Fuzz.name,
    Opcode.RMDIR: Fuzz.name,
    Opcode.SYMLINK: lambda f: f.name() + f.name(),
    Opcode.MKNOD: lambda f: f.fields(protocol.MKNOD_IN, _mode(f)) + f.name(),
    Opcode.MKDIR: lambda f: f.fields(protocol.MKDIR_IN) + f.name(),
    Opcode.RENAME: lambda f: f.fields(protocol.RENAME_IN, f.node()) + f.name() + f.name(),
    Opcode.RENAME2: lambda f: (
        f.fields(protocol.RENAME2_IN, f.node(), f.rng.randrange(8)) + f.name() + f.name()
    ),
    Opcode.LINK: lambda f: f.fields(protocol.LINK_IN, f.node()) + f.name(),
    Opcode.OPEN: lambda f: f.fields(protocol.OPEN_IN, _flags(f)),
    Opcode.CREATE: lambda f: f.fields(protocol.CREATE_IN, _flags(f), _mode(f)) + f.name(),
    Opcode.TMPFILE: lambda f: f.fields(protocol.CREATE_IN, _flags(f), _mode(f)) + f.name(),
    Opcode.READ: lambda f: f.fields(protocol.READ_IN, f.handle()),
    Opcode.READDIR: lambda f: f.fields(protocol.READ_IN, 0),
    Opcode.READDIRPLUS: lambda f: f.fields(protocol.READ_IN, 0),
    Opcode.WRITE: _write,
    Opcode.SETATTR: _setattr,
    Opcode.SETXATTR: _setxattr,
    Opcode.GETXATTR: lambda f: (
        f.fields(protocol.GETXATTR_IN, f.rng.choice([0, 70_000])) + _xattr(f) + b"\0"
    ),
    Opcode.LISTXATTR: lambda f: f.fields(protocol.GETXATTR_IN),
    Opcode.REMOVEXATTR: lambda f: _xattr(f) + b"\0",
    Opcode.RELEASE: lambda f: f.fields(protocol.RELEASE_IN, f.handle()),
    Opcode.FSYNC: lambda f: f.fields(protocol.FSYNC_IN, f.handle()),
    Opcode.FSYNCDIR: lambda f: f.fields(protocol.FSYNC_IN, f.handle()),
    Opcode.FORGET: lambda f: f.fields(protocol.FORGET_IN, f.rng.choice([0, 1])),
    Opcode.BATCH_FORGET: _batch,
    Opcode.FALLOCATE: _fallocate,
    Opcode.LSEEK: lambda f: f.fields(
        protocol.LSEEK_IN, f.handle(), f.rng.choice([0, 1 << 63]), f.rng.choice([3, 4, 0])
    ),
    Opcode.COPY_FILE_RANGE: _copy_range,
    Opcode.COPY_FILE_RANGE_64: _copy_range,
    Opcode.IOCTL: _ioctl,
}


def fill(layers: Layers) -> None:
    lower = layers.lowers[0]
    build.write(lower / "file", b"lower" * 100)
    build.write(lower / "big", b"b" * 200_000)
    build.write(lower / "dir" / "inner", b"inner")
    os.symlink("file", lower / "link")
    os.link(lower / "file", lower / "hard")
    build.write(layers.lowers[1] / "dir" / "other", b"below")
    assert layers.upper is not None
    build.write(layers.upper / "dir" / "new", b"upper")
    build.write(layers.base / "elsewhere" / "secret", b"not in the union")


def outside(layers: Layers) -> tree.Tree:
    """All that is no business of the union's."""
    found: dict[bytes, tree.Entry] = {}
    for path in [*layers.lowers, layers.base / "elsewhere"]:
        found |= {os.fsencode(path.name) + b"/" + n: e for n, e in tree.snapshot(path).items()}
    names = sorted(os.listdir(layers.base))
    assert names == ["elsewhere", "lower1", "lower2", "merged", "upper", "work"]
    return found


def check(opcode: int, code: int, body: bytes, raw: bytes) -> None:
    """Fail unless the kernel would take the answer."""
    assert code == 0 or code in errno.errorcode
    expected = SIZES.get(Opcode(opcode)) if opcode in list(Opcode) else None
    if code == 0 and expected is not None:
        assert len(body) == expected, Opcode(opcode)
    if code == 0 and opcode in (Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS):
        size = struct.unpack_from("=I", raw, protocol.IN_HEADER.size + 16)[0]
        assert len(body) <= size
    if code == 0 and opcode in (Opcode.GETXATTR, Opcode.LISTXATTR):
        size = struct.unpack_from("=I", raw, protocol.IN_HEADER.size)[0]
        assert len(body) <= (size or protocol.GETXATTR_OUT.size)
    if code == 0 and opcode == Opcode.WRITE:
        size = struct.unpack_from("=I", raw, protocol.IN_HEADER.size + 16)[0]
        assert size == len(raw) - protocol.IN_HEADER.size - protocol.WRITE_IN.size
    assert len(body) <= protocol.MAX_DATA


def refused(opcode: int, code: int, body: bytes, raw: bytes) -> None:
    """Fail unless a union that cannot be written refuses what would write it."""
    check(opcode, code, body, raw)
    assert code or opcode not in CHANGES
    if opcode == Opcode.OPEN and code == 0:
        flags = struct.unpack_from("=I", raw, protocol.IN_HEADER.size)[0]
        assert flags & os.O_ACCMODE == os.O_RDONLY
        assert not flags & os.O_TRUNC


def bombard(
    wire: Wire, seed: int, rounds: int, judge: Callable[[int, int, bytes, bytes], None] = check
) -> None:
    fuzz = Fuzz(random.Random(seed))
    for number in range(rounds):
        unique = 2 + 2 * number
        opcode, raw = fuzz.request(unique)
        wire.run(raw)
        if opcode in SILENT:
            assert wire.silent()
            continue
        found, (code, body) = wire.answer()
        assert found == unique
        judge(opcode, code, body, raw)
        fuzz.learn(opcode, body)
    assert wire.silent()


async def shown(client: Client) -> Any:
    return await client.tree()


@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("seed", range(8))
async def test_every_request_gets_its_answer(
    layers: Layers, seed: int, opens: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(layers)
    before = outside(layers)
    timeout = 0.0 if seed % 3 == 2 else 86_400.0
    with wired(layers, opens=opens, volatile=True, timeout=timeout) as wire:
        fds = len(os.listdir("/proc/self/fd"))
        bombard(wire, seed, 1500)
        assert len(os.listdir("/proc/self/fd")) < fds + 600
        assert not wire.session._workers._busy
        seen = await shown(Client(wire.session._fs))  # type: ignore[arg-type]
    logged = capfd.readouterr().err
    assert ": ERROR: " not in logged, logged
    tree.assert_same(before, outside(layers))
    assert layers.work is not None
    shutil.rmtree(layers.work / "work" / "incompat")
    with opened(layers, volatile=True) as client:
        assert await shown(client) == seen


@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_changes_what_is_read_only(layers: Layers, seed: int, opens: bool) -> None:
    fill(layers)
    upper, layers.upper, layers.work = layers.upper, None, None
    assert upper is not None
    layers.lowers.insert(0, upper)
    before = {path: tree.snapshot(path, ctime=True) for path in layers.lowers}
    with wired(layers, opens=opens) as wire:
        bombard(wire, seed, 1500, refused)
    for path, state in before.items():
        tree.assert_same(state, tree.snapshot(path, ctime=True))


def test_noise(layers: Layers) -> None:
    """No structure at all."""
    fill(layers)
    rng = random.Random(1)
    before = outside(layers)
    with wired(layers, volatile=True) as wire:
        for length in [*range(200), 4096, 70_000] * 3:
            wire.run(rng.randbytes(length))
            while not wire.silent():
                pass
        assert wire.node("file")
    tree.assert_same(before, outside(layers))


def test_the_paths_of_the_fuzz_reach_something(layers: Layers) -> None:
    """Most requests must get past the front door, or nothing is tested."""
    fill(layers)
    fuzz = Fuzz(random.Random(0))
    fine: dict[int, int] = {}
    with wired(layers, volatile=True) as wire:
        for number in range(6000):
            opcode, raw = fuzz.request(2 + 2 * number)
            wire.run(raw)
            if opcode in SILENT:
                continue
            _, (code, body) = wire.answer()
            fuzz.learn(opcode, body)
            fine[opcode] = fine.get(opcode, 0) + (code == 0)
    handled = set(wire.session._handlers) - set(SILENT)
    assert {opcode for opcode in handled if not fine.get(opcode)} == set()
