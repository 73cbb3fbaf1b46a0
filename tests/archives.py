"""Tar archives for tests: made member by member, or by GNU tar; and applied."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unionfs.layer.apply import Below, apply
from unionfs.layer.apply_attributes import Dresser
from unionfs.layer.apply_overlay import OverlayTarget
from unionfs.layer.apply_plain import PlainTarget
from unionfs.layer.compression import Unpacked
from unionfs.layer.framing import FramingWriter, rebuild
from unionfs.layer.pack import TarWriter
from unionfs.layer.pack_tree import Packer, pack_layer
from unionfs.layer.tape import Listener, Tape
from unionfs.layer.xattrs import Marks

MARKS = Marks(user=False)


class Nothing:
    """Layers below that have nothing."""

    def directory(self, _path: bytes) -> None:
        return None

    def names(self) -> Iterable[bytes]:
        return ()


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: Any) -> bytes:
    """The bytes of one member, headers included."""
    header = tarfile.TarInfo(name)
    header.type = kind
    header.size = len(data)
    header.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    header.mtime = 1_600_000_000
    for field, value in fields.items():
        setattr(header, field, value)
    block = header.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")
    return block + data + bytes(-len(data) % 512)


def directory(name: str, **fields: Any) -> bytes:
    return member(name, tarfile.DIRTYPE, **fields)


def symlink(name: str, target: str) -> bytes:
    return member(name, tarfile.SYMTYPE, linkname=target)


def link(name: str, target: str) -> bytes:
    return member(name, tarfile.LNKTYPE, linkname=target)


def archive(*members: bytes) -> bytes:
    return b"".join(members) + bytes(1024)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def apply_layer(
    data: bytes,
    path: Path,
    below: Below | None = None,
    *,
    listener: Listener | None = None,
    privileged: bool = True,
    marks: Marks = MARKS,
) -> Dresser:
    """Make the empty directory *path* the layer that the archive *data* is."""
    dresser = Dresser(marks, privileged=privileged)
    with opened(path) as fd:
        tape = Tape(Unpacked(io.BytesIO(data)), listener)
        apply(tape, OverlayTarget(fd, dresser, marks, below))
    return dresser


def apply_plain(data: bytes, path: Path) -> None:
    """Apply the archive *data* to the plain tree at *path*."""
    with opened(path) as fd:
        tape = Tape(Unpacked(io.BytesIO(data)))
        apply(tape, PlainTarget(fd, Dresser(MARKS, privileged=True)))


def pack(path: Path, *, holes: bool = False) -> bytes:
    """The archive of the layer at *path*."""
    found = io.BytesIO()
    writer = TarWriter(found.write)
    with opened(path) as fd:
        pack_layer(fd, Packer(writer, MARKS, holes=holes), MARKS)
    writer.finish()
    return found.getvalue()


def framed(data: bytes, path: Path) -> bytes:
    """Apply *data* to *path*; return what comes out of its framing and the files."""
    framing, found = io.BytesIO(), io.BytesIO()
    writer = FramingWriter(framing)
    apply_layer(data, path, listener=writer)
    writer.finish()
    framing.seek(0)
    with opened(path) as fd:
        rebuild(framing, fd, found.write)
    return found.getvalue()


GNU = ("--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls")


def gnu_create(path: Path, *options: str) -> bytes:
    # GNU's own format has no room for xattrs, and tar refuses to be asked for them.
    kept = GNU[:1] if "--format=gnu" in options else GNU
    command = ["tar", *kept, *options, "-C", str(path), "-cf", "-", "."]
    return subprocess.run(command, capture_output=True, check=True).stdout


def gnu_extract(data: bytes, path: Path) -> None:
    command = ["tar", *GNU, "-p", "--same-owner", "-C", str(path), "-xf", "-"]
    subprocess.run(command, input=data, capture_output=True, check=True)
