"""The overlay driver: a directory for each layer, stacked when it is mounted.

``snapshots/ID/fs`` is what the snapshot changes of its parent, in overlayfs's form; an active
one has ``snapshots/ID/work`` beside it. Either mounter takes them: this union (the default),
or the kernel's overlayfs with ``mounter=kernel``, the same store under both.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, Self

from unionfs import optstring
from unionfs.driver.api import UNION, Capabilities, Kind, Mount, Usage
from unionfs.driver.hardlinks import has_loose_names, link_loose_names
from unionfs.driver.lifecycle import SnapshotDriver
from unionfs.driver.metadata import Metadata, Snapshot
from unionfs.driver.usage import disk_usage
from unionfs.errors import FailedPreconditionError, UnsupportedError, UsageError
from unionfs.layer import syscalls
from unionfs.layer.attributes import copy_attributes
from unionfs.layer.stack import MAX_LOWERS, LayerStack, may_use_trusted
from unionfs.layer.walk import remove_tree
from unionfs.layer.xattrs import Marks
from unionfs.options import MountOptions

if TYPE_CHECKING:
    from unionfs.union.changes import Change

#: What the kernel's overlayfs must be told to do as this union always does.
_KERNEL_OPTIONS: Final = ("redirect_dir=on", "index=on", "xino=on")
_MOUNTERS: Final = ("union", "kernel")


class OverlayDriver(SnapshotDriver):
    """See the module."""

    name: ClassVar[str] = "overlay"
    capabilities: ClassVar[Capabilities] = Capabilities(diff=True)
    options: ClassVar[Mapping[str, str]] = {
        "mounter": "union (the default) or kernel: who mounts the layers",
        "nfs_export": "on or off (the default): file handles outlive the mount",
    }

    def __init__(self, home: str, metadata: Metadata, *, mounter: str, exports: bool) -> None:
        super().__init__(home, metadata)
        self._mounter = mounter
        self._exports = exports
        self._marks = Marks(user=not may_use_trusted())

    @classmethod
    def configure(cls, home: str, metadata: Metadata, options: Mapping[str, str]) -> Self:
        mounter = options.get("mounter", _MOUNTERS[0])
        if mounter not in _MOUNTERS:
            raise UsageError(f"mounter={mounter}: it is {' or '.join(_MOUNTERS)}")
        if mounter == "kernel" and os.geteuid() != 0:
            raise UnsupportedError("mounter=kernel: needs root; mounter=union does not")
        export = options.get("nfs_export", "off")
        if export not in ("on", "off"):
            raise UsageError(f"nfs_export={export}: it is on or off")
        _require_marks(home)
        return cls(home, metadata, mounter=mounter, exports=export == "on")

    def begin(self, directory: str, kind: Kind, parent: Snapshot | None, size: int | None) -> None:
        if kind is Kind.VIEW:
            return
        root = os.path.join(directory, "fs")
        os.mkdir(root, 0o755)
        os.chmod(root, 0o755)  # noqa: S103 - as promised, whatever the umask says
        os.mkdir(os.path.join(directory, "work"), 0o700)
        if parent is not None:
            below = os.fsencode(self.layer(parent))
            copy_attributes(below, os.fsencode(root), os.lstat(below), self._marks)

    def layer(self, snapshot: Snapshot) -> str:
        """Return the directory with what *snapshot*, active or committed, changes."""
        return os.path.join(self.directory(snapshot), "fs")

    def layers(self, key: str) -> list[str]:
        """Return the directories that show *key*, topmost first. Raises `NotFoundError`."""
        chain = self.metadata.chain(self.metadata.find(key))
        return [self.layer(one) for one in chain if one.kind is not Kind.VIEW]

    def tell_mounts(self, chain: Sequence[Snapshot]) -> Sequence[Mount]:
        snapshot, lowers = chain[0], chain[1:]
        if len(lowers) > MAX_LOWERS:
            raise FailedPreconditionError(
                f"{snapshot.key}: on {len(lowers)} layers, and {MAX_LOWERS} can be mounted"
            )
        if snapshot.kind is Kind.ACTIVE and not lowers:
            return [Mount("bind", self.layer(snapshot), ("bind", "rw"))]
        if snapshot.kind is Kind.VIEW and len(lowers) == 1 and self._mounter == "kernel":
            # It makes no overlay of one directory.
            return [Mount("bind", self.layer(lowers[0]), ("bind", "ro"))]
        union = self._union(chain)
        if self._mounter == "kernel":
            return [Mount("overlay", "overlay", (*union.options, *_KERNEL_OPTIONS))]
        return [union]

    def _union(self, chain: Sequence[Snapshot]) -> Mount:
        snapshot, *lowers = chain
        below = ":".join(optstring.escape(self.layer(one), also=":") for one in lowers)
        options = [f"lowerdir={below}"]
        if snapshot.kind is Kind.ACTIVE:
            upper, work = self.layer(snapshot), self._work(snapshot)
            options += [f"upperdir={optstring.escape(upper)}", f"workdir={optstring.escape(work)}"]
            if self._exports:
                options.append("nfs_export=on")
        return Mount(UNION, "overlay", tuple(options))

    def _work(self, snapshot: Snapshot) -> str:
        return os.path.join(self.directory(snapshot), "work")

    def seal(self, snapshot: Snapshot) -> None:
        work = self._work(snapshot)
        if has_loose_names(work, self._marks):
            from unionfs.driver.attach import attach, detach  # noqa: PLC0415 - few layers come here

            union = self._union(self.metadata.chain(snapshot))
            link_loose_names(self.layer(snapshot), lambda place: attach([union], place), detach)
        # Its index counts as one more name of what the layer has. Nothing needs it any more; but
        # the directory itself stays: whoever is killed here leaves what can be mounted.
        for name in os.listdir(work):
            remove_tree(syscalls.AT_FDCWD, os.fsencode(os.path.join(work, name)))
        super().seal(snapshot)

    def changes(self, key: str) -> Iterator[Change]:
        from unionfs.union.changes import changes  # noqa: PLC0415 - for this verb alone

        layers = [os.fsencode(layer) for layer in self.layers(key)]
        if self.stat(key).kind is Kind.VIEW:
            return  # it changes nothing
        options = MountOptions(upperdir=layers[0], lowerdirs=tuple(layers[1:]))
        with contextlib.closing(LayerStack.inspect(options)) as stack:
            yield from changes(stack)

    def measure(self, snapshot: Snapshot) -> Usage:
        if snapshot.kind is Kind.VIEW:
            return Usage(0, 0)
        return disk_usage(self.layer(snapshot))


def _require_marks(home: str) -> None:
    """Raise `UnsupportedError` where the marks of layers cannot be kept."""
    marks = Marks(user=not may_use_trusted())
    probe = os.fsencode(os.path.join(home, "snapshots"))
    try:
        marks.write(probe, b"probe", b"y")
        marks.remove(probe, b"probe")
    except OSError as error:
        raise UnsupportedError(
            f"{home}: {error.strerror}: its file system keeps no extended attributes for the"
            " marks of layers; choose a local one (ext4, xfs, btrfs) with --root"
        ) from error
