"""What the direct session makes of requests, seen from the kernel's side of the device."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests import build
from tests.fuse.wire import Wire, message, read_in, wired, write_in
from tests.mounts import Layers
from unionfs.errors import MountError
from unionfs.fuse import protocol
from unionfs.fuse.formation import Formation
from unionfs.fuse.interface import ROOT_ID
from unionfs.fuse.placement import HIDDEN, NOBODY, Placement
from unionfs.fuse.protocol import Init, Opcode
from unionfs.waiting import blocking

pytestmark = [pytest.mark.needs_root]

BIG = 300_000


@pytest.fixture
def wire(layers: Layers) -> Iterator[Wire]:
    build.write(layers.lowers[0] / "file", b"a" * BIG)
    build.write(layers.lowers[0] / "small", b"small")
    with wired(layers, volatile=True) as one:
        yield one


@pytest.mark.parametrize("pid", [0, 1, os.getpid()])
def test_a_worker_has_the_request_for_itself(
    layers: Layers, wire: Wire, monkeypatch: pytest.MonkeyPatch, pid: int
) -> None:
    """Processes of another pid namespace than the daemon's have the number 0."""
    node = wire.node("file")
    handle = wire.open(node)
    let_go = threading.Event()
    slowly = "unionfs.union.copyup.copy_data"
    monkeypatch.setattr(slowly, _after(let_go, "unionfs.layer.copydata", "copy_data"))
    reader = _Reader(wire)
    wire.send(message(Opcode.WRITE, write_in(handle, b"b" * 5000), node, unique=2, pid=pid))
    wire.send(message(Opcode.LOOKUP, b"c" * 200 + b"\0", unique=4, pid=pid))
    assert wire.answer()[0] == 4
    let_go.set()
    assert wire.answer() == (2, (0, protocol.WRITE_OUT.pack(5000, 0)))
    reader.end()
    assert layers.upper is not None
    assert (layers.upper / "file").read_bytes() == b"b" * 5000 + b"a" * (BIG - 5000)


def _after(event: threading.Event, module: str, name: str) -> Any:
    """A function of *module* that waits for *event* first."""
    original = getattr(__import__(module, fromlist=[name]), name)

    def call(*arguments: Any) -> Any:
        assert event.wait(10)
        return original(*arguments)

    return call


class _Turns:
    """A reader of a placement that has nothing to decide."""

    def await_turn(self, *, others_read: bool = True) -> None: ...

    def apart(self) -> None: ...

    def served(self, client: int) -> None:
        assert client >= 0


class _Reader:
    """A thread that reads requests, as `Placement` would start it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        turns: Any = _Turns()
        self.thread = threading.Thread(target=wire.session._read_requests, args=(turns,))
        self.thread.start()

    def end(self) -> None:
        self._wire.hang_up()
        self.thread.join(10)
        assert not self.thread.is_alive()


def test_a_request_that_is_no_request_ends_no_reader(wire: Wire) -> None:
    reader = _Reader(wire)
    for length in (1, 16, protocol.IN_HEADER.size - 1):
        wire.send(message(Opcode.LOOKUP, b"small\0")[:length])
    wire.send(message(Opcode.LOOKUP, b"small\0", unique=6))
    unique, answer = wire.answer()
    assert (unique, answer.code) == (6, 0)
    assert wire.silent()
    reader.end()


@pytest.mark.parametrize("wrong", [-1, 1, 1 << 20])
def test_a_request_of_another_length_than_it_says(wire: Wire, wrong: int) -> None:
    raw = bytearray(message(Opcode.LOOKUP, b"small\0", unique=6))
    raw[:4] = struct.pack("=I", len(raw) + wrong)
    wire.run(bytes(raw))
    assert wire.answer() == (6, (errno.EINVAL, b""))


@pytest.mark.parametrize(
    ("opcode", "pid", "client"),
    [
        (Opcode.RELEASE, 0, NOBODY),
        (Opcode.FORGET, 0, NOBODY),
        (Opcode.BATCH_FORGET, 0, NOBODY),
        (Opcode.GETATTR, 0, HIDDEN),
        (Opcode.GETATTR, 7, 7),
    ],
)
def test_who_waits_for_a_request(wire: Wire, opcode: Opcode, pid: int, client: int) -> None:
    """The kernel makes RELEASE and FORGET as nobody's, other pid namespaces are hidden."""
    assert wire.run(message(opcode, bytes(24), pid=pid)) == client


def test_what_counts_as_apart(wire: Wire) -> None:
    node = wire.node("file")
    handle = wire.open(node)
    block = wire.reader._block
    wire.ask(Opcode.GETATTR, bytes(16), node)
    assert block.apart == 0
    wire.ask(Opcode.WRITE, write_in(handle, b"new"), node)
    assert block.apart == 1, "a copy-up, however many steps it has"
    wire.ask(Opcode.WRITE, write_in(handle, b"new"), node)
    wire.ask(Opcode.READ, read_in(handle, 100), node)
    assert block.apart == 1, "these copy little"
    wire.ask(Opcode.WRITE, write_in(handle, bytes(100_000)), node)
    wire.ask(Opcode.READ, read_in(handle, 100_000), node)
    assert block.apart == 3


@pytest.mark.parametrize("code", [512, 524, 530, 100_000, -5])
def test_an_errno_that_the_kernel_keeps_for_itself_is_an_error_all_the_same(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """ENOTSUPP (524) leaks out of some file systems; a reply with it would be refused."""

    def fail(*_: Any) -> None:
        raise OSError(code, "strange")

    monkeypatch.setattr(wire.session._fs, "getattr", fail)
    assert wire.ask(Opcode.GETATTR, bytes(16)).code == errno.EIO


def test_without_threads_a_request_waits_in_its_reader(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on processes may be reached when a copy-up begins."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    node = wire.node("file")
    handle = wire.open(node)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert wire.ask(Opcode.WRITE, write_in(handle, b"new"), node).code == 0
        assert wire.ask(Opcode.READ, read_in(handle, 5), node) == (0, b"newaa")
    wire.session._workers.finish()


@pytest.mark.parametrize("formation", [Formation.FREE, Formation.NEAR, Formation.SPREAD])
def test_somebody_reads_while_a_reader_waits(wire: Wire, formation: Formation) -> None:
    """Whoever reads alone from now on may be the one that waits."""
    release = threading.Event()

    async def sync() -> None:
        await blocking(release.wait, 10)

    wire.session._fs.syncfs = sync  # type: ignore[method-assign]
    placement = Placement("spread")
    threads = placement.start(wire.session._read_requests)
    try:
        for round_number in range(1, 12):
            first = round_number * 100
            release.clear()
            wire.send(message(Opcode.SYNCFS, bytes(8), unique=first))
            time.sleep(0.01)
            placement._form(formation)
            for number in range(1, 6):
                wire.send(message(Opcode.LOOKUP, b"small\0", unique=first + number))
                assert wire.answer(seconds=2)[0] == first + number
            release.set()
            assert wire.answer()[0] == first
            placement._form(Formation.SPREAD)
    finally:
        release.set()
        wire.hang_up()
        for thread in threads:
            thread.join(10)


def test_the_end_does_not_wait_for_what_begins_after_it(wire: Wire) -> None:
    """A daemon that is told to end does so, however busy its clients keep it."""
    release, begun = threading.Event(), threading.Event()
    rounds = 0

    async def sync() -> None:
        nonlocal rounds
        rounds += 1
        begun.set()
        await blocking(time.sleep, 0.02)

    wire.session._fs.syncfs = sync  # type: ignore[method-assign]
    clients = [threading.Thread(target=_ask_for_ever, args=(wire, release)) for _ in range(4)]
    for client in clients:
        client.daemon = True
        client.start()
    assert begun.wait(10)
    ended = threading.Thread(target=wire.session._end, daemon=True)
    ended.start()
    ended.join(2)
    in_time = not ended.is_alive()
    release.set()
    assert in_time
    wire.session._lock.release()
    for client in clients:
        client.join(10)


def _ask_for_ever(wire: Wire, release: threading.Event) -> None:
    while not release.is_set():
        wire.run(message(Opcode.SYNCFS, bytes(8)))
        time.sleep(0.005)


def init_in(
    major: int = 7, minor: int = 45, flags: int = (1 << 64) - 1, *, old: bool = False
) -> bytes:
    """The body of INIT; *old* as before 7.36."""
    first = protocol.INIT_IN.pack(major, minor, 131072, flags & 0xFFFFFFFF)
    return first if old else first + struct.pack("=I44x", flags >> 32)


#: The flags that Linux 5.4 offers.
FLAGS_5_4 = (1 << 27) - 1


def test_linux_5_4_gets_what_it_knows(wire: Wire) -> None:
    wire.send(message(Opcode.INIT, init_in(minor=31, flags=FLAGS_5_4, old=True)))
    wire.session._negotiate()
    unique, answer = wire.answer()
    assert (unique, answer.code, len(answer.body)) == (2, 0, 64)
    fields = struct.unpack("=IIIIHHIIHHIIH22x", answer.body)
    major, minor, _, flags, background, congestion, data, grain, pages, *rest = fields
    assert (major, minor, grain) == (7, 31, 1)
    assert flags & ~FLAGS_5_4 == 0
    assert 0 < congestion <= background
    assert pages * os.sysconf("SC_PAGESIZE") == data
    assert rest == [0, 0, 0, 0]  # map_alignment, flags2, stack depth, timeout


def test_a_newer_kernel_gets_what_we_know(wire: Wire) -> None:
    wire.send(message(Opcode.INIT, init_in(minor=99) + bytes(64)))
    wire.session._negotiate()
    answer = wire.answer()[1]
    assert struct.unpack_from("=II", answer.body) == (7, 45)
    flags = struct.unpack_from("=I", answer.body, 12)[0]
    assert flags & Init.ATOMIC_O_TRUNC
    for never in (Init.WRITEBACK_CACHE, Init.NO_OPEN_SUPPORT, Init.ABORT_ERROR):
        assert not flags & never


def test_without_passthrough_nothing_is_opened_and_no_open_truncates(wire: Wire) -> None:
    wire.send(message(Opcode.INIT, init_in(flags=((1 << 64) - 1) & ~Init.PASSTHROUGH)))
    wire.session._negotiate()
    flags = struct.unpack_from("=I", wire.answer()[1].body, 12)[0]
    assert flags & Init.NO_OPEN_SUPPORT
    assert not flags & Init.ATOMIC_O_TRUNC
    node = wire.node("file")
    assert wire.ask(Opcode.OPEN, protocol.OPEN_IN.pack(os.O_RDWR, 0), node).code == errno.ENOSYS
    assert wire.ask(Opcode.READ, read_in(0, 5), node) == (0, b"aaaaa")


@pytest.mark.parametrize(
    "raw",
    [
        message(Opcode.INIT, init_in(minor=30, old=True)),
        message(Opcode.INIT, init_in(major=6, old=True)),
        message(Opcode.INIT, init_in()[:12]),
        message(Opcode.INIT),
        message(Opcode.INIT)[:20],
        message(Opcode.LOOKUP, b"small\0"),
    ],
    ids=["7.30", "6", "short", "empty", "no header", "no INIT"],
)
def test_a_beginning_that_is_none_is_a_failed_mount(wire: Wire, raw: bytes) -> None:
    wire.send(raw)
    with pytest.raises(MountError):
        wire.session._negotiate()


def test_root_is_known_from_the_beginning(wire: Wire) -> None:
    assert wire.ask(Opcode.GETATTR, bytes(16), ROOT_ID).code == 0


@pytest.mark.parametrize("how", [0, os.O_DSYNC, os.O_SYNC])
def test_a_write_alone_that_is_to_be_stable(
    layers: Layers, monkeypatch: pytest.MonkeyPatch, how: int
) -> None:
    """pwritev2(2) with RWF_DSYNC or RWF_SYNC, on a file that was not opened so."""
    synced: list[int] = []
    build.write(layers.lowers[0] / "file", b"before")
    with wired(layers) as wire:
        node = wire.node("file")
        handle = wire.open(node)
        wire.ask(Opcode.WRITE, write_in(handle, b"copied up"), node)
        monkeypatch.setattr(os, "fsync", synced.append)
        wire.ask(Opcode.WRITE, write_in(handle, b"written", how=how), node)
    assert len(synced) == (1 if how else 0)
