"""Compressed streams, recognised by their first bytes: gzip, bzip2, xz, zstd.

Zstandard is in the standard library since Python 3.14 (PEP 784); ``backports.zstd`` is the
same module for those before, kept by the same people.
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any, Final, Protocol

from unionfs.errors import ArchiveError, UsageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: What is asked of a decompressor at once.
_CHUNK: Final = 1 << 18
#: What anything may unpack to; beyond that it counts how often the input goes into it.
_HARMLESS: Final = 1 << 30
_RATIO: Final = 500
#: The most memory that a stream may ask for as its window or dictionary (2 to the power of).
_WINDOW_LOG: Final = 27


class Source(Protocol):
    """Where bytes come from."""

    def read(self, size: int, /) -> bytes:
        """Return at most *size* bytes, none at the end."""
        ...


class _Gunzip:
    """A member of a gzip file, with the methods of the other decompressors."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


def _unzstd() -> Any:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


def _unxz() -> Any:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << (_WINDOW_LOG + 1))


#: First bytes, and what takes such a stream apart. Zstandard's second one is a frame to skip.
_FORMATS: Final[tuple[tuple[bytes, Callable[[], Any]], ...]] = (
    (b"\x1f\x8b", _Gunzip),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", _unxz),
    (b"\x28\xb5\x2f\xfd", _unzstd),
    *((bytes((0x50 + n, 0x2A, 0x4D, 0x18)), _unzstd) for n in range(16)),
)
_LONGEST_MAGIC: Final = 6
_BROKEN: Final = (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError, EOFError, ValueError)


class Unpacked:
    """The bytes of *source*, decompressed if it is compressed.

    Raises `ArchiveError` for a stream that is broken, cut off or a bomb: one that unpacks to
    more than 1 GiB and more than 500 times its own size.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._buffer = _fill(source, b"")
        self._open = _opener(self._buffer)
        self._stream: Any = None if self._open is None else self._open()
        self._ended = False
        self.consumed = len(self._buffer)
        self._produced = 0

    def read(self, size: int, /) -> bytes:
        """Return at most *size* bytes, none at the end."""
        if self._open is None:
            data, self._buffer = self._buffer[:size], self._buffer[size:]
            if not data:
                data = self._source.read(size)
                self.consumed += len(data)
            return data
        while not self._ended:
            if self._stream.eof:
                self._next_stream()
                continue
            if data := self._decompress(min(size, _CHUNK)):
                self._produced += len(data)
                if self._produced > max(_HARMLESS, _RATIO * self.consumed):
                    raise ArchiveError(
                        f"unpacks to more than {_RATIO} times its size, as a bomb does; if it"
                        " is none, decompress it first"
                    )
                return data
        return b""

    def _decompress(self, size: int) -> bytes:
        if self._stream.needs_input and not self._buffer:
            self._buffer = self._source.read(_CHUNK)
            self.consumed += len(self._buffer)
            if not self._buffer:
                raise ArchiveError("the compressed data end too early")
        given, self._buffer = self._buffer, b""
        try:
            data = self._stream.decompress(given, size)
        except _BROKEN as error:
            raise ArchiveError(f"the compressed data are broken: {error}") from error
        if self._stream.eof:
            self._buffer = self._stream.unused_data
        assert isinstance(data, bytes)
        return data

    def _next_stream(self) -> None:
        """Go on with the next of several streams in a row; zeros may follow the last one."""
        before = len(self._buffer)
        self._buffer = _fill(self._source, self._buffer)
        self.consumed += len(self._buffer) - before
        self._open = _opener(self._buffer)
        if self._open is not None:
            self._stream = self._open()
            return
        self._open, self._ended = bytes, True
        while self._buffer:
            if self._buffer.strip(b"\0"):
                raise ArchiveError("what follows the compressed data is something else")
            self._buffer = self._source.read(_CHUNK)


def _fill(source: Source, buffer: bytes) -> bytes:
    while len(buffer) < _LONGEST_MAGIC and (more := source.read(_CHUNK)):
        buffer += more
    return buffer


def _opener(start: bytes) -> Callable[[], Any] | None:
    return next((opener for magic, opener in _FORMATS if start.startswith(magic)), None)


class Compressor(Protocol):
    """What makes a stream smaller."""

    def compress(self, data: bytes, /) -> bytes:
        """Return what is ready of the stream after *data*."""
        ...

    def flush(self) -> bytes:
        """Return the rest of the stream."""
        ...


class _Gzip:
    """A gzip stream without a name and a time in it, so that equal input is equal output."""

    def __init__(self) -> None:
        # As gzip -6 does it: images are packed to be moved, and most are packed once.
        self._zlib = zlib.compressobj(6, zlib.DEFLATED, 31)

    def compress(self, data: bytes, /) -> bytes:
        return self._zlib.compress(data)

    def flush(self) -> bytes:
        return self._zlib.flush()


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor(name: str) -> Compressor:
    """Return what compresses by ``gzip``, ``zstd`` or ``none``. Raises `UsageError`."""
    match name:
        case "gzip":
            return _Gzip()
        case "zstd":
            return zstd.ZstdCompressor()
        case "none":
            return _Plain()
        case _:
            raise UsageError(f"compression {name}: it is gzip, zstd or none")
