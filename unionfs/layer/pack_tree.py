"""Trees become archives: a layer of overlayfs, or what one plain tree changes of another."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from unionfs.layer import whiteouts, xattrs
from unionfs.layer.archive import Kind, Member, shown
from unionfs.layer.beneath import Beneath, split
from unionfs.layer.pack import TarWriter, kind_of, member_of
from unionfs.layer.walk import walk
from unionfs.layer.xattrs import Marks

_CHUNK: Final = 1 << 20
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT: Final = Member(b"", Kind.FILE, 0, 0, 0, 0)
#: What belongs to one machine and not to a tree.
_LEFT_OUT: Final = (b"security.selinux", b"system.nfs4_acl")
#: Marks of what is somewhere else, by the type of those that have them.
_ELSEWHERE: Final = {stat.S_IFDIR: xattrs.REDIRECT, stat.S_IFREG: xattrs.METACOPY}


class Packer:
    """Puts objects of the tree at *root_fd* into an archive.

    *holes* says whether files keep theirs. An object with several names is written under the
    first of them, the others become hard links. A file that others make shorter while it is
    read gets zeros for what is missing, and *cut* is told of it; without *cut* that is an error.
    """

    def __init__(
        self,
        root_fd: int,
        writer: TarWriter,
        marks: Marks,
        *,
        holes: bool = False,
        cut: Callable[[bytes], None] | None = None,
    ) -> None:
        self._tree = Beneath(root_fd)
        self._writer = writer
        self._marks = marks
        self._holes = holes
        self._cut = cut
        self._linked: dict[tuple[int, int], bytes] = {}

    def add(self, path: bytes, status: os.stat_result) -> None:
        """Put *path*, whose attributes are *status*, into the archive; sockets are left out.

        Raises ENOENT for what is gone by now: then nothing of it is in the archive.
        """
        kind = kind_of(status)
        if kind is None:
            return
        member = member_of(path, status, kind)
        place = (status.st_dev, status.st_ino)
        if (first := self._linked.get(place)) is not None:
            link = member._replace(kind=Kind.HARD_LINK, target=first, size=0, segments=())
            self._writer.add(link._replace(rdev=0))
            return
        self._add_object(member)
        if kind is not Kind.DIRECTORY and status.st_nlink > 1:
            self._linked[place] = path

    def _add_object(self, member: Member) -> None:
        path, kind = member.path, member.kind
        parent, name = split(path)
        if kind is Kind.FILE:
            self._add_file(member, parent, name)
            return
        if path:
            here = xattrs.entry_path(self._tree.directory(parent), name)
        else:
            here = xattrs.fd_path(self._tree.directory(b""))
        member = member._replace(xattrs=self._xattrs(here, follow=not path))
        if kind is Kind.SYMLINK:
            member = member._replace(target=os.readlink(here))
        self._writer.add(member)

    def _add_file(self, member: Member, parent: bytes, name: bytes) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=self._tree.directory(parent))
        try:
            member = member._replace(xattrs=self._xattrs(xattrs.fd_path(fd), follow=True))
            if self._holes:
                member = member._replace(segments=tuple(_data(fd, member.size)))
            self._writer.add(member, _content(fd, member, self._cut))
        finally:
            os.close(fd)

    def hide(self, path: bytes) -> None:
        """Put a whiteout of *path* into the archive."""
        parent, name = split(path)
        hiding = whiteouts.PREFIX + name
        self._writer.add(_WHITEOUT._replace(path=parent + b"/" + hiding if parent else hiding))

    def make_opaque(self, path: bytes) -> None:
        """Let the archive hide all that is below the directory *path*."""
        name = whiteouts.OPAQUE_NAME
        self._writer.add(_WHITEOUT._replace(path=path + b"/" + name if path else name))

    def _xattrs(self, path: bytes, *, follow: bool) -> dict[bytes, bytes]:
        found = {}
        for name in sorted(xattrs.names(path, follow=follow)):
            # What a nested union has marked is in this one an escaped mark: no archive has it.
            if self._marks.shown(name) != name or name in _LEFT_OUT:
                continue
            value = xattrs.read(path, name, follow=follow)
            if value is not None:
                found[name] = value
        return found

    def close(self) -> None:
        """Give up what is held open."""
        self._tree.forget()


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each part of a file that is no hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end - start


def _content(
    fd: int, member: Member, cut: Callable[[bytes], None] | None = None
) -> Iterator[bytes]:
    for offset, length in member.segments:
        position, end = offset, offset + length
        while position < end:
            size = min(end - position, _CHUNK)
            data = os.pread(fd, size, position)
            if not data:
                if cut is None:
                    raise OSError(
                        errno.ESTALE, "shorter than it was a moment ago", shown(member.path)
                    )
                cut(member.path)
                data = bytes(size)
            yield data
            position += len(data)


def pack_layer(root_fd: int, packer: Packer, marks: Marks) -> None:
    """Put a directory that is a layer of overlayfs into an archive, by *packer*.

    Whiteouts and opaque directories get the names that archives have for them. Directories
    come before what is in them, names of one directory in the order of their bytes.
    The layer is to be complete: see `is_complete`.
    """
    packer.add(b"", os.fstat(root_fd))
    _pack_directory(root_fd, b"", packer, marks)


def _pack_directory(fd: int, path: bytes, packer: Packer, marks: Marks) -> None:
    pending = [path]
    tree = Beneath(fd)
    try:
        while pending:
            directory = pending.pop()
            inner = os.open(b".", _DIRECTORY, dir_fd=tree.directory(directory))
            try:
                below = _pack_names(inner, directory, packer, marks)
            finally:
                os.close(inner)
            pending += reversed(below)
    finally:
        tree.forget()


def _pack_names(fd: int, path: bytes, packer: Packer, marks: Marks) -> list[bytes]:
    """Put what is in one directory into the archive; return the directories among it."""
    here = xattrs.fd_path(fd)
    opaque = marks.opaque(here, follow=True)
    if opaque == b"y" and path:
        packer.make_opaque(path)
    directories = []
    for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
        inner = path + b"/" + name if path else name
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        place = xattrs.entry_path(fd, name)
        if whiteouts.is_reserved(name):
            if name == whiteouts.OPAQUE_NAME:
                packer.make_opaque(path)
            elif hidden := whiteouts.hidden_by(name):
                packer.hide(path + b"/" + hidden if path else hidden)
            continue
        if _is_whiteout(place, status, marks, marked=opaque == b"x"):
            packer.hide(inner)
            continue
        packer.add(inner, status)
        if stat.S_ISDIR(status.st_mode):
            directories.append(inner)
    return directories


def _is_whiteout(place: bytes, status: os.stat_result, marks: Marks, *, marked: bool) -> bool:
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    if not (marked and stat.S_ISREG(status.st_mode) and status.st_size == 0):
        return False
    return marks.read(place, xattrs.WHITEOUT) is not None


def is_complete(root_fd: int, marks: Marks) -> bool:
    """Say whether all that a layer shows is in it.

    It is not where a directory was renamed (``redirect``), or a file has its data elsewhere
    (``metacopy``).
    """
    for entry in walk(xattrs.fd_path(root_fd) + b"/."):
        mark = _ELSEWHERE.get(stat.S_IFMT(entry.status.st_mode))
        if mark is not None:
            place = xattrs.entry_path(entry.dirfd, entry.name)
            if marks.read(place, mark) is not None:
                return False
    return True


def pack_changes(changes: Iterable[tuple[bytes, os.stat_result | None]], packer: Packer) -> None:
    """Put *changes* into an archive: what is at each path now, ``None`` where something was."""
    for path, status in changes:
        if status is None:
            packer.hide(path)
        else:
            packer.add(path, status)
