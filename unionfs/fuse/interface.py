"""What a session calls, and what a session is: the seam between the kernel and the union.

A session turns kernel requests into the calls of ``FileSystem`` and its answers into
replies; it is the only one that knows the protocol. Errors are ``OSError`` with the errno
to reply; any other exception is a bug, answered ``EIO`` and logged, and the mount lives on.

Methods are coroutines, so that one that must wait (copying data, syncing) holds up
nobody else; most finish without waiting, and a session may run those to their end at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

ROOT_ID = 1


class Attr(NamedTuple):
    """Attributes of an object, as stat(2) has them; times in nanoseconds."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Entry(NamedTuple):
    """An object under a name: *node* is its number in every later call."""

    node: int
    attr: Attr


class DirectoryEntry(NamedTuple):
    """One name of a listing; *offset* continues after it.

    *entry* is ``None`` where looking at the object fails: a lookup tells the error.
    """

    name: bytes
    offset: int
    entry: Entry | None


class Caller(NamedTuple):
    """Who asks: the file system ids, the thread, and the umask not yet applied to modes."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


@dataclass(slots=True)
class Changes:
    """What setattr changes; ``None`` stays as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class Statfs(NamedTuple):
    """Sizes of the file system that takes the changes, as statvfs(3) has them."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    favail: int
    namemax: int


class FileSystem(Protocol):
    """A mounted union, asked by node number.

    Every ``Entry`` returned by lookup and by the calls that make an object counts as one
    reference that the kernel gives back with forget. Entries of a listing count when
    ``remember`` says that the kernel has taken them.
    """

    timeout: float

    async def lookup(self, parent: int, name: bytes) -> Entry:
        """Find *name*; ENOENT when nothing shows."""

    def remember(self, node: int) -> None:
        """Count one reference for an entry of a listing."""

    def forget(self, node: int, count: int) -> None:
        """Give *count* references back."""

    async def getattr(self, node: int) -> Attr:
        """Return attributes."""

    async def setattr(self, node: int, changes: Changes) -> Attr:
        """Change attributes and return all; EROFS in a read-only union."""

    async def readlink(self, node: int) -> bytes:
        """Return the target of a symbolic link."""

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        """Make a file, fifo, socket or device; EPERM for a character device 0:0."""

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """Make a directory."""

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Entry:
        """Make a symbolic link."""

    async def link(self, node: int, parent: int, name: bytes) -> Entry:
        """Give *node* another name."""

    async def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name that is no directory's."""

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove a directory that shows nothing; ENOTEMPTY otherwise."""

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        """Rename with RENAME_NOREPLACE or RENAME_EXCHANGE; EINVAL for other *flags*."""

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Entry, int]:
        """Make a regular file and open it: entry and file handle."""

    async def open(self, node: int, flags: int) -> int:
        """Open a regular file; ``O_TRUNC`` in *flags* is obeyed. Returns a file handle."""

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read up to *size* bytes, fewer only at the end."""

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write all of *data*, or raise."""

    async def release(self, handle: int) -> None:
        """Forget a file handle."""

    async def fsync(self, handle: int, *, data_only: bool) -> None:
        """Bring a file to the disk."""

    async def opendir(self, node: int) -> int:
        """Open a directory for listing; returns a handle."""

    async def readdir(self, handle: int, offset: int) -> Iterator[DirectoryEntry]:
        """Yield what follows *offset*; 0 begins anew and sees the present state."""

    async def releasedir(self, handle: int) -> None:
        """Forget a directory handle."""

    async def fsyncdir(self, handle: int, *, data_only: bool) -> None:
        """Bring a directory's entries to the disk."""

    async def statfs(self) -> Statfs:
        """Return sizes."""

    async def getxattr(self, node: int, name: bytes) -> bytes:
        """Return an extended attribute; ENODATA when there is none."""

    async def listxattr(self, node: int, caller: Caller) -> Sequence[bytes]:
        """Return the names of the extended attributes that *caller* may see."""

    async def setxattr(
        self, node: int, name: bytes, value: bytes, flags: int, caller: Caller
    ) -> None:
        """Set an extended attribute; EPERM for the union's own marks."""

    async def removexattr(self, node: int, name: bytes) -> None:
        """Remove an extended attribute; ENODATA when there is none."""


class Session(Protocol):
    """A connection to the kernel that serves one ``FileSystem``."""

    name: str

    def mount(self, target: str, options: Sequence[str]) -> None:
        """Mount at *target*; raises ``MountError``. Before trio runs, after any fork."""

    async def serve(self, ready: Callable[[], None]) -> None:
        """Answer requests until unmounted; *ready* is called once INIT has been answered."""

    def stop(self) -> None:
        """Ask ``serve`` to return."""

    def close(self, *, unmount: bool) -> None:
        """Release the connection, unmounting first if asked to."""
