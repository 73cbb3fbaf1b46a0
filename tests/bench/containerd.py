"""containerd's snapshotters, asked as its clients ask: over gRPC, by a few messages of our own.

The messages are those of containerd.services.snapshots.v1 (api/services/snapshots/v1 of
containerd); each class says its field numbers. `Client` has the names of
`unionfs.driver.api.Driver` for the same verbs, so that one worker measures both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from unionfs.driver.api import Mount

SERVICE = "/containerd.services.snapshots.v1.Snapshots/"
NAMESPACE = (("containerd-namespace", "bench"),)

#: Without it a snapshot that no image or lease needs is garbage, soon collected. `ctr` sets it too.
KEEP = "containerd.io/gc.root"

#: Of the protocol: a field's number and kind share a varint.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def varint(number: int) -> bytes:
    """*number*, not negative, seven bits at a time."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, value: str | bytes) -> bytes:
    """A string or a message as field *number*."""
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | BYTES) + varint(len(data)) + data


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in their order: numbers as they are, all else as bytes."""
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = _read_varint(message, place)
            yield number, value
            continue
        if kind == BYTES:
            length, place = _read_varint(message, place)
        else:
            length = {FIXED64: 8, FIXED32: 4}[kind]
        yield number, message[place : place + length]
        place += length


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _texts(message: bytes, number: int) -> list[str]:
    return [value.decode() for n, value in fields(message) if n == number and type(value) is bytes]


def _mount(message: bytes) -> Mount:
    """`containerd.types.Mount`: type 1, source 2, target 3, options 4."""
    kind, source = (_texts(message, number) or [""] for number in (1, 2))
    return Mount(kind[0], source[0], tuple(_texts(message, 4)))


class Client:
    """One snapshotter of the containerd whose socket is given."""

    def __init__(self, socket: str, snapshotter: str) -> None:
        import grpc  # noqa: PLC0415 - only whoever measures containerd has it

        self._snapshotter = snapshotter
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._calls: dict[str, Callable[..., Any]] = {
            name: self._channel.unary_unary(SERVICE + name)
            for name in ("Prepare", "Commit", "Remove")
        }
        self._list = self._channel.unary_stream(SERVICE + "List")
        self._version = self._channel.unary_unary("/containerd.services.version.v1.Version/Version")

    def _call(self, name: str, *values: str, keep: bool = False) -> bytes:
        """Send *values* as fields 1, 2, … and, for *keep*, a label as field 4; the reply."""
        message = b"".join(field(n, value) for n, value in enumerate(values, 1) if value)
        if keep:
            message += field(4, field(1, KEEP) + field(2, "bench"))
        reply = self._calls[name](message, metadata=NAMESPACE, timeout=120)
        assert isinstance(reply, bytes)
        return reply

    def ask_nothing(self) -> None:
        """A call that does no work: what the way there and back takes."""
        self._version(b"", metadata=NAMESPACE, timeout=120)

    def prepare(self, key: str, parent: str = "") -> bytes:
        """See `prepare_mounts`; its reply as it came."""
        return self._call("Prepare", self._snapshotter, key, parent, keep=True)

    def prepare_mounts(self, key: str, parent: str = "") -> Sequence[Mount]:
        """snapshotter 1, key 2, parent 3, labels 4; the reply has the mounts as field 1."""
        return _mounts(self.prepare(key, parent))

    def commit(self, name: str, key: str) -> None:
        """snapshotter 1, name 2, key 3, labels 4."""
        self._call("Commit", self._snapshotter, name, key, keep=True)

    def remove(self, key: str) -> None:
        """snapshotter 1, key 2."""
        self._call("Remove", self._snapshotter, key)

    def release(self, key: str) -> None:
        """Nothing: its snapshotters take nothing."""

    def walk(self) -> Iterator[bytes]:
        """All snapshots, each as the bytes of an `Info`, in the blocks that they come in.

        snapshotter 1; each reply has some, as field 1. They are not decoded: a Go client does
        that faster than Python.
        """
        reply = self._list(field(1, self._snapshotter), metadata=NAMESPACE, timeout=120)
        yield from reply

    def count(self, blocks: Sequence[bytes]) -> int:
        """How many snapshots *blocks* of `walk` have."""
        return sum(1 for block in blocks for number, _ in fields(block) if number == 1)

    def close(self) -> None:
        self._channel.close()


def _mounts(reply: bytes) -> list[Mount]:
    return [_mount(value) for n, value in fields(reply) if n == 1 and type(value) is bytes]
