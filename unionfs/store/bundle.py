"""Files that belong together, by name: in a directory, or in a tar archive.

What an image comes in. Nothing is unpacked: from an archive, files are read where they lie.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from abc import ABC, abstractmethod
from typing import BinaryIO, Final

from unionfs.errors import ArchiveError
from unionfs.layer.beneath import Beneath
from unionfs.layer.tape import HEADER_LIMIT
from unionfs.store.image import algorithm_of
from unionfs.store.packed import Blob

#: The most that a manifest or a configuration may have.
_JSON_LIMIT: Final = 8 << 20
_MOST_FILES: Final = 100_000
#: The most links that lead from one name of an archive to another.
_MOST_LINKS: Final = 8


class Bundle(ABC):
    """See the module. *path* is what messages call it."""

    path: str

    @abstractmethod
    def has(self, name: str) -> bool:
        """Say whether there is a file *name*."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open the file *name* to be read. Raises `ArchiveError` where there is none."""

    @abstractmethod
    def close(self) -> None:
        """Give up what is held open."""

    def read(self, name: str) -> bytes:
        """Return all of the file *name*. Raises `ArchiveError`, also for one that is huge."""
        with self.open(name) as file:
            data = file.read(_JSON_LIMIT + 1)
        if len(data) > _JSON_LIMIT:
            raise ArchiveError(f"{name}: larger than {_JSON_LIMIT >> 20} MiB")
        return data


class DirectoryBundle(Bundle):
    """The files in a directory; symbolic links are not followed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._tree = Beneath(self._fd)

    def has(self, name: str) -> bool:
        """See `Bundle.has`."""
        try:
            status = self._tree.lstat(os.fsencode(name))
        except OSError:
            return False
        return status is not None and stat.S_ISREG(status.st_mode)

    def open(self, name: str) -> BinaryIO:
        """See `Bundle.open`."""
        try:
            fd = self._tree.open(os.fsencode(name), os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise ArchiveError(f"{name}: {error.strerror}") from error
        file = os.fdopen(fd, "rb")
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            file.close()
            raise ArchiveError(f"{name}: not a file")
        return file

    def close(self) -> None:
        """See `Bundle.close`."""
        self._tree.forget()
        os.close(self._fd)


class _Limited:
    """A file of which no header can ask for more than a header has."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if size > HEADER_LIMIT:
            raise tarfile.ReadError("a header that is too large")
        return self._file.read(size)


class _Part(io.RawIOBase):
    """The part of a file that a member takes."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        super().__init__()
        self._fd, self._offset, self._left = fd, offset, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # what it is given
        size = min(len(buffer), self._left)
        count = os.preadv(self._fd, [buffer[:size]], self._offset) if size else 0
        self._offset += count
        self._left -= count
        return count


class TarBundle(Bundle):
    """The files in an uncompressed tar archive, which *file* is; links among them are followed."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._parts: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        size = os.fstat(file.fileno()).st_size
        try:
            self._index(size)
        except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as e:
            raise ArchiveError(f"a broken archive: {e}") from e

    def _index(self, size: int) -> None:
        limited = _Limited(self._file)
        reader = tarfile.TarFile(fileobj=limited)  # type: ignore[arg-type] # all that it uses
        while (member := reader.next()) is not None:
            reader.members = []  # type: ignore[attr-defined] # it would keep them all
            name = os.path.normpath(member.name)
            if len(self._parts) + len(self._links) > _MOST_FILES:
                raise ArchiveError(f"more than {_MOST_FILES} files")
            if member.isreg() and member.sparse is None:
                if not 0 <= member.size <= size - member.offset_data:
                    raise ArchiveError(f"{name}: the archive ends in the midst of it")
                if name in self._parts:
                    raise ArchiveError(f"{name}: is there twice")
                self._parts[name] = (member.offset_data, member.size)
            elif member.issym():
                self._links[name] = os.path.join(os.path.dirname(name), member.linkname)
            elif member.islnk():
                self._links[name] = member.linkname

    def _part(self, name: str) -> tuple[int, int] | None:
        for _ in range(_MOST_LINKS):
            name = os.path.normpath(name)
            if name in self._parts:
                return self._parts[name]
            if name not in self._links:
                break
            name = self._links[name]
        return None

    def has(self, name: str) -> bool:
        """See `Bundle.has`."""
        return self._part(name) is not None

    def open(self, name: str) -> BinaryIO:
        """See `Bundle.open`."""
        part = self._part(name)
        if part is None:
            raise ArchiveError(f"{name}: missing")
        return io.BufferedReader(_Part(self._file.fileno(), *part), 1 << 18)

    def close(self) -> None:
        """See `Bundle.close`."""
        self._file.close()


class BlobReader:
    """The bytes of *blob* in *bundle*, held against what was said of them at their end."""

    def __init__(self, bundle: Bundle, blob: Blob) -> None:
        self._blob = blob
        self._file = bundle.open(blob.name)
        self._hash = None if blob.digest is None else hashlib.new(algorithm_of(blob.digest))
        self._size = 0

    def read(self, size: int) -> bytes:
        """Return at most *size* bytes, none at the end."""
        data = self._file.read(size)
        self._size += len(data)
        if self._hash is not None:
            self._hash.update(data)
        return data

    def finish(self) -> None:
        """Raise `ArchiveError` unless all that was read is what it should be."""
        if self._blob.size is not None and self._size != self._blob.size:
            raise ArchiveError(f"has {self._size} bytes instead of {self._blob.size}: it is broken")
        if self._hash is not None and self._blob.digest is not None:
            found = f"{algorithm_of(self._blob.digest)}:{self._hash.hexdigest()}"
            if found != self._blob.digest:
                raise ArchiveError(f"has the digest {found}: it is broken")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
