"""The bytes of a tar archive that are in none of its files, kept so that it can be made again.

Two programs write the same tree as different archives, and what names a layer is the digest of
its archive. So the framing of an archive (headers, padding, its end) is written down when it
is read, compressed, with a note in place of the bytes of each file; from that and the files
the archive comes out again, byte by byte. The idea is tar-split's, which Docker uses.

A framing is a stream of zstd: a first line, then records. ``L``, a length of 32 bits and as
many bytes: these bytes. ``C``, a length of 16 bits, offset and length of 64 bits, and a path of
the first length: these bytes of that file. ``E``: the end. Numbers are little-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from unionfs.errors import FaultyError
from unionfs.layer.archive import shown
from unionfs.layer.beneath import Beneath
from unionfs.layer.compression import Source, Unpacked, compressor

_MAGIC: Final = b"unionfs framing 1\n"
_LITERAL: Final = struct.Struct("<I")
_CONTENT: Final = struct.Struct("<HQQ")
#: Literals are gathered up to this size.
_CHUNK: Final = 1 << 20


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> object:
        """Take all of *data*."""
        ...


class FramingWriter:
    """Writes a framing to *file*: the `unionfs.layer.tape.Listener` of a tape."""

    def __init__(self, file: Sink) -> None:
        self._file = file
        self._compressor = compressor("zstd")
        self._literal = bytearray()
        self._put(_MAGIC)

    def literal(self, data: bytes) -> None:
        """Note bytes that are in no file."""
        self._literal += data
        if len(self._literal) >= _CHUNK:
            self._flush_literal()

    def content(self, path: bytes, offset: int, length: int) -> None:
        """Note that *length* bytes of the file *path*, from *offset* on, come here."""
        self._flush_literal()
        self._put(b"C" + _CONTENT.pack(len(path), offset, length) + path)

    def finish(self) -> None:
        """Write what is left; the file is the caller's to close."""
        self._flush_literal()
        self._put(b"E")
        self._file.write(self._compressor.flush())

    def _flush_literal(self) -> None:
        if self._literal:
            self._put(b"L" + _LITERAL.pack(len(self._literal)))
            self._put(bytes(self._literal))
            self._literal.clear()

    def _put(self, data: bytes) -> None:
        if ready := self._compressor.compress(data):
            self._file.write(ready)


class _Content(NamedTuple):
    path: bytes
    offset: int
    length: int


def rebuild(framing: Source, root_fd: int, write: Callable[[bytes], object]) -> None:
    """Give *write* the archive that *framing* was written of, out of the tree at *root_fd*.

    Whether it is the same, its digest tells. Raises `FaultyError` for a framing that is broken
    and for a file that is missing or too short.
    """
    tree = Beneath(root_fd)
    try:
        for record in _records(framing):
            if isinstance(record, bytes):
                write(record)
            else:
                _copy(tree, record, write)
    finally:
        tree.forget()


def _records(framing: Source) -> Iterator[bytes | _Content]:
    file = Unpacked(framing)
    if _exactly(file, len(_MAGIC)) != _MAGIC:
        raise FaultyError("a framing of another version, or none")
    while (tag := _exactly(file, 1)) != b"E":
        if tag == b"L":
            (length,) = _LITERAL.unpack(_exactly(file, _LITERAL.size))
            yield _exactly(file, length)
        elif tag == b"C":
            size, offset, length = _CONTENT.unpack(_exactly(file, _CONTENT.size))
            yield _Content(_exactly(file, size), offset, length)
        else:
            raise FaultyError("a broken framing")


def _exactly(file: Source, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            raise FaultyError("a framing that ends too early")
        data += more
    return data


def _copy(tree: Beneath, content: _Content, write: Callable[[bytes], object]) -> None:
    try:
        fd = tree.open(content.path, os.O_RDONLY)
    except OSError as error:
        raise FaultyError(f"{shown(content.path)}: {error.strerror}") from error
    try:
        position, end = content.offset, content.offset + content.length
        while position < end:
            data = os.pread(fd, min(end - position, _CHUNK), position)
            if not data:
                raise FaultyError(f"{shown(content.path)}: shorter than it was")
            write(data)
            position += len(data)
    finally:
        os.close(fd)
