"""The work directory: where every change is prepared before one rename puts it in place.

Inside are ``work/`` (temporaries, empty while nothing is being changed) and ``index/``
(lower files with several names that were copied up), laid out as the kernel's overlayfs
has them, so that either can mount after the other.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from typing import Final, Protocol

from unionfs.errors import LayerError
from unionfs.layer import syscalls, xattrs
from unionfs.layer.tree import opened_up
from unionfs.layer.walk import remove_tree
from unionfs.layer.xattrs import Marks

_OPEN: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WORK: Final = b"work"
_INDEX: Final = b"index"
_INCOMPAT: Final = b"incompat"
_VOLATILE: Final = b"volatile"
#: A directory made beside ``work/`` for a moment, to see what the file system can hold.
_PROBE: Final = b"#probe-"
#: Index entries that only this mount understands: the lower's handle could not be had.
TEMPORARY_INDEX: Final = b"#"


class _Upper(Protocol):
    path: bytes


class WorkDirectory:
    """``work/`` and ``index/`` below one workdir; names of temporaries are never reused."""

    def __init__(self, path: bytes, fd: int, marks: Marks, *, volatile: bool) -> None:
        self.path = path
        self.volatile = volatile
        self.fd = -1
        self.index_fd = -1
        #: For syncfs(2), which takes no O_PATH descriptor and tells a loss once for each.
        self.sync_fd = -1
        #: Devices of layers that share no extents with this one.
        self.apart: set[int] = set()
        self._root_fd = fd
        self._marks = marks
        self._numbers = itertools.count(1)

    def check(self, upper: _Upper) -> None:
        """Refuse a workdir that a volatile mount left, an upper that cannot be changed in steps.

        Raises ``LayerError``; nothing stays changed on disk.
        """
        for feature in self._incompatible():
            place = os.path.join(self.path, _WORK, _INCOMPAT, feature)
            reason = "left by a mount that did not sync; remove it if you accept a loss of data"
            raise LayerError("workdir", place, reason)
        with self._probe(b"a") as one, self._probe(b"b") as other:
            self._check_exchange(upper, one, other)
            self._check_xattrs(upper, one)

    def _incompatible(self) -> list[bytes]:
        """Return the names in ``work/incompat``: what a mount must know of to go on."""
        work = xattrs.entry_path(self._root_fd, _WORK)
        try:
            return os.listdir(work + b"/" + _INCOMPAT)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError:
            # The kernel makes work/ with mode 0, which shuts out an owner without privilege.
            with opened_up(work, 0o500, follow=False):
                return self._incompatible()

    def _check_exchange(self, upper: _Upper, one: bytes, other: bytes) -> None:
        """Refuse what the kernel's overlayfs refuses as well: NFS, and others without renameat2(2).

        To do in two renames what an exchange does would leave a moment in which a crash shows
        again what was deleted, or nothing where a directory was replaced.
        """
        try:
            flags = syscalls.RENAME_EXCHANGE
            syscalls.renameat2(self._root_fd, one, self._root_fd, other, flags)
        except OSError as error:
            reason = (
                "its file system cannot exchange two names (RENAME_EXCHANGE; NFS cannot),"
                " which deleted and replaced directories need"
            )
            raise LayerError("upperdir", upper.path, reason) from error

    def _check_xattrs(self, upper: _Upper, probe: bytes) -> None:
        try:
            path = xattrs.entry_path(self._root_fd, probe)
            self._marks.write(path, xattrs.OPAQUE, b"y")
        except OSError as error:
            reason = "its file system has no extended attributes, which deleted directories need"
            raise LayerError("upperdir", upper.path, reason) from error

    @contextlib.contextmanager
    def _probe(self, suffix: bytes) -> Iterator[bytes]:
        """Give the name of a directory made for a moment, beside ``work/``."""
        name = _PROBE + b"%d" % os.getpid() + suffix
        try:
            os.mkdir(name, 0o700, dir_fd=self._root_fd)
        except OSError as error:
            raise LayerError("workdir", self.path, os.strerror(error.errno or 0)) from error
        try:
            yield name
        finally:
            os.rmdir(name, dir_fd=self._root_fd)

    def prepare(self) -> None:
        """Make ``work/`` and ``index/``, without what a killed daemon may have left there."""
        for name in (_WORK, _INDEX):
            try:
                os.mkdir(name, 0o700, dir_fd=self._root_fd)
            except FileExistsError:
                self._open_up(name)
            self._drop_acls(name)
        self.fd = os.open(_WORK, _OPEN, dir_fd=self._root_fd)
        self.index_fd = os.open(_INDEX, _OPEN, dir_fd=self._root_fd)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self.sync_fd = os.open(_WORK, flags, dir_fd=self._root_fd)
        self._empty()
        if self.volatile:
            os.makedirs(xattrs.entry_path(self.fd, _INCOMPAT + b"/" + _VOLATILE), 0o700)

    def _open_up(self, name: bytes) -> None:
        path = xattrs.entry_path(self._root_fd, name)
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            os.chmod(path, 0o700)

    def _drop_acls(self, name: bytes) -> None:
        """Remove what *name* inherited from the work directory: temporaries would in turn."""
        path = xattrs.entry_path(self._root_fd, name)
        for acl in (xattrs.ACL_DEFAULT, xattrs.ACL_ACCESS):
            if xattrs.read(path, acl) is not None:
                xattrs.remove(path, acl)

    def _empty(self) -> None:
        for name in _names(self.fd):
            if not (self.volatile and name == _INCOMPAT):
                remove_tree(self.fd, name)
        for name in _names(self._root_fd):
            if name.startswith(_PROBE):
                remove_tree(self._root_fd, name)
        for name in _names(self.index_fd):
            if name.startswith(TEMPORARY_INDEX):
                remove_tree(self.index_fd, name)

    def clean(self) -> None:
        """Leave ``work/`` empty, but for the mark of a volatile mount."""
        if self.fd >= 0:
            self._empty()

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self.fd, self.index_fd, self.sync_fd):
            if fd >= 0:
                os.close(fd)

    def new_name(self) -> bytes:
        """Return a name for a temporary; ``#`` is what the kernel's temporaries begin with."""
        return b"#%x" % next(self._numbers)

    def path_of(self, name: bytes) -> bytes:
        """Return the path that leads to the temporary *name*, for xattrs and times."""
        return xattrs.entry_path(self.fd, name)

    @contextlib.contextmanager
    def temporary(self) -> Iterator[bytes]:
        """Give a name for a temporary, which is removed if what is done with it fails."""
        name = self.new_name()
        try:
            yield name
        except BaseException:
            self.discard(name)
            raise

    def discard(self, name: bytes) -> None:
        """Remove the temporary *name* after a failure; the failure is what counts."""
        with contextlib.suppress(OSError):
            remove_tree(self.fd, name)

    def forget_index(self, name: bytes) -> None:
        """Remove an index entry whose last name is gone."""
        try:
            os.unlink(name, dir_fd=self.index_fd)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise


def _names(fd: int) -> list[bytes]:
    return os.listdir(xattrs.fd_path(fd))
