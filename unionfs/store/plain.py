"""A tree as an image of one layer: a directory, or a tar archive of it, as ``docker import``."""

from __future__ import annotations

import io
import os
import threading
import time
from typing import BinaryIO, Final

from unionfs.errors import ArchiveError
from unionfs.layer.pack import TarWriter
from unionfs.layer.pack_tree import Packer, pack_layer
from unionfs.layer.xattrs import Marks
from unionfs.store.bundle import Bundle
from unionfs.store.image import architecture, timestamp
from unionfs.store.packed import Blob, PackedImage

_BUFFER: Final = 1 << 20


class PlainArchive(Bundle):
    """One tar archive, compressed or not, which *file* is: the only file of the bundle."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path = path
        self._file = file

    def has(self, name: str) -> bool:
        """See `Bundle.has`."""
        return name == self.path

    def open(self, name: str) -> BinaryIO:
        """See `Bundle.open`."""
        _require(self.has(name), name)
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        return os.fdopen(os.dup(self._file.fileno()), "rb")

    def close(self) -> None:
        """See `Bundle.close`."""
        self._file.close()


class PlainDirectory(Bundle):
    """A directory; the only file of the bundle is an archive of it, made while it is read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def has(self, name: str) -> bool:
        """See `Bundle.has`."""
        return name == self.path

    def open(self, name: str) -> BinaryIO:
        """See `Bundle.open`."""
        _require(self.has(name), name)
        return io.BufferedReader(_Packing(self._fd), _BUFFER)

    def close(self) -> None:
        """See `Bundle.close`."""
        os.close(self._fd)


def _require(there: bool, name: str) -> None:
    if not there:
        raise ArchiveError(f"{name}: missing")


class _Packing(io.RawIOBase):
    """The archive of a directory, written by a thread on the other side of a pipe."""

    def __init__(self, root_fd: int) -> None:
        super().__init__()
        self._root = root_fd
        self._error: BaseException | None = None
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._pack, name="pack")
        self._thread.start()

    def _pack(self) -> None:
        marks = Marks(user=os.geteuid() != 0)
        try:
            with os.fdopen(self._writing, "wb") as pipe:
                writer = TarWriter(pipe.write)
                pack_layer(self._root, Packer(writer, marks), marks)
                writer.finish()
        except BrokenPipeError:
            pass  # the reader had enough
        except BaseException as error:  # noqa: BLE001 - raised where it is read
            self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # what it is given
        count = os.readv(self._reading, [buffer])
        if count == 0:
            self._thread.join()
            if self._error is not None:
                raise self._error
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._reading)
            self._thread.join()
        super().close()


def read(bundle: Bundle) -> list[PackedImage]:
    """Return the image that *bundle*, one of the two above, is."""
    note: dict[str, object] = {
        "architecture": architecture(),
        "comment": f"imported from {os.path.basename(bundle.path.rstrip('/')) or bundle.path}",
        "config": {},
        "created": timestamp(time.time_ns()),
        "os": "linux",
    }
    return [PackedImage((), (Blob(bundle.path),), None, (note,))]
