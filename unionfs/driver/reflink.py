"""The reflink driver: plain directories that share the extents of their files.

``snapshots/ID/tree`` has all of a snapshot's tree. On btrfs it is a subvolume, and a new one a
snapshot of its parent's, which takes no time and can be taken while the parent is written. On
xfs, and wherever else files can share extents (ioctl_ficlone(2)), it is a copy.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Self, cast

from unionfs.driver import programs, subvolume
from unionfs.driver.api import Capabilities, Info, Kind, Mount, Usage
from unionfs.driver.lifecycle import SnapshotDriver
from unionfs.driver.metadata import Metadata, Snapshot, check_key, check_labels
from unionfs.errors import NotFoundError, UnsupportedError
from unionfs.layer import syscalls, walk

_TREE: Final = "tree"
_MODE: Final = 0o755
#: Fails, unlike ``--archive``, when an extended attribute cannot be kept.
_COPY: Final = (
    *("cp", "--recursive", "--no-dereference", "--no-target-directory", "--reflink=always"),
    "--preserve=mode,ownership,timestamps,links,xattr",
)
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ReflinkDriver(SnapshotDriver):
    """See the module; this one copies trees file by file."""

    name: ClassVar[str] = "reflink"
    capabilities: ClassVar[Capabilities] = Capabilities(needs_root=True)

    @classmethod
    def configure(cls, home: str, metadata: Metadata, options: Mapping[str, str]) -> Self:
        _require_shared_extents(home)
        # It is one driver to its users, whatever the file system is.
        kind = SubvolumeDriver if subvolume.on_btrfs(home) else ReflinkDriver
        return cast("Self", kind(home, metadata))

    def begin(self, directory: str, kind: Kind, parent: Snapshot | None, size: int | None) -> None:
        if kind is Kind.VIEW:
            return
        if parent is None:
            self._empty(directory)
        else:
            self._copy(self.tree(parent), directory)

    def _empty(self, directory: str) -> None:
        tree = os.path.join(directory, _TREE)
        os.mkdir(tree)
        os.chmod(tree, _MODE)  # whatever the umask says

    def _copy(self, source: str, directory: str) -> None:
        programs.run([*_COPY, "--", source, os.path.join(directory, _TREE)])

    def tree(self, snapshot: Snapshot) -> str:
        """Return the directory that has the tree of *snapshot*, active or committed."""
        return os.path.join(self.directory(snapshot), _TREE)

    def tell_mounts(self, chain: Sequence[Snapshot]) -> Sequence[Mount]:
        if chain[0].kind is Kind.VIEW:
            return [Mount("bind", self.tree(chain[1]), ("bind", "ro"))]
        return [Mount("bind", self.tree(chain[0]), ("bind", "rw"))]

    def measure(self, snapshot: Snapshot) -> Usage:
        if snapshot.kind is Kind.VIEW:
            return Usage(0, 0)
        return own_usage(self.tree(snapshot))


class SubvolumeDriver(ReflinkDriver):
    """The same on btrfs: each tree is a subvolume."""

    capabilities: ClassVar[Capabilities] = Capabilities(live_snapshot=True, needs_root=True)

    def _empty(self, directory: str) -> None:
        subvolume.create(directory, _TREE)
        os.chmod(os.path.join(directory, _TREE), _MODE)

    def _copy(self, source: str, directory: str) -> None:
        subvolume.snapshot(source, directory, _TREE, read_only=False)

    def discard(self, directory: str) -> None:
        subvolume.remove(directory, _TREE)
        super().discard(directory)

    def commit(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> Info:
        info = super().commit(name, key, labels=labels)
        # No promise is broken if we are killed before: nobody is told to mount it for writing.
        subvolume.protect(self.tree(self.metadata.find(name)))
        return info

    def capture(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> Info:
        """See `Driver.capture`. *name* is a new subvolume; *key* stays what it is, mounts too."""
        check_key(name)
        check_labels(labels or {})
        found = self._active(key)
        self.metadata.require_free(name)
        with self._new_directory() as directory:
            subvolume.snapshot(self.tree(found), directory, _TREE, read_only=True)
            with self.metadata.write():
                if self._active(key).id != found.id:
                    raise NotFoundError(f"{key}: was replaced meanwhile; try again")
                kept = found.labels if labels is None else labels
                parent = None if not found.parent else self.metadata.find(found.parent)
                made = self.metadata.insert(name, Kind.COMMITTED, parent, kept, None)
                self._put_in_place(directory, made)
        return made.info()

    def measure(self, snapshot: Snapshot) -> Usage:
        # Its inodes are its parent's, until they are changed; nobody can tell which were.
        return super().measure(snapshot)._replace(inodes=0)


def own_usage(tree: str) -> Usage:
    """Return what *tree* takes of the disk, without extents that others have a share in."""
    status = os.lstat(tree)
    size, inodes = status.st_blocks * 512, 1
    linked: set[int] = set()
    for entry in walk.walk(os.fsencode(tree)):
        status = entry.status
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if status.st_ino in linked:
                continue
            linked.add(status.st_ino)
        inodes += 1
        if not stat.S_ISREG(status.st_mode):
            size += status.st_blocks * 512
        elif status.st_blocks:
            size += _own_bytes(entry.dirfd, entry.name)
    return Usage(size, inodes)


def _own_bytes(dirfd: int, name: bytes) -> int:
    fd = os.open(name, _OPEN, dir_fd=dirfd)
    try:
        return syscalls.unshared_bytes(fd)
    finally:
        os.close(fd)


def _require_shared_extents(home: str) -> None:
    """Raise `UnsupportedError` unless files in *home* can share extents."""
    with tempfile.TemporaryFile(dir=home) as one, tempfile.TemporaryFile(dir=home) as other:
        one.write(b"x" * 4096)
        one.flush()
        try:
            syscalls.clone_file(other.fileno(), one.fileno())
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV}:
                raise
            raise UnsupportedError(
                f"{home}: its file system shares no extents between files; choose one on btrfs"
                " or xfs with --root, or --driver overlay"
            ) from error
