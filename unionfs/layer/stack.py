"""The layers of one mount: opened, checked against each other, locked, numbered.

Everything that can be wrong with the layers is found here, before anything is mounted
and before anything is changed on disk; ``LayerError`` names the option and the path.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from unionfs.errors import LayerError, UsageError
from unionfs.layer import handles
from unionfs.layer.descriptors import Descriptors
from unionfs.layer.opened import (
    READ_LAYER,
    Opened,
    forget_ambiguous_uuids,
    isolate,
    isolate_pair,
)
from unionfs.layer.overlap import refuse_overlaps
from unionfs.layer.override import FORMS, Override
from unionfs.layer.tree import Layer
from unionfs.layer.workdir import WorkDirectory
from unionfs.layer.xattrs import Marks
from unionfs.options import MountOptions

if TYPE_CHECKING:
    from unionfs.layer.handletable import HandleTable

MAX_LOWERS: Final = 500
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
        #: What NFS clients hold handles of, with ``nfs_export=on``.
        self.handle_table: HandleTable | None = None
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
        if options.nfs_export:
            stack.open_handle_table(options)
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
                upper = Opened.open("upperdir", options.upperdir, opening)
                stack.upper = stack._layer(0, upper)
            stack._take_lowers([Opened.open("lowerdir", p, opening) for p in options.lowerdirs])
        return stack

    @classmethod
    def _open(cls, options: MountOptions) -> LayerStack:
        writable = options.upperdir is not None and not options.read_only
        _check_counts(options, writable=writable)
        stack = cls(options)
        with stack._undo_on_error(), contextlib.ExitStack() as opening:
            lowers = [Opened.open("lowerdir", path, opening) for path in options.lowerdirs]
            writers: list[Opened] = []
            if options.upperdir is not None:
                upper = Opened.open("upperdir", options.upperdir, opening)
                if writable:
                    assert options.workdir is not None
                    writers = [upper, Opened.open("workdir", options.workdir, opening)]
                else:
                    lowers.insert(0, upper)
            refuse_overlaps(lowers, writers)
            if writers:
                stack._open_writable(*writers, volatile=options.volatile)
            stack._take_lowers(lowers)
            if options.nfs_export:
                stack._require_handles([*lowers, *writers[:1]])
        return stack

    def _require_handles(self, opened: list[Opened]) -> None:
        """Refuse layers whose objects cannot be found again by a file handle."""
        if self.marks.user:
            raise UsageError("nfs_export=on: only for root, and not with userxattr")
        forget_ambiguous_uuids(opened)
        for one in opened:
            if one.uuid is None:
                reason = "its file system shares its UUID with another layer's"
            elif not one.has_handles():
                reason = "its file system has no file handles that lead to files"
            else:
                continue
            raise LayerError(one.option, one.path, f"nfs_export=on: {reason}")

    def open_handle_table(self, options: MountOptions) -> None:
        """Open, or make, the table of ``nfs_export=on`` in the workdir."""
        # Not everywhere is there SQLite, and most mounts do not need it.
        from unionfs.layer.handletable import HandleTable  # noqa: PLC0415 - see above

        assert options.workdir is not None
        with self._undo_on_error():
            self.handle_table = HandleTable(options.workdir, volatile=options.volatile)
            self._files.callback(self.handle_table.close)

    def _take_lowers(self, lowers: list[Opened]) -> None:
        forget_ambiguous_uuids(lowers)
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
        fd = self._decoder(handles.file_system(origin))
        return None if fd is None else handles.decode(fd, origin)

    def open_handle(self, handle: bytes) -> int:
        """Open the object of any layer that *handle* names, O_PATH; ESTALE when it is gone."""
        uuid = handles.file_system(handle)
        fd: int | None
        if self.work is not None and self.upper is not None and self.upper.uuid == uuid:
            fd = self.work.sync_fd  # of a mount that can be written to
        else:
            fd = self._decoder(uuid)
        if fd is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return handles.open_object(fd, handle)

    def lives(self, handle: bytes) -> bool:
        """Say whether the object that *handle* names is there still, under any name."""
        try:
            fd = self.open_handle(handle)
        except OSError:
            return False
        try:
            return os.fstat(fd).st_nlink > 0
        finally:
            os.close(fd)

    def _decoder(self, uuid: bytes) -> int | None:
        """Return a descriptor on the file system *uuid*, if one of the lowers lies there."""
        fd = self._decoders.get(uuid)
        if fd is None:
            layer = next((layer for layer in self.lowers if layer.uuid == uuid), None)
            if layer is None:
                return None
            fd = self._decoders[uuid] = os.open(b".", READ_LAYER, dir_fd=layer.root_fd)
            self._files.callback(os.close, fd)
        return fd

    @contextlib.contextmanager
    def _undo_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._files.close()
            raise

    def _layer(self, index: int, opened: Opened) -> Layer:
        root_fd = isolate(opened.fd, self._files)
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

    def _open_writable(self, upper: Opened, work: Opened, *, volatile: bool) -> None:
        if upper.stat.st_dev != work.stat.st_dev:
            raise LayerError("workdir", work.path, "not on the file system of upperdir")
        if os.statvfs(upper.fd).f_flag & os.ST_RDONLY:
            raise LayerError("upperdir", upper.path, "its file system is read-only; give `ro`")
        pair = isolate_pair(upper, work, self._files)
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


def _check_counts(options: MountOptions, *, writable: bool) -> None:
    if not options.lowerdirs and (writable or options.upperdir is None):
        raise UsageError("lowerdir= is missing: give at least one directory")
    if len(options.lowerdirs) > MAX_LOWERS:
        reason = f"{len(options.lowerdirs)} layers, at most {MAX_LOWERS} are possible"
        raise LayerError("lowerdir", options.lowerdirs[MAX_LOWERS], reason)
    if writable and options.workdir is None:
        raise UsageError("workdir= is missing: upperdir= needs one on the same file system")
    if options.nfs_export and options.workdir is None:
        raise UsageError("workdir= is missing: nfs_export=on keeps its table there")


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
