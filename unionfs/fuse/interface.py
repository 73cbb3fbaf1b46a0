"""What a session calls, and what a session is: the seam between the kernel and the union.

A session turns kernel requests into the calls of ``FileSystem`` and its answers into
replies; it is the only one that knows the protocol. Errors are ``OSError`` with the errno
to reply; any other exception is a bug, answered ``EIO`` and logged, and the mount lives on.

Methods that may have to wait (copying data, syncing) are coroutines, so that they hold up
nobody else; most finish without waiting even so, and a session may run those to their end at
once. Methods that never wait are plain functions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

ROOT_ID = 1


class Attr(NamedTuple):
    """Attributes of an object: *status* as its layer has it, but for what stands here."""

    ino: int
    nlink: int
    uid: int
    gid: int
    status: os.stat_result


class Entry(NamedTuple):
    """An object under a name: *node* is its number in every later call.

    *generation* tells it from others that have had that number, for file handles.
    """

    node: int
    attr: Attr
    generation: int = 0


class ListedName(NamedTuple):
    """One name of a listing without attributes: *ino* and type (``S_IFMT``) are those of stat.

    *offset* continues after it.
    """

    name: bytes
    offset: int
    ino: int
    kind: int


class DirectoryEntry(NamedTuple):
    """One name of a listing with attributes; *offset* continues after it.

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


class Opened(NamedTuple):
    """An open file: its *handle*, and the backing file that the kernel reads and writes itself.

    *backing* is what ``Kernel.open_backing`` returned, 0 for a file whose data goes through
    the page cache and the union. *keep_pages* says that pages cached before are still good.
    """

    handle: int
    backing: int = 0
    keep_pages: bool = True


class Changes(NamedTuple):
    """What setattr changes; ``None`` stays as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    keeps_set_ids: bool = False
    """A truncation leaves setuid and setgid: the caller has CAP_FSETID. A new owner never does."""


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


class Kernel(Protocol):
    """What a session can do for a file system beside asking it."""

    def open_backing(self, fd: int) -> int:
        """Register the file *fd* for passthrough; OSError where that cannot be."""

    def close_backing(self, backing: int) -> None:
        """Give back what ``open_backing`` returned, after the last use in an ``Opened``."""

    def attributes_changed(self, node: int) -> None:
        """Let the kernel ask for the attributes of *node* again. Does not wait for it."""


class FileSystem(Protocol):
    """A mounted union, asked by node number.

    Every ``Entry`` returned by lookup and by the calls that make an object counts as one
    reference that the kernel gives back with forget. Entries of a listing count when
    ``remember`` says that the kernel has taken them.
    """

    timeout: float

    def connect(self, kernel: Kernel) -> None:
        """Learn who asks; called once, before the first request."""

    def lookup(self, parent: int, name: bytes) -> Entry | None:
        """Find *name*; ``None`` when nothing shows.

        ``.`` of a number that is not known, and then ``..``, is asked for when a file handle is
        used; ESTALE when its object is gone.
        """

    def remember(self, node: int) -> None:
        """Count one reference for an entry of a listing."""

    def forget(self, node: int, count: int) -> None:
        """Give *count* references back."""

    def getattr(self, node: int) -> Attr:
        """Return attributes."""

    async def setattr(self, node: int, changes: Changes) -> Attr:
        """Change attributes and return all; EROFS in a read-only union."""

    def readlink(self, node: int) -> bytes:
        """Return the target of a symbolic link."""

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        """Make a file, fifo, socket or device; EPERM for a character device 0:0."""

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """Make a directory."""

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Entry:
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

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Entry, Opened]:
        """Make a regular file and open it."""

    def tmpfile(self, parent: int, mode: int, flags: int, caller: Caller) -> tuple[Entry, Opened]:
        """Make a regular file without a name, as O_TMPFILE does; ``link`` can give it one."""

    async def open(self, node: int, flags: int, *, keeps_set_ids: bool = False) -> Opened:
        """Open a regular file; ``O_TRUNC`` in *flags* is obeyed.

        As any truncation it takes setuid, setgid and capabilities away; with
        *keeps_set_ids* only capabilities.
        """

    async def read(self, handle: int, offset: int, size: int) -> bytes | memoryview:
        """Read up to *size* bytes, fewer only at the end."""

    async def write(
        self,
        handle: int,
        offset: int,
        data: bytes | memoryview,
        *,
        keeps_set_ids: bool = False,
        synced: bool = False,
    ) -> int:
        """Write all of *data*, or raise; with *synced* to the disk.

        Takes setuid, setgid and capabilities away; with *keeps_set_ids* only capabilities.
        """

    async def fallocate(self, handle: int, offset: int, length: int, mode: int) -> None:
        """Reserve, punch, zero, collapse or insert a range, as far as the upper can."""

    def seek(self, handle: int, offset: int, whence: int) -> int:
        """Return where data or a hole begins: SEEK_DATA and SEEK_HOLE; ENXIO beyond the end."""

    async def copy_range(
        self, source: int, source_offset: int, target: int, target_offset: int, length: int
    ) -> int:
        """Copy between two handles as copy_file_range(2); returns the number of bytes."""

    def get_flags(self, node: int) -> int:
        """Return the FS_*_FL flags, ioctl_iflags(2); ENOTTY where the layer has none."""

    async def set_flags(self, node: int, flags: int) -> None:
        """Set the FS_*_FL flags; waits while the object is copied up."""

    def get_xflags(self, node: int) -> bytes:
        """Return the ``struct fsxattr`` of FS_IOC_FSGETXATTR; ENOTTY where there is none."""

    def measure_verity(self, node: int, size: int) -> bytes:
        """Return fs-verity's ``struct fsverity_digest`` of at most *size* bytes of digest."""

    def birth_time(self, node: int) -> int | None:
        """Return when the object was made, in nanoseconds; ``None`` where that is not kept."""

    async def syncfs(self) -> None:
        """Bring all changes to the disk; nothing in a volatile union. EIO when one was lost."""

    def release(self, handle: int) -> None:
        """Forget a file handle."""

    async def fsync(self, handle: int, *, data_only: bool) -> None:
        """Bring a file to the disk."""

    async def readdir_plus(self, node: int, offset: int) -> Iterator[DirectoryEntry | ListedName]:
        """Yield what follows *offset* in a directory; 0 begins anew and sees the present state.

        Offsets belong to names: they stay good, for whoever continues after them, while
        the directory changes. No directory need be open for it. ``.`` and ``..`` come first,
        without attributes.
        """

    async def readdir_names(self, node: int, offset: int) -> Iterator[ListedName]:
        """Yield as ``readdir_plus``, without attributes and mostly without asking for them."""

    async def fsyncdir(self, node: int, *, data_only: bool) -> None:
        """Bring a directory's entries to the disk."""

    def statfs(self) -> Statfs:
        """Return sizes."""

    def getxattr(self, node: int, name: bytes) -> bytes:
        """Return an extended attribute; ENODATA when there is none."""

    def listxattr(self, node: int, caller: Caller) -> Sequence[bytes]:
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

    def mount(self, target: bytes, source: str, words: Sequence[str]) -> None:
        """Put the file system on *target*; *words* are mount options.

        After any fork, before any thread. Raises ``MountError``.
        """

    def serve(self, ready: Callable[[], None]) -> None:
        """Answer requests until unmounted; *ready* is called once INIT has been answered.

        Runs in the main thread, where signal handlers run too.
        """

    def stop(self) -> None:
        """Ask ``serve`` to return; may be called by a signal handler."""

    def counted(self) -> str:
        """Return how many requests of each kind were read, "" where nobody counts."""

    def close(self, *, unmount: bool) -> None:
        """Release the connection, unmounting first if asked to."""
