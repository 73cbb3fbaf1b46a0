"""The layers of one mount: opened, checked against each other, locked, numbered.

Everything that can be wrong with the layers is found here, before anything is mounted
and before anything is changed on disk; ``LayerError`` names the option and the path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Final

from unionfs.errors import LayerError, UsageError
from unionfs.layer import handles, syscalls
from unionfs.layer.descriptors import Descriptors
from unionfs.layer.overlap import refuse_overlaps
from unionfs.layer.override import FORMS, Override
from unionfs.layer.tree import Layer
from unionfs.layer.workdir import WorkDirectory
from unionfs.layer.xattrs import Marks
from unionfs.options import MountOptions

MAX_LOWERS: Final = 500
#: Seconds to wait for a lock: umount(2) returns a moment before the daemon has ended.
_LOCK_PATIENCE: Final = 1.0
_OPEN_LAYER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_READ_LAYER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CAP_SYS_ADMIN: Final = 21


class LayerStack:
    """The layers of a mount, topmost first, and the directory that changes are made in.

    ``upper`` and ``work`` are ``None`` in a read-only union, in which an upper directory
    is just the topmost of ``lowers``.
    """

    def __init__(self, options: MountOptions) -> None:
        self._files = contextlib.ExitStack()
        self.descriptors = Descriptors()
        self._files.callback(self.descriptors.close)
        self.marks = Marks(user=options.userxattr or not may_use_trusted())
        #: Where the upper layer keeps owners, if it does not tell by itself.
        self._form = FORMS.get(options.xattr_permissions)
        self._maps_ids = bool(options.uidmapping or options.gidmapping)
        #: Whether an engine has mounted lowers so that the kernel maps their owners already.
        self.idmapped = False
        self.upper: Layer | None = None
        self.lowers: tuple[Layer, ...] = ()
        self.work: WorkDirectory | None = None
        #: A readable descriptor for each file system of the lowers, to decode handles on.
        self._decoders: dict[bytes, int] = {}

    @classmethod
    def open(cls, options: MountOptions) -> LayerStack:
        """Open, check and lock the layers that *options* name.

        Raises ``LayerError`` for a layer that cannot be used and ``UsageError`` for
        options that make no stack; nothing is changed on disk then.
        """
        stack = cls._open(options)
        stack.prepare()
        return stack

    @classmethod
    def check(cls, options: MountOptions) -> None:
        """Raise what ``open`` would raise, and leave everything as it is."""
        cls._open(options).close()

    @classmethod
    def inspect(cls, options: MountOptions) -> LayerStack:
        """Open the layers for reading only, beside a live mount of them or without one.

        An upper directory is ``upper``, so that its changes can be told from the rest.
        """
        stack = cls(options)
        with stack._undo_on_error(), contextlib.ExitStack() as opening:
            if options.upperdir is not None:
                upper = _Opened.open("upperdir", options.upperdir, opening)
                stack.upper = stack._layer(0, upper)
            stack._take_lowers([_Opened.open("lowerdir", p, opening) for p in options.lowerdirs])
        return stack

    @classmethod
    def _open(cls, options: MountOptions) -> LayerStack:
        writable = options.upperdir is not None and not options.read_only
        _check_counts(options, writable=writable)
        stack = cls(options)
        with stack._undo_on_error(), contextlib.ExitStack() as opening:
            lowers = [_Opened.open("lowerdir", path, opening) for path in options.lowerdirs]
            writers: list[_Opened] = []
            if options.upperdir is not None:
                upper = _Opened.open("upperdir", options.upperdir, opening)
                if writable:
                    assert options.workdir is not None
                    writers = [upper, _Opened.open("workdir", options.workdir, opening)]
                else:
                    lowers.insert(0, upper)
            refuse_overlaps(lowers, writers)
            if writers:
                stack._open_writable(*writers, volatile=options.volatile)
            stack._take_lowers(lowers)
        return stack

    def _take_lowers(self, lowers: list[_Opened]) -> None:
        _forget_ambiguous_uuids(lowers)
        # In another user namespace nobody can make such mounts, and one that is there has
        # another purpose (systemd-homed(8), say).
        if self._maps_ids and is_first_namespace():
            self.idmapped = not idmapped_mounts().isdisjoint(one.mount_id for one in lowers)
        self.lowers = tuple(self._layer(i, one) for i, one in enumerate(lowers, start=1))

    def prepare(self) -> None:
        """Make the work directory ready for changes, without what a killed daemon left there."""
        if self.work is None:
            return
        with self._undo_on_error():
            try:
                self.work.prepare()
            except OSError as error:
                reason = f"{os.fsdecode(error.filename or b'')}: {error.strerror}"
                raise LayerError("workdir", self.work.path, reason) from error
            self._begin_override()

    def _begin_override(self) -> None:
        assert self.upper is not None
        if self.upper.override is None:
            return
        try:
            self.upper.override.begin(self.upper.root_fd)
        except OSError as error:
            name = os.fsdecode(self.upper.override.name)
            reason = f"cannot keep owners in {name}: {error.strerror}"
            raise LayerError("upperdir", self.upper.path, reason) from error

    def decode(self, origin: bytes) -> os.stat_result | None:
        """Return the attributes of the lower object that *origin* names, ``None`` without one."""
        uuid = handles.file_system(origin)
        fd = self._decoders.get(uuid)
        if fd is None:
            layer = next((layer for layer in self.lowers if layer.uuid == uuid), None)
            if layer is None:
                return None
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            fd = self._decoders[uuid] = os.open(b".", flags, dir_fd=layer.root_fd)
            self._files.callback(os.close, fd)
        return handles.decode(fd, origin)

    @contextlib.contextmanager
    def _undo_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._files.close()
            raise

    def _layer(self, index: int, opened: _Opened) -> Layer:
        root_fd = _isolate(opened.fd, self._files)
        return Layer(
            index,
            opened.path,
            self._kept(opened.fd) if root_fd is None else root_fd,
            isolated=root_fd is not None,
            marks=self.marks,
            uuid=opened.uuid,
            descriptors=self.descriptors,
            override=Override.of_layer(opened.fd),
        )

    def _open_writable(self, upper: _Opened, work: _Opened, *, volatile: bool) -> None:
        if upper.stat.st_dev != work.stat.st_dev:
            raise LayerError("workdir", work.path, "not on the file system of upperdir")
        if os.statvfs(upper.fd).f_flag & os.ST_RDONLY:
            raise LayerError("upperdir", upper.path, "its file system is read-only; give `ro`")
        pair = _isolate_pair(upper, work, self._files)
        upper_fd, work_fd = pair or (self._kept(upper.fd), self._kept(work.fd))
        for one, fd in ((upper, upper_fd), (work, work_fd)):
            one.lock(fd, self._files)
        self.upper = Layer(
            0,
            upper.path,
            upper_fd,
            isolated=pair is not None,
            marks=self.marks,
            uuid=upper.uuid,
            descriptors=self.descriptors,
            override=Override.of_layer(upper.fd, self._form),
        )
        self.work = WorkDirectory(work.path, work_fd, self.marks, volatile=volatile)
        self.work.check(upper)
        self._files.callback(self.work.close)

    def _kept(self, fd: int) -> int:
        """Return a copy of *fd* that lives as long as this stack."""
        copy = os.dup(fd)
        self._files.callback(os.close, copy)
        return copy

    @property
    def writable(self) -> bool:
        """Whether there is an upper layer that changes go to."""
        return self.work is not None

    def close(self) -> None:
        """Empty ``work/``, give up the locks and close every descriptor."""
        try:
            if self.work is not None:
                self.work.clean()
        finally:
            self._files.close()


class _Opened:
    """A directory given as an option, open by path as its caller meant it."""

    def __init__(self, option: str, path: bytes, fd: int, uuid: bytes | None) -> None:
        self.option = option
        self.path = path
        self.fd = fd
        self.stat = os.fstat(fd)
        self.uuid = uuid

    @property
    def mount_id(self) -> bytes:
        """The number of the mount it lies on, as mountinfo has it."""
        with open(f"/proc/self/fdinfo/{self.fd}", "rb") as file:
            return next(line.split()[1] for line in file if line.startswith(b"mnt_id:"))

    @classmethod
    def open(cls, option: str, path: bytes, files: contextlib.ExitStack) -> _Opened:
        """Open *path*, resolved by the kernel from the current directory, until *files* close."""
        try:
            fd = os.open(path, _OPEN_LAYER)
            files.callback(os.close, fd)
            readable = os.open(b".", _READ_LAYER, dir_fd=fd)
        except OSError as error:
            raise LayerError(option, path, os.strerror(error.errno or errno.EIO)) from error
        try:
            return cls(option, path, fd, syscalls.file_system_uuid(readable))
        finally:
            os.close(readable)

    def lock(self, fd: int, files: contextlib.ExitStack) -> None:
        """Take the directory for this mount alone, as a writer, until *files* close.

        *fd* is the directory in the private mount: one on the original mount would keep
        its owner from unmounting that.
        """
        lock = os.open(b".", _READ_LAYER, dir_fd=fd)
        files.callback(os.close, lock)
        deadline = time.monotonic() + _LOCK_PATIENCE
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                reason = "in use by another mount; unmount that one, or give another directory"
                raise LayerError(self.option, self.path, reason)
            time.sleep(0.02)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _forget_ambiguous_uuids(lowers: list[_Opened]) -> None:
    """Do without the UUIDs that two file systems share: a handle would not tell them apart.

    File systems without an identity share the null one, copies of an image their own.
    """
    devices: dict[bytes | None, set[int]] = {}
    for one in lowers:
        devices.setdefault(one.uuid, set()).add(one.stat.st_dev)
    for one in lowers:
        if len(devices[one.uuid]) > 1:
            one.uuid = None


def _check_counts(options: MountOptions, *, writable: bool) -> None:
    if not options.lowerdirs and (writable or options.upperdir is None):
        raise UsageError("lowerdir= is missing: give at least one directory")
    if len(options.lowerdirs) > MAX_LOWERS:
        reason = f"{len(options.lowerdirs)} layers, at most {MAX_LOWERS} are possible"
        raise LayerError("lowerdir", options.lowerdirs[MAX_LOWERS], reason)
    if writable and options.workdir is None:
        raise UsageError("workdir= is missing: upperdir= needs one on the same file system")


def _isolate(fd: int, files: contextlib.ExitStack) -> int | None:
    """Return a private, read-only copy of the mount at *fd*; ``None`` without privilege."""
    try:
        clone = syscalls.open_tree_clone(fd, b"")
    except OSError:
        return None
    files.callback(os.close, clone)
    try:
        syscalls.mount_setattr(clone, syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOATIME)
    except OSError:
        # In a user namespace the access time mode may be locked.
        with contextlib.suppress(OSError):
            syscalls.mount_setattr(clone, syscalls.MOUNT_ATTR_RDONLY)
    return clone


def _isolate_pair(
    upper: _Opened, work: _Opened, files: contextlib.ExitStack
) -> tuple[int, int] | None:
    """Return upper and work in one private mount: a rename must not cross mounts."""
    upper_path, work_path = (os.readlink(b"/proc/self/fd/%d" % one.fd) for one in (upper, work))
    common = os.path.commonpath((upper_path, work_path))
    try:
        clone = syscalls.open_tree_clone(syscalls.AT_FDCWD, os.fsencode(common))
        files.callback(os.close, clone)
        found = []
        for one, path in ((upper, upper_path), (work, work_path)):
            fd = os.open(os.path.relpath(path, common), _OPEN_LAYER, dir_fd=clone)
            files.callback(os.close, fd)
            if not os.path.samestat(os.fstat(fd), one.stat):
                return None
            found.append(fd)
    except OSError:
        return None
    return found[0], found[1]


def is_first_namespace() -> bool:
    """Say whether our user namespace is the first, in which ids are what they are."""
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() == [b"0", b"0", b"4294967295"]


def idmapped_mounts() -> frozenset[bytes]:
    """Return the numbers of the mounts whose owners the kernel maps (mount_setattr(2))."""
    with open("/proc/self/mountinfo", "rb") as file:
        fields = [line.split(b" ", 6) for line in file]
    return frozenset(one[0] for one in fields if b"idmapped" in one[5].split(b","))


def may_use_trusted() -> bool:
    """Say whether ``trusted.*`` attributes are ours: CAP_SYS_ADMIN of the first namespace."""
    if not is_first_namespace():
        return False
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False
