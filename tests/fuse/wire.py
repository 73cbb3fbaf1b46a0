"""A `DeviceSession` without a kernel: requests as bytes in, replies as bytes out."""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.mounts import Layers
from unionfs.fuse import protocol
from unionfs.fuse.device import DeviceSession
from unionfs.fuse.interface import ROOT_ID
from unionfs.fuse.placement import Block, Placement, Reader
from unionfs.fuse.protocol import Init, Opcode
from unionfs.layer.stack import LayerStack
from unionfs.options import MountOptions
from unionfs.union.operations import UnionFS

#: Opcodes that nobody waits for.
SILENT = (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)

_SO_SNDBUFFORCE = 32


class Answer(NamedTuple):
    """A reply as the kernel would read it."""

    code: int
    body: bytes


def message(
    opcode: int,
    body: bytes = b"",
    node: int = ROOT_ID,
    *,
    unique: int = 2,
    pid: int | None = None,
    uid: int = 0,
) -> bytes:
    """A request as the kernel would write it."""
    size = protocol.IN_HEADER.size + len(body)
    who = os.getpid() if pid is None else pid
    return protocol.IN_HEADER.pack(size, opcode, unique, node, uid, uid, who, 0, 0) + body


class Wire:
    """The kernel's side of a session's device."""

    def __init__(self, session: DeviceSession) -> None:
        self.session = session
        # A message is one read and one write, as on the device.
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs = theirs.detach()
        session._fd = self._theirs
        session._workers.begin()
        for number in (self._ours.fileno(), self._theirs):
            with socket.socket(fileno=os.dup(number)) as end:
                end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 4 << 20)
        self.reader = Reader(Placement("off"), Block())
        self.notices: list[tuple[int, bytes]] = []
        self._uniques = itertools.count(2, 2)

    def send(self, raw: bytes) -> None:
        """Let the session read *raw* from its device."""
        self._ours.send(raw)

    def run(self, raw: bytes) -> int:
        """Let the session run what it has read, in this thread; what it says of the client."""
        return self.session._run(memoryview(bytearray(raw)), self.reader)

    def ask(
        self, opcode: int, body: bytes = b"", node: int = ROOT_ID, *, pid: int | None = None
    ) -> Answer:
        """Make a request and return its only answer."""
        unique = next(self._uniques)
        self.run(message(opcode, body, node, unique=unique, pid=pid))
        if opcode in SILENT:
            return Answer(0, b"")
        found, answer = self.answer()
        assert found == unique
        assert self.silent()
        return answer

    def answer(self, seconds: float = 10.0) -> tuple[int, Answer]:
        """The next reply and which request it is for."""
        found = self._next(seconds)
        assert found is not None, "no reply"
        return found

    def silent(self, seconds: float = 0.0) -> bool:
        """Whether nothing more is said."""
        return self._next(seconds) is None

    def _next(self, seconds: float) -> tuple[int, Answer] | None:
        while select.select([self._ours], [], [], seconds)[0]:
            raw = self._ours.recv(4 << 20)
            length, code, unique = protocol.OUT_HEADER.unpack_from(raw)
            assert length == len(raw)
            body = raw[protocol.OUT_HEADER.size :]
            if unique == 0:
                self.notices.append((code, body))
                continue
            # The kernel refuses others, and whoever asked would wait for ever.
            assert -512 < code <= 0, code
            assert not (code and body)
            return unique, Answer(-code, body)
        return None

    def node(self, path: str) -> int:
        """The number of what is at *path*; 0 if it is not there."""
        node = ROOT_ID
        for name in path.split("/"):
            answer = self.ask(Opcode.LOOKUP, name.encode() + b"\0", node)
            if answer.code:
                return 0
            node = protocol.ENTRY_OUT.unpack(answer.body)[0]
        return node

    def open(self, node: int, flags: int = os.O_RDWR) -> int:
        """A handle of the file *node*."""
        answer = self.ask(Opcode.OPEN, protocol.OPEN_IN.pack(flags, 0), node)
        assert answer.code == 0, errno.errorcode[answer.code]
        handle: int = protocol.OPEN_OUT.unpack(answer.body)[0]
        return handle

    def hang_up(self) -> None:
        """End the connection, as an unmount does."""
        self._ours.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Wait for what was begun, and give the descriptors back."""
        self.session._workers.finish()
        self.hang_up()
        self.session._fd = -1
        os.close(self._theirs)
        self._ours.close()


@contextmanager
def wired(layers: Layers, *, opens: bool = True, **options: Any) -> Iterator[Wire]:
    """A session over *layers*; the lowers must be left alone, and the workdir clean.

    With *opens* the kernel offers passthrough, so that files are opened.
    """
    chosen = MountOptions(
        lowerdirs=tuple(os.fsencode(lower) for lower in layers.lowers),
        upperdir=os.fsencode(layers.upper) if layers.upper else None,
        workdir=os.fsencode(layers.work) if layers.work else None,
        **options,
    )
    layers.remember_lowers()
    stack = LayerStack.open(chosen)
    wire = Wire(DeviceSession(UnionFS(stack, chosen), chosen))
    wire.session._choose(~Init(0) if opens else ~Init.PASSTHROUGH)
    # There is nothing that it could be asked of.
    wire.session._passthrough = False
    try:
        yield wire
    finally:
        wire.close()
        stack.close()
    layers.check_lowers()
    layers.check_work()


def write_in(handle: int, data: bytes, offset: int = 0, how: int = 0) -> bytes:
    """The body of a WRITE, with *how* of the flags of pwritev2(2) that have a form for open(2)."""
    return protocol.WRITE_IN.pack(handle, offset, len(data), 0, 0, os.O_RDWR | how, 0) + data


def read_in(handle: int, size: int, offset: int = 0) -> bytes:
    """The body of a READ or READDIR."""
    return protocol.READ_IN.pack(handle, offset, size, 0, 0, 0, 0)
