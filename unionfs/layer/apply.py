"""An archive becomes a tree: each member made beneath the root, by descriptor and name.

`apply` goes through an archive; a `Target` is the tree that it is put into. Of these there
are two: a directory that is a layer of overlayfs (`unionfs.layer.apply_overlay`), and a plain
tree that already has what the layers below have (`unionfs.layer.apply_plain`). What they
have in common is here: nothing goes through a symbolic link, and what an archive made it
does not make again.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Final, Protocol

from unionfs.errors import ArchiveError
from unionfs.layer import whiteouts, xattrs
from unionfs.layer.apply_attributes import Dresser
from unionfs.layer.archive import Kind, Member, members, refuse, shown
from unionfs.layer.beneath import Beneath, split
from unionfs.layer.tape import Tape
from unionfs.layer.walk import remove_tree

#: AUFS keeps files with several names here; members that link to them follow.
_LINKS: Final = b".wh..wh.plnk"
#: Files of at least so many bytes are asked for room before they are begun.
_LARGE: Final = 64 << 20
_DIRECTORY_MODE: Final = 0o755
_DEVICES: Final = {Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK}
_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
#: What a file system says of a member that cannot be, whatever the state of things.
_IMPOSSIBLE: Final = frozenset(
    (
        errno.E2BIG,
        errno.EFBIG,
        errno.EINVAL,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.ERANGE,
        errno.EXDEV,
    )
)


def apply(tape: Tape, target: Target, *, vouched: bool = False) -> None:
    """Put what is in the archive on *tape* into *target*; *vouched* as in `members`.

    Raises `ArchiveError`, with the member's name, for what is refused, and ``OSError`` from
    the file system (ENOSPC, EIO). What was made until then stays.
    """
    member = None
    try:
        for member in members(tape, vouched=vouched):
            target.put(member, tape)
        target.finish()
    except OSError as error:
        if error.errno in _IMPOSSIBLE and member is not None:
            raise refuse(member.path, os.strerror(error.errno)) from error
        raise
    except OverflowError as error:  # a number that no system call takes
        assert member is not None
        raise refuse(member.path, str(error)) from error
    except ArchiveError as error:
        if member is None or str(error).startswith(("member ", "after member ")):
            raise
        raise refuse(member.path, str(error)) from error
    finally:
        target.close()


class Below(Protocol):
    """What the layers below show together."""

    def directory(self, path: bytes) -> Member | None:
        """Return what the directory *path* is, ``None`` where none shows."""
        ...

    def names(self) -> Iterable[bytes]:
        """Return the names in the root."""
        ...


class Target(ABC):
    """A tree that an archive is put into. See the module."""

    def __init__(self, root_fd: int, dresser: Dresser, below: Below | None = None) -> None:
        self.tree = Beneath(root_fd)
        self.dresser = dresser
        #: What is to be seen through this tree, where that is not in it.
        self.below = below
        #: What this archive made, directories on the way to it included.
        self.made: dict[bytes, Kind] = {b"": Kind.DIRECTORY}
        self._directories: dict[bytes, Member] = {}
        #: Directories changed inside that are to look as if they were not.
        self._kept: dict[bytes, os.stat_result] = {}

    @abstractmethod
    def hide(self, path: bytes) -> None:
        """Let nothing of the layers below be seen at *path*."""

    @abstractmethod
    def make_opaque(self, path: bytes) -> None:
        """Let nothing of the layers below be seen in the directory *path*."""

    @abstractmethod
    def clear(self, path: bytes, *, directory: bool) -> bool:
        """Make room at *path*, which this archive has not made.

        Return whether a directory stays there, which is to be one if *directory*.
        """

    @abstractmethod
    def made_directory(self, path: bytes) -> None:
        """Take note of a new directory *path*; something below may have to be hidden."""

    def put(self, member: Member, tape: Tape) -> None:
        """Make *member*, whose content comes next on *tape*."""
        parent, name = split(member.path)
        if whiteouts.is_reserved(name) and not self._is_kept(member.path):
            self._put_whiteout(member, parent, name)
            return
        self._refuse_reserved(parent, member)
        if member.path in self.made:
            self._put_again(member)
            return
        stays = self.clear(member.path, directory=member.kind is Kind.DIRECTORY)
        self._make(member, tape, self.parent(member.path), name, stays=stays)
        self.made[member.path] = member.kind

    def _is_kept(self, path: bytes) -> bool:
        return path == _LINKS or path.startswith(_LINKS + b"/")

    def _refuse_reserved(self, parent: bytes, member: Member) -> None:
        for part in parent.split(b"/"):
            if whiteouts.is_reserved(part) and not self._is_kept(member.path):
                raise refuse(member.path, "lies in a whiteout")

    def _put_whiteout(self, member: Member, parent: bytes, name: bytes) -> None:
        self._refuse_reserved(parent, member)
        if name == whiteouts.OPAQUE_NAME:
            self.parent(member.path)
            self.make_opaque(parent)
            return
        hidden = whiteouts.hidden_by(name)
        if hidden is None:
            return  # bookkeeping
        if hidden in (b"", b".", b".."):
            raise refuse(member.path, "a whiteout of no name")
        self.parent(member.path)
        self.hide(parent + b"/" + hidden if parent else hidden)

    def _put_again(self, member: Member) -> None:
        """Take a directory that is told a second time, or was made on the way to a member."""
        if not (member.kind is self.made[member.path] is Kind.DIRECTORY):
            raise refuse(member.path, "is there twice")
        self._directories[member.path] = member

    def _make(self, member: Member, tape: Tape, dirfd: int, name: bytes, *, stays: bool) -> None:
        match member.kind:
            case Kind.DIRECTORY:
                if not stays:
                    os.mkdir(name, 0o700, dir_fd=dirfd)
                    self.made_directory(member.path)
                self._directories[member.path] = member
                return
            case Kind.FILE:
                self._make_file(member, tape, dirfd, name)
                return
            case Kind.HARD_LINK:
                self._make_link(member, name)
                return
            case Kind.SYMLINK:
                os.symlink(member.target, name, dir_fd=dirfd)
            case Kind.FIFO:
                os.mkfifo(name, 0o600, dir_fd=dirfd)
            case Kind.CHARACTER | Kind.BLOCK:
                self._make_device(member, dirfd, name)
        self.dresser.dress(xattrs.entry_path(dirfd, name), member)

    def _make_file(self, member: Member, tape: Tape, dirfd: int, name: bytes) -> None:
        self._require_room(member, dirfd)
        fd = os.open(name, _CREATE, 0o600, dir_fd=dirfd)
        try:
            for offset, length in member.segments:
                position = offset
                for data in tape.content(member.path, offset, length):
                    write_all(fd, data, position)
                    position += len(data)
            if os.fstat(fd).st_size != member.size:
                os.ftruncate(fd, member.size)
            self.dresser.dress(xattrs.fd_path(fd), member, follow=True)
        finally:
            os.close(fd)

    def _require_room(self, member: Member, dirfd: int) -> None:
        stored = sum(length for _, length in member.segments)
        if stored >= _LARGE:
            free = os.statvfs(xattrs.fd_path(dirfd))
            if stored > free.f_bavail * free.f_frsize:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), shown(member.path))

    def _make_link(self, member: Member, name: bytes) -> None:
        kind = self.made.get(member.target)
        if kind is None or kind is Kind.DIRECTORY:
            what = "no member before it" if kind is None else "a directory"
            raise refuse(member.path, f"a hard link to {shown(member.target)}, which is {what}")
        parent, target = split(member.target)
        there = os.dup(self.tree.directory(parent))
        try:
            here = self.parent(member.path)
            os.link(target, name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        finally:
            os.close(there)

    def _make_device(self, member: Member, dirfd: int, name: bytes) -> None:
        if not self.dresser.privileged:
            raise refuse(member.path, f"a {member.kind.value}, which only root may make")
        try:
            os.mknod(name, _DEVICES[member.kind] | 0o600, member.rdev, dir_fd=dirfd)
        except PermissionError as error:
            reason = f"a {member.kind.value}, which only root outside of user namespaces may make"
            raise refuse(member.path, reason) from error

    def parent(self, path: bytes) -> int:
        """Return a descriptor of the directory that *path* lies in, made if need be."""
        parent, _ = split(path)
        if parent not in self.made:
            parts = parent.split(b"/")
            for depth in range(1, len(parts) + 1):
                self._pass_through(b"/".join(parts[:depth]), path)
        elif self.made[parent] is not Kind.DIRECTORY:
            raise refuse(path, f"lies below a {self.made[parent].value}")
        return self.tree.directory(parent)

    def _pass_through(self, path: bytes, member: bytes) -> None:
        """See to it that *path*, whose parent is there, is a directory for *member* to lie in."""
        kind = self.made.setdefault(path, Kind.DIRECTORY)
        if kind is not Kind.DIRECTORY:
            raise refuse(member, f"lies below {shown(path)}, a {kind.value}")
        if path in self._directories:
            return
        if not self.clear(path, directory=True):
            parent, name = split(path)
            dirfd = self.tree.directory(parent)
            os.mkdir(name, 0o700, dir_fd=dirfd)
            self.made_directory(path)
            below = None if self.below is None else self.below.directory(path)
            if below is None:
                mtime = os.stat(xattrs.fd_path(dirfd)).st_mtime_ns
                below = Member(path, Kind.DIRECTORY, _DIRECTORY_MODE, 0, 0, mtime)
            self._directories[path] = below

    def keep(self, path: bytes) -> None:
        """Let the directory *path* have the times that it has now, when all is done."""
        if path not in self._kept and path not in self._directories:
            here = xattrs.fd_path(self.tree.directory(path))
            status = self._kept[path] = os.stat(here)
            if not self.dresser.privileged and ~status.st_mode & 0o700:
                os.chmod(here, status.st_mode & 0o7777 | 0o700)

    def finish(self) -> None:
        """Give directories what they are to have, once nothing is put into them any more."""
        self._remove_links()
        for path in sorted(self._directories.keys() | self._kept.keys(), reverse=True):
            here = xattrs.fd_path(self.tree.directory(path))
            if path in self._directories:
                self.dresser.dress(here, self._directories[path], follow=True)
                continue
            status = self._kept[path]
            if not self.dresser.privileged:
                os.chmod(here, status.st_mode & 0o7777)
            os.utime(here, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _remove_links(self) -> None:
        if self.made.get(_LINKS) is Kind.DIRECTORY:
            self.tree.forget()
            remove_tree(self.tree.directory(b""), _LINKS)
            for path in [path for path in self._directories if self._is_kept(path)]:
                del self._directories[path]

    def empty(self) -> None:
        """Remove all that is in the tree."""
        self.tree.forget()
        root = self.tree.directory(b"")
        for name in os.listdir(xattrs.fd_path(root)):
            remove_tree(root, name)

    def close(self) -> None:
        """Give up what is held open."""
        self.tree.forget()


def write_all(fd: int, data: bytes, position: int) -> None:
    """Write all of *data* at *position*."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        view = view[written:]
        position += written
