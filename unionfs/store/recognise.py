"""What a file or directory is that an image comes in: told by what is in it, not by its name."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
import tarfile
import tempfile
from collections.abc import Callable
from typing import BinaryIO, Final

from unionfs.errors import ArchiveError, NotFoundError
from unionfs.layer.compression import Unpacked
from unionfs.store import docker, oci, plain
from unionfs.store.bundle import Bundle, DirectoryBundle, TarBundle
from unionfs.store.packed import PackedImage

#: Names of what an archive of images has in its root, by which it can begin.
_BUNDLE_NAME: Final = re.compile(
    r"(?:blobs/?|blobs/.*|oci-layout|index\.json|manifest\.json|repositories|"
    r"[0-9a-f]{64}(?:/.*|\.json|\.tar)?)"
)
_CHUNK: Final = 1 << 20
STANDARD_INPUT: Final = "-"


def open_bundle(path: str, room: str) -> tuple[Bundle, list[PackedImage]]:
    """Open what is at *path*, ``-`` for standard input; return it and the images in it.

    What must be read more than once and cannot be is copied to the directory *room* first.
    Raises `NotFoundError`, `ArchiveError`, ``OSError``.
    """
    with contextlib.ExitStack() as opened:
        bundle, read = _recognise(path, room)
        opened.callback(bundle.close)
        found = read(bundle)
        opened.pop_all()
        return bundle, found


Reader = Callable[[Bundle], list[PackedImage]]


def _recognise(path: str, room: str) -> tuple[Bundle, Reader]:
    if path == STANDARD_INPUT:
        return _recognise_file(path, _spooled(sys.stdin.buffer, room), room)
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file or directory") from error
    if stat.S_ISDIR(status.st_mode):
        return _recognise_directory(path)
    file: BinaryIO = open(path, "rb")  # noqa: SIM115 - the bundle's
    if not stat.S_ISREG(status.st_mode):
        with file:
            file = _spooled(file, room)
    return _recognise_file(path, file, room)


def _recognise_directory(path: str) -> tuple[Bundle, Reader]:
    bundle = DirectoryBundle(path)
    if docker.is_archive(bundle):
        return bundle, docker.read
    if oci.is_layout(bundle):
        return bundle, oci.read
    bundle.close()
    return plain.PlainDirectory(path), plain.read


def _recognise_file(path: str, file: BinaryIO, room: str) -> tuple[Bundle, Reader]:
    with contextlib.ExitStack() as opened:
        opened.callback(file.close)
        if _BUNDLE_NAME.fullmatch(_first_name(file)) is None:
            opened.pop_all()
            return plain.PlainArchive(path, file), plain.read
        if _is_compressed(file):
            with file:
                file = _spooled(Unpacked(file), room)
            opened.callback(file.close)
        bundle = TarBundle(path, file)
        opened.pop_all()
    if docker.is_archive(bundle):
        return bundle, docker.read
    if oci.is_layout(bundle):
        return bundle, oci.read
    return plain.PlainArchive(path, file), plain.read


def _first_name(file: BinaryIO) -> str:
    """Return the name of the first member in an archive, and go back to its beginning."""
    source = Unpacked(file)
    block = b""
    while len(block) < tarfile.BLOCKSIZE and (more := source.read(tarfile.BLOCKSIZE - len(block))):
        block += more
    file.seek(0)
    if not block:
        raise ArchiveError("the file is empty")
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if not block.strip(b"\0"):
            return ""
        raise ArchiveError("neither an image nor a tar archive") from error
    return os.path.normpath(header.name)


def _is_compressed(file: BinaryIO) -> bool:
    start = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    return start[257:262] != b"ustar"


def _spooled(source: BinaryIO | Unpacked, room: str) -> BinaryIO:
    """Return a nameless file in the directory *room* with all that *source* has."""
    file = tempfile.TemporaryFile(dir=room)  # noqa: SIM115 - the bundle's
    try:
        while data := source.read(_CHUNK):
            file.write(data)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
