"""Volumes as archives: written while they may be in use, and read back whole or not at all.

An archive has the tree as tar(1) would have it, owners, xattrs, ACLs and holes included: no
name means anything but itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final

from unionfs.driver.api import Driver
from unionfs.errors import FailedPreconditionError, NotFoundError
from unionfs.layer import syscalls
from unionfs.layer.apply import Target, apply
from unionfs.layer.apply_attributes import Dresser
from unionfs.layer.archive import Member, shown
from unionfs.layer.beneath import Beneath, split
from unionfs.layer.compression import Source, Unpacked, compressor
from unionfs.layer.pack import TarWriter
from unionfs.layer.pack_tree import Packer
from unionfs.layer.stack import may_use_trusted
from unionfs.layer.tape import Tape
from unionfs.layer.xattrs import Marks
from unionfs.store import volume_tree
from unionfs.store.views import captured
from unionfs.store.volume import LABEL, Volume, check_name
from unionfs.store.volumes import Volumes

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: A directory that others removed or replaced; one on which something else is mounted.
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)

#: Told how many bytes have gone by since it was told last.
Progress = Callable[[int], None]
#: Told what was not as it should be, and is nevertheless done.
Notice = Callable[[str], None]


def backup(
    volumes: Volumes,
    name: str,
    write: Callable[[bytes], object],
    *,
    compression: str,
    progress: Progress,
    notice: Notice,
) -> None:
    """Give *write* an archive of the volume *name*, by ``gzip``, ``zstd`` or ``none``.

    It is of one moment if the volume is not in use, or its driver can capture one that is; else
    *notice* is told. *progress* is told of bytes before they are compressed. Raises
    `NotFoundError`, and what mounting raises.
    """
    press = compressor(compression)

    def put(data: bytes) -> None:
        progress(len(data))
        write(press.compress(data))

    with _reading(volumes, name, notice) as path:
        root_fd = os.open(path, _DIRECTORY)
        try:
            _pack(root_fd, TarWriter(put, acls=True), notice)
        finally:
            os.close(root_fd)
    write(press.flush())


@contextlib.contextmanager
def _reading(volumes: Volumes, name: str, notice: Notice) -> Iterator[str]:
    """Give a directory with the files of the volume *name*, which stays until the end."""
    volume = volumes.find(name)
    if volume.data and volume.base is None:
        driver = volumes.store.driver_called(volume.driver)
        if driver.capabilities.live_snapshot and volumes.uses(volume):
            with captured(volumes, volume) as taken, _viewed(volumes, volume, taken) as path:
                yield path
            return
    held = volumes.hold(name, f"a backup by process {os.getpid()}", os.getpid())
    try:
        begun = volumes.find(name).holds
        others = [use.holder for use in volumes.uses(volume) if use.id != held.id]
        yield held.path
        if others or volumes.find(name).holds != begun:
            who = f"by {others[0]} " if others else ""
            notice(
                f"{name}: was in use {who}while it was read: what changed meanwhile may be of"
                " different moments"
            )
    finally:
        volumes.release(held.id)


@contextlib.contextmanager
def _viewed(volumes: Volumes, volume: Volume, taken: str) -> Iterator[str]:
    """Give a directory with the files of the committed snapshot *taken* of *volume*."""
    driver = volumes.store.driver_called(volume.driver)
    with volumes.naming(volume) as key:
        driver.view(key, taken, labels={LABEL: volume.name})
        try:
            with volume_tree.shown(volumes.store, driver, key) as path:
                yield path
        finally:
            driver.remove(key)


def _pack(root_fd: int, writer: TarWriter, notice: Notice) -> None:
    def cut(path: bytes) -> None:
        notice(f"{shown(path)}: became shorter while it was read; zeros take the place")

    marks = Marks(user=not may_use_trusted())
    packer = Packer(writer, marks, holes=True, cut=cut)
    packer.add_root(root_fd)
    for path, dirfd, status in _walk(root_fd):
        # Who uses the volume removes what he likes: tar(1) tells of it, too.
        try:
            packer.add(path, dirfd, status)
        except FileNotFoundError:
            notice(f"{shown(path)}: removed before it was read")
    writer.finish()


def _walk(root_fd: int) -> Iterator[tuple[bytes, int, os.stat_result]]:
    """Yield all that is in a tree which others may change: path, its directory, attributes.

    What is in a directory follows it at once: tar(1) gives directories their times by that.
    """
    tree = Beneath(root_fd)
    pending = [(b"", _names(tree, b""))]
    try:
        while pending:
            directory, names = pending[-1]
            if not names:
                pending.pop()
                continue
            name = names.pop()
            path = directory + b"/" + name if directory else name
            try:
                dirfd = tree.directory(directory)
                status = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                raise
            yield path, dirfd, status
            if stat.S_ISDIR(status.st_mode):
                pending.append((path, _names(tree, path)))
    finally:
        tree.forget()


def _names(tree: Beneath, directory: bytes) -> list[bytes]:
    """Return the names in *directory* now, the first one last; none of another mount."""
    try:
        fd = os.open(b".", _DIRECTORY, dir_fd=tree.directory(directory))
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise
    try:
        return sorted((os.fsencode(name) for name in os.listdir(fd)), reverse=True)
    finally:
        os.close(fd)


class _FreshTree(Target):
    """An empty tree of its own, in which names mean nothing but themselves."""

    def put(self, member: Member, tape: Tape) -> None:
        """See `Target.put`."""
        if member.path in self.made:
            self._put_again(member)
            return
        name = split(member.path)[1]
        self._make(member, tape, self.parent(member.path), name, stays=False)
        self.made[member.path] = member.kind

    def hide(self, path: bytes) -> None:
        """See `Target.hide`: there are no whiteouts."""

    def make_opaque(self, path: bytes) -> None:
        """See `Target.make_opaque`: likewise."""

    def clear(self, path: bytes, *, directory: bool) -> bool:  # noqa: ARG002 - see above
        """See `Target.clear`: nothing is there, of whatever kind."""
        return False

    def made_directory(self, path: bytes) -> None:
        """See `Target.made_directory`."""

    def _remove_links(self) -> None:
        """AUFS's names are names, too."""


def restore(
    volumes: Volumes, name: str, source: Source, *, progress: Progress, notice: Notice
) -> Volume:
    """Let the volume *name* have the files of the archive that *source* is, and no others.

    It is made if there is none. All is read into a new snapshot first, which then takes the
    place of the old one: whatever goes wrong, the volume is as it was.

    Raises `ArchiveError` for an archive that is broken or refused, `FailedPreconditionError`
    while the volume is in use, or for one whose files are not the store's, ``OSError``.
    """
    check_name(name)
    old: Volume | None = None
    with contextlib.suppress(NotFoundError):
        old = volumes.find(name)
        _require_replaceable(volumes, old)
    volume = old or Volume(name, volumes.store.driver.name, {}, {}, time.time_ns(), "", 0)
    with volumes.making(volume) as key:
        driver = volumes.store.driver_called(volume.driver)
        _fill(volumes, driver, key, source, progress, notice)
        made = volume._replace(data=key)
        if old is None:
            volumes.adopt(made)
        else:
            volumes.replace(old, key)
    return made


def _require_replaceable(volumes: Volumes, volume: Volume) -> None:
    if not volume.data or volume.base is not None:
        raise FailedPreconditionError(
            f"{volume.name}: its files are not the store's alone; restore into a new volume"
        )
    volumes.require_unused(volume)


def _fill(
    volumes: Volumes,
    driver: Driver,
    key: str,
    source: Source,
    progress: Progress,
    notice: Notice,
) -> None:
    dresser = Dresser(Marks(user=not may_use_trusted()), privileged=os.geteuid() == 0)
    with volume_tree.shown(volumes.store, driver, key) as path:
        root_fd = os.open(path, _DIRECTORY)
        try:
            apply(Tape(Unpacked(source), progress=progress), _FreshTree(root_fd, dresser))
            # Before the old files go, the new ones are on the disk.
            syscalls.syncfs(root_fd)
        finally:
            os.close(root_fd)
    if dresser.squashed:
        notice(f"{dresser.squashed} files are of other owners, and here yours: you are not root")
    for dropped in sorted(dresser.dropped):
        notice(f"attributes {shown(dropped)} are left out: you are not root")
