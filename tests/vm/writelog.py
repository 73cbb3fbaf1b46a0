"""What dm-log-writes has written down of a disk, read, and played back as a power cut leaves it.

The log (Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c) is a
super block and entries, each of a sector that says what was written where, and the data after it.
A write is in the log once a flush has followed it, or at its end if it is FUA: so what stands
before a flush is on the disk when that has ended, and all since then was in the disk's cache at
most. A mark is what somebody said at a moment: all that was on the disk by then is before it.
"""

from __future__ import annotations

import enum
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import IO, Final, NamedTuple

_MAGIC: Final = 0x6A736677736872
_VERSION: Final = 1
#: struct log_write_super: magic, version, number of entries, bytes of a sector.
_SUPER: Final = struct.Struct("<QQQI")
#: struct log_write_entry: sector, number of sectors, flags, bytes that follow it in its sector.
_ENTRY: Final = struct.Struct("<QQQQ")
#: Disks of today write so many bytes whole or not at all, which ext4 counts on, and no more.
_ATOM: Final = 4096


class Flags(enum.IntFlag):
    """What an entry is."""

    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8
    METADATA = 16


class Entry(NamedTuple):
    """One write, flush, discard or mark, in bytes."""

    flags: Flags
    offset: int
    """Where it was written on the disk."""
    length: int
    place: int
    """Where in the log the data are."""
    mark: str

    @property
    def lasts(self) -> bool:
        """Whether its own data are on the disk at its end."""
        return bool(self.flags & Flags.FUA)


def read(log: Path) -> list[Entry]:
    """Return the entries of *log*, a file with what the log's device has."""
    with log.open("rb") as file:
        magic, version, number, sector = _SUPER.unpack(file.read(_SUPER.size))
        assert (magic, version) == (_MAGIC, _VERSION), f"{log}: is no log of dm-log-writes"
        return list(_entries(file, number, sector))


def _entries(file: IO[bytes], number: int, sector: int) -> Iterator[Entry]:
    position = sector
    for _ in range(number):
        file.seek(position)
        block = file.read(sector)
        start, sectors, flags, inline = _ENTRY.unpack_from(block)
        mark = block[_ENTRY.size : _ENTRY.size + inline] if flags & Flags.MARK else b""
        position += sector
        yield Entry(
            Flags(flags), start * sector, sectors * sector, position, mark.rstrip(b"\0").decode()
        )
        if not flags & Flags.DISCARD:
            position += sectors * sector


class Playback:
    """A disk of *size* bytes that gets what is in *log*; *disk* is the file for it.

    Going forward costs what was written since; each cut costs a copy of what the disk has.
    """

    def __init__(self, log: Path, disk: Path, size: int) -> None:
        self.entries = read(log)
        self._log = log
        self._disk = disk
        self._done = 0
        with disk.open("wb") as file:
            file.truncate(size)

    def marks(self, until: int) -> list[str]:
        """Return what was said before the entry *until*."""
        return [entry.mark for entry in self.entries[:until] if entry.flags & Flags.MARK]

    def find(self, mark: str) -> int:
        """Return the number of the first entry after *mark*."""
        return next(n for n, entry in enumerate(self.entries) if entry.mark == mark) + 1

    def cut(self, at: int, random: Random, image: Path) -> str:
        """Make *image* the disk after a cut just before the entry *at*; tell what was lost.

        What was in the cache is lost in part, as *random* draws. Cuts come in their order.
        """
        flushed = at
        while flushed > 0 and not self.entries[flushed - 1].flags & Flags.FLUSH:
            flushed -= 1
        # The flush itself may have brought data, which only then came to the cache.
        flushed = max(flushed - 1, 0)
        assert flushed >= self._done, "cuts come in their order"
        with self._log.open("rb") as log, self._disk.open("r+b") as disk:
            for entry in self.entries[self._done : flushed]:
                _write(log, disk, entry, entry.length)
            self._done = flushed
        subprocess.run(["cp", "--sparse=auto", str(self._disk), str(image)], check=True)
        with self._log.open("rb") as log, image.open("r+b") as disk:
            return self._lose(log, disk, self.entries[flushed:at], random)

    @staticmethod
    def _lose(log: IO[bytes], disk: IO[bytes], cached: list[Entry], random: Random) -> str:
        """Write what of *cached* is not lost: much or little of it, and some writes in part."""
        keeping = random.choice((0.0, 0.5, 0.9, 1.0))
        kept = torn = lost = 0
        for entry in cached:
            if entry.flags & Flags.MARK or not entry.length:
                continue
            if entry.lasts or random.random() < keeping:
                _write(log, disk, entry, entry.length)
                kept += 1
            elif random.random() < 0.2 and entry.length > _ATOM:
                _write(log, disk, entry, random.randrange(_ATOM, entry.length, _ATOM))
                torn += 1
            else:
                lost += 1
        return f"{kept} writes kept, {torn} torn, {lost} lost"


def _write(log: IO[bytes], disk: IO[bytes], entry: Entry, length: int) -> None:
    if entry.flags & Flags.MARK or not length:
        return
    disk.seek(entry.offset)
    if entry.flags & Flags.DISCARD:
        disk.write(bytes(length))
        return
    log.seek(entry.place)
    disk.write(log.read(length))
