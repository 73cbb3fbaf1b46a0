"""One directory tree on disk: access beneath its root by (descriptor, name).

Nothing here follows a symbolic link or leaves the layer. What is mounted on a directory
inside a layer does not belong to it: a layer opened in a private clone of its mount
(``Layer.isolated``) does not have it, any other shows such a directory empty.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Final

from unionfs.layer import syscalls, xattrs
from unionfs.layer.descriptors import Descriptors
from unionfs.layer.names import NameSet
from unionfs.layer.override import Inodes, Override, OverrideMarks
from unionfs.layer.xattrs import Marks

_OPEN_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_OBJECT: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_BENEATH: Final = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV

#: errno of a lookup that mean "not on this layer": the next layer is asked.
ABSENT: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EXDEV))


class Layer:
    """A directory tree of the stack: the upper one, or a lower one that is never written.

    ``index`` is 0 for the upper layer; lower ones count from 1, topmost first.
    """

    __slots__ = (
        "descriptors",
        "index",
        "inodes",
        "isolated",
        "marks",
        "override",
        "path",
        "root",
        "root_fd",
        "uuid",
    )

    def __init__(
        self,
        index: int,
        path: bytes,
        root_fd: int,
        *,
        isolated: bool,
        marks: Marks,
        uuid: bytes | None,
        descriptors: Descriptors,
        override: Override | None = None,
    ) -> None:
        self.index = index
        self.path = path
        self.root_fd = root_fd
        self.isolated = isolated
        #: Where owners, modes and types are kept, if that is not in the inodes.
        self.override = override
        self.inodes = Inodes() if override is None else override
        self.marks = marks if override is None else OverrideMarks(override, user=marks.user)
        self.uuid = uuid
        self.descriptors = descriptors
        self.root = Directory(self, None, b"")
        self.root.descriptor = root_fd

    def meant(
        self, status: os.stat_result, target: bytes | int, *, follow: bool = False
    ) -> os.stat_result:
        """Return *status*, of the object that *target* leads to, as this layer means it."""
        if self.override is None:
            return status
        return self.override.applied(status, target, follow=follow)

    def read_mark(self, path: bytes | int, mark: bytes, *, follow: bool = False) -> bytes | None:
        """Return the value of *mark* on an object of this layer, ``None`` without one.

        Raises EACCES for a lower object that an unprivileged daemon may not read: there
        ``user.*`` attributes are data. In the upper layer the object is its own, and is
        made readable for the moment.
        """
        return self._readable(
            path, lambda: self.marks.read(path, mark, follow=follow), follow=follow
        )

    def directory_marks(self, path: bytes) -> tuple[bytes | None, bool]:
        """Return the redirect of the directory at *path*, and whether it is marked opaque.

        Errors as ``read_mark``.
        """
        if not self.marks.among(xattrs.names(path)):
            return None, False
        opaque = self._readable(path, lambda: self.marks.opaque(path), follow=False)
        return self.read_mark(path, xattrs.REDIRECT), opaque == b"y"

    def write_mark(self, path: bytes, mark: bytes, value: bytes, *, follow: bool = False) -> None:
        """Set *mark* on an object of the upper layer, even one that its owner may not write.

        Raises EPERM where ``user.*`` attributes cannot be: on symlinks, devices, fifos and
        sockets, and on another's sticky directory.
        """
        try:
            self.marks.write(path, mark, value, follow=follow)
        except PermissionError as error:
            if error.errno != errno.EACCES:
                raise
            with opened_up(path, stat.S_IRUSR | stat.S_IWUSR, follow=follow):
                self.marks.write(path, mark, value, follow=follow)

    def remove_mark(self, path: bytes, mark: bytes, *, follow: bool = False) -> None:
        """Remove *mark* from an object of the upper layer if it is there."""
        try:
            self.marks.remove(path, mark, follow=follow)
        except PermissionError as error:
            if error.errno != errno.EACCES:
                raise
            with opened_up(path, stat.S_IRUSR | stat.S_IWUSR, follow=follow):
                self.marks.remove(path, mark, follow=follow)

    def _readable(
        self, path: bytes | int, read: Callable[[], bytes | None], *, follow: bool
    ) -> bytes | None:
        try:
            return read()
        except PermissionError:
            if self.index != 0:
                raise
        with opened_up(xattrs.path_to(path), stat.S_IRUSR, follow=follow):
            return read()


@contextlib.contextmanager
def opened_up(path: bytes, bits: int, *, follow: bool) -> Iterator[None]:
    """Grant the owner, which we must be, the permission *bits* of an upper object meanwhile.

    Without privilege a daemon is bound by the modes of its own files, whose users may well
    have taken every permission away. Raises EACCES for another's object.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or stat.S_ISLNK(status.st_mode):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        mode = stat.S_IMODE(status.st_mode)
        os.chmod(xattrs.fd_path(fd), mode | bits)
        try:
            yield
        finally:
            os.chmod(xattrs.fd_path(fd), mode)
    finally:
        os.close(fd)


class Directory:
    """A directory of one layer, found through its parent; its descriptor is opened on use.

    An upper directory keeps this object for life: a rename changes *parent* and *name*.
    """

    __slots__ = (
        "_xwhiteouts",
        "descriptor",
        "identity",
        "impure",
        "layer",
        "name",
        "names",
        "parent",
        "used",
        "version",
    )

    def __init__(self, layer: Layer, parent: Directory | None, name: bytes) -> None:
        self.layer = layer
        self.parent = parent
        self.name = name
        #: What tells it from another in its place (``identity_of``), 0 where that is not known.
        self.identity = 0
        #: The names that an upper directory may have, ``None`` where that is not known.
        self.names: NameSet | None = None
        #: How many names were made here.
        self.version = 0
        #: What ``fd`` returns while the directory is open, else -1; and whether it did lately.
        self.descriptor = -1
        self.used = False
        #: Whether an upper directory is known to be marked as one of entries with an origin.
        self.impure = False
        self._xwhiteouts: bool | None = None

    def fd(self) -> int:
        """Return an O_PATH descriptor, good until the next await.

        Raises ENOENT or ENOTDIR when the layer was changed below us, EXDEV for a
        directory that another file system is mounted on.
        """
        fd = self.descriptor
        if fd >= 0:
            self.used = True
            return fd
        missing: list[Directory] = []
        directory = self
        while fd < 0:
            missing.append(directory)
            above = directory.parent
            assert above is not None  # the root is always open
            directory = above
            fd = above.descriptor
        for directory in reversed(missing):
            fd = _open(directory, fd)
        return fd

    def added(self, name: bytes) -> None:
        """Learn that a name is about to be made here, be it a whiteout's."""
        self.version += 1
        if self.names is not None:
            self.names.add(name)

    def path(self) -> bytes:
        """Return the path from the layer's root, ``/`` for the root itself."""
        names = []
        directory = self
        while directory.parent is not None:
            names.append(directory.name)
            directory = directory.parent
        return b"/" + b"/".join(reversed(names))

    @property
    def xwhiteouts(self) -> bool:
        """Whether regular files here may be whiteouts (``overlay.opaque`` is ``x``)."""
        if self._xwhiteouts is None:
            try:
                value = self.layer.marks.opaque(xattrs.fd_path(self.fd()), follow=True)
            except PermissionError:
                value = None  # a directory that we cannot read lists nothing either
            self._xwhiteouts = value == b"x"
        return self._xwhiteouts

    def is_place(self, other: Directory) -> bool:
        """Say whether *other* is the same directory, found by the same name in the same one."""
        return (
            self.layer is other.layer
            and self.parent is other.parent
            and self.name == other.name
            and self.identity in (0, other.identity)
        )

    def look_again(self) -> None:
        """Forget what was read of its marks, which others may have changed."""
        self._xwhiteouts = None

    def mark_xwhiteouts(self) -> None:
        """Remember that this directory now holds whiteouts in xattr form."""
        self._xwhiteouts = True

    def lstat(self, name: bytes) -> os.stat_result | None:
        """Return the attributes of *name*, ``None`` when this layer has no such name."""
        names = self.names
        if names is not None and name not in names:
            if monotonic() < names.until:
                return None
            self.names = None
        fd = self.descriptor
        try:
            if fd < 0:
                fd = self.fd()
            self.used = True
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise
        override = self.layer.override
        if override is None:
            return status
        return override.applied(status, xattrs.entry_path(fd, name))

    def status(self) -> os.stat_result:
        """Return its own attributes."""
        fd = self.fd()
        return self.layer.meant(os.fstat(fd), xattrs.fd_path(fd), follow=True)

    def open_object(self, name: bytes) -> int:
        """Open *name*, whatever it is, O_PATH."""
        return os.open(name, _OPEN_OBJECT, dir_fd=self.fd())

    def scan(self) -> Iterator[os.DirEntry[bytes]]:
        """Yield the entries of this directory, none where something is mounted on it."""
        try:
            path = xattrs.fd_path(self.fd())
        except OSError as error:
            if error.errno in ABSENT:
                return
            raise
        with self._scandir(path) as entries:
            yield from entries

    def _scandir(self, path: bytes) -> os._ScandirIterator[bytes]:
        try:
            return os.scandir(path)
        except PermissionError:
            if self.layer.index != 0:
                raise
        with opened_up(path, stat.S_IRUSR | stat.S_IXUSR, follow=True):
            return os.scandir(path)


def identity_of(status: os.stat_result) -> int:
    """Return a number that no other object has while this one lives."""
    return status.st_dev << 64 | status.st_ino


def _open(directory: Directory, parent_fd: int) -> int:
    """Open *directory*, whose parent is *parent_fd*, and keep its descriptor."""
    if directory.layer.isolated:
        fd = os.open(directory.name, _OPEN_DIRECTORY, dir_fd=parent_fd)
    else:
        fd = syscalls.openat2(parent_fd, directory.name, _OPEN_DIRECTORY, _BENEATH)
    directory.layer.descriptors.put(directory, fd)
    return fd


def kind_of(entry: os.DirEntry[bytes]) -> int:
    """Return the type of a directory entry as in ``st_mode``, mostly without a stat."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
