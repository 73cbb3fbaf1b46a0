"""A stream read once from its beginning to its end, as a tar archive wants to be.

What is read as `Tape.content` are bytes of a file; everything else (headers, padding, the end)
is the archive's *framing*. Whoever listens is told both, so that the same stream can be put
together again from the files: see `unionfs.layer.framing`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from unionfs.errors import ArchiveError
from unionfs.layer.compression import Source

_CHUNK: Final = 1 << 20
#: The most that the header of one member may take: names, xattrs, a map of holes.
HEADER_LIMIT: Final = 8 << 20


class Listener(Protocol):
    """Who is told what passes by."""

    def literal(self, data: bytes) -> None:
        """Take bytes that are in no file."""

    def content(self, path: bytes, offset: int, length: int) -> None:
        """Take note of bytes that the file *path* has at *offset*."""


class Tape:
    """A forward-only file: the part of ``read``, ``seek`` and ``tell`` that tarfile uses.

    *progress* is called with the number of bytes that went by.
    """

    def __init__(
        self,
        source: Source,
        listener: Listener | None = None,
        *,
        algorithm: str = "sha256",
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._source = source
        self._listener = listener
        self._hash = hashlib.new(algorithm)
        self._algorithm = algorithm
        self._progress = progress
        self._position = 0
        self._header = 0
        #: What was read last as framing.
        self.newest = b""

    @property
    def digest(self) -> str:
        """The digest of all that was read, as ``sha256:…``."""
        return f"{self._algorithm}:{self._hash.hexdigest()}"

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def begin_member(self) -> None:
        """Say that the header of another member comes next."""
        self._header = 0

    def read(self, size: int) -> bytes:
        """Return *size* bytes of framing, less at the end. Raises `ArchiveError` for many."""
        self._header += size
        if self._header > HEADER_LIMIT:
            raise ArchiveError(f"a header of more than {HEADER_LIMIT >> 20} MiB")
        data = self._take(size)
        while len(data) < size and (more := self._take(size - len(data))):
            data += more
        self._tell_literal(data)
        self.newest = data
        return data

    def seek(self, position: int) -> None:
        """Go forward to *position*. Raises `ArchiveError` if that is backward."""
        if position < self._position:
            raise ArchiveError("a header leads backward")
        self.skip(position - self._position)

    def skip(self, length: int) -> None:
        """Pass over *length* bytes, or what is there of them."""
        while length and (data := self._take(min(length, _CHUNK))):
            self._tell_literal(data)
            length -= len(data)

    def content(self, path: bytes, offset: int, length: int) -> Iterator[bytes]:
        """Yield the next *length* bytes, which the file *path* gets at *offset*.

        Raises `ArchiveError` where the stream ends before.
        """
        if self._listener is not None and length:
            self._listener.content(path, offset, length)
        while length:
            data = self._take(min(length, _CHUNK))
            if not data:
                raise ArchiveError("the archive ends in the midst of it")
            length -= len(data)
            yield data

    def rest(self) -> Iterator[bytes]:
        """Yield all that is left, as framing."""
        while data := self._take(_CHUNK):
            self._tell_literal(data)
            yield data

    def _tell_literal(self, data: bytes) -> None:
        if self._listener is not None and data:
            self._listener.literal(data)

    def _take(self, size: int) -> bytes:
        data = self._source.read(size)
        self._hash.update(data)
        self._position += len(data)
        if self._progress is not None and data:
            self._progress(len(data))
        return data
