"""Trees become archives: a layer of overlayfs, or what one plain tree changes of another."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
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
    """Puts objects of a tree into an archive.

    *holes* says whether files keep theirs. An object with several names is written under the
    first of them, the others become hard links.
    """

    def __init__(self, writer: TarWriter, marks: Marks, *, holes: bool = False) -> None:
        self._writer = writer
        self._marks = marks
        self._holes = holes
        self._linked: dict[tuple[int, int], bytes] = {}

    def add_root(self, root_fd: int) -> None:
        """Put the root of the tree, open as *root_fd*, into the archive."""
        member = member_of(b"", os.fstat(root_fd), Kind.DIRECTORY)
        found = self._xattrs(xattrs.fd_path(root_fd), follow=True)
        self._writer.add(member._replace(xattrs=found))

    def add(self, path: bytes, dirfd: int, status: os.stat_result) -> None:
        """Put *path*, which lies in *dirfd*, into the archive; sockets are left out."""
        kind = kind_of(status)
        if kind is None:
            return
        member = member_of(path, status, kind)
        if kind is not Kind.DIRECTORY and status.st_nlink > 1:
            first = self._linked.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                link = member._replace(kind=Kind.HARD_LINK, target=first, size=0, segments=())
                self._writer.add(link._replace(rdev=0))
                return
        name = split(path)[1]
        if kind is Kind.FILE:
            self._add_file(member, dirfd, name)
            return
        place = xattrs.entry_path(dirfd, name)
        member = member._replace(xattrs=self._xattrs(place, follow=False))
        if kind is Kind.SYMLINK:
            member = member._replace(target=os.readlink(place))
        self._writer.add(member)

    def _add_file(self, member: Member, dirfd: int, name: bytes) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
        try:
            member = member._replace(xattrs=self._xattrs(xattrs.fd_path(fd), follow=True))
            if self._holes:
                member = member._replace(segments=tuple(_data(fd, member.size)))
            self._writer.add(member, _content(fd, member))
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


def _content(fd: int, member: Member) -> Iterator[bytes]:
    for offset, length in member.segments:
        position, end = offset, offset + length
        while position < end:
            data = os.pread(fd, min(end - position, _CHUNK), position)
            if not data:
                raise OSError(errno.ESTALE, "shorter than it was a moment ago", shown(member.path))
            yield data
            position += len(data)


def pack_layer(root_fd: int, packer: Packer, marks: Marks) -> None:
    """Put a directory that is a layer of overlayfs into an archive, by *packer*.

    Whiteouts and opaque directories get the names that archives have for them. Each directory
    is followed by all that is in it (tar(1) gives it its times then), names in the order of
    their bytes. The layer is to be complete: see `is_complete`.
    """
    packer.add_root(root_fd)
    here = xattrs.fd_path(root_fd)
    # The directories that lead to an entry, and what is said of each by its opaque mark.
    parents, opaque = [b""], [marks.opaque(here, follow=True)]
    for entry in walk(here + b"/."):
        del parents[entry.depth + 1 :], opaque[entry.depth + 1 :]
        path = parents[-1] + entry.name
        if whiteouts.is_reserved(entry.name):
            _pack_reserved(parents[-1], entry.name, packer)
            continue
        place = xattrs.entry_path(entry.dirfd, entry.name)
        if _is_whiteout(place, entry.status, marks, marked=opaque[-1] == b"x"):
            packer.hide(path)
            continue
        packer.add(path, entry.dirfd, entry.status)
        if stat.S_ISDIR(entry.status.st_mode):
            parents.append(path + b"/")
            opaque.append(marks.opaque(place))
            if opaque[-1] == b"y":
                packer.make_opaque(path)


def _pack_reserved(parent: bytes, name: bytes, packer: Packer) -> None:
    """Put a name of a layer in AUFS's form into the archive, which has the same; no bookkeeping."""
    if name == whiteouts.OPAQUE_NAME:
        packer.make_opaque(parent.rstrip(b"/"))
    elif hidden := whiteouts.hidden_by(name):
        packer.hide(parent + hidden)


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


def pack_changes(changes: Iterable[tuple[bytes, bool]], root_fd: int, packer: Packer) -> None:
    """Put changed paths of the tree at *root_fd* into an archive.

    Each is told with whether something is there now, and was; a directory before what is in it.
    """
    packer.add_root(root_fd)
    tree = Beneath(root_fd)
    try:
        for path, there in changes:
            if not there:
                packer.hide(path)
            elif (status := tree.lstat(path)) is not None:
                packer.add(path, tree.directory(split(path)[0]), status)
    finally:
        tree.forget()
