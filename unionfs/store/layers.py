"""Snapshots and archives of layers: one becomes the other, with every driver.

What a driver tells to mount says where its files are. If that is an overlay, the upper
directory is the layer itself, and an archive is applied to it; so is the topmost lower one of
a view. Else the tree is mounted, and what is hidden in a layer is removed from it.

The framing of an applied archive is kept in ``ROOT/framing/DRIVER``, for as long as its snapshot.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from unionfs.driver.api import STACKED, Mount, plain_directory
from unionfs.driver.attach import attach, detach
from unionfs.errors import FaultyError, StoreError
from unionfs.layer.apply import Target, apply
from unionfs.layer.apply_attributes import Dresser
from unionfs.layer.apply_overlay import OverlayTarget
from unionfs.layer.apply_plain import PlainTarget
from unionfs.layer.framing import FramingWriter, rebuild
from unionfs.layer.pack import TarWriter
from unionfs.layer.pack_tree import Packer, is_complete, pack_changes, pack_layer
from unionfs.layer.stack import may_use_trusted
from unionfs.layer.tape import Tape
from unionfs.layer.xattrs import Marks
from unionfs.optwords import parse_options
from unionfs.store.below import merged
from unionfs.store.compare import shown, snapshot_changes
from unionfs.store.store import Store
from unionfs.union.changes import DELETED

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class _Layers(NamedTuple):
    """The directories of an overlay."""

    lowerdirs: tuple[bytes, ...]
    upperdir: bytes | None


def _layers(mounts: Sequence[Mount]) -> _Layers | None:
    """Return the layers that *mounts* stack, ``None`` where these are no overlay."""
    if len(mounts) != 1:
        return None
    (one,) = mounts
    if one.type in STACKED:
        options = parse_options([",".join(one.options)], tolerant=True).options
        return _Layers(options.lowerdirs, options.upperdir)
    return None


def marks() -> Marks:
    """Return the marks that this user's layers have."""
    return Marks(user=not may_use_trusted())


def fill(store: Store, key: str, tape: Tape, *, vouched: bool) -> Dresser:
    """Apply the archive on *tape* to the new, active snapshot *key*.

    Return what had to be left out. Raises as `unionfs.layer.apply.apply`.
    """
    dresser = Dresser(marks(), privileged=os.geteuid() == 0)
    with _target(store, key, dresser) as target:
        try:
            apply(tape, target, vouched=vouched)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                # Without room the driver cannot even write down that this snapshot is to go.
                target.empty()
            raise
    return dresser


@contextlib.contextmanager
def _target(store: Store, key: str, dresser: Dresser) -> Iterator[Target]:
    mounts = store.driver.mounts(key)
    with contextlib.ExitStack() as stack:
        if (layers := _layers(mounts)) is not None and layers.upperdir is not None:
            fd = _opened(layers.upperdir, stack)
            below = stack.enter_context(merged(layers.lowerdirs))
            yield OverlayTarget(fd, dresser, marks(), below)
            return
        directory = plain_directory(mounts)
        if directory is None:
            directory = stack.enter_context(_mounted(store, key, mounts))
        yield PlainTarget(_opened(os.fsencode(directory), stack), dresser)


def _opened(path: bytes, stack: contextlib.ExitStack) -> int:
    fd = os.open(path, _OPEN)
    stack.callback(os.close, fd)
    return fd


@contextlib.contextmanager
def _mounted(store: Store, key: str, mounts: Sequence[Mount]) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        stack.callback(store.release_unused, key)
        target = stack.enter_context(tempfile.TemporaryDirectory(prefix="unionfs-"))
        attach(mounts, target)
        stack.callback(detach, target)
        yield target


@contextlib.contextmanager
def viewed(store: Store, name: str) -> Iterator[Sequence[Mount]]:
    """Tell what mounts show the committed snapshot *name*, which stays until the end."""
    with store.viewed(name) as key:
        yield store.driver.mounts(key)


class Framings:
    """The framings of one driver's snapshots."""

    def __init__(self, store: Store) -> None:
        self._directory = os.path.join(store.root, "framing", store.driver.name)

    def path(self, name: str) -> str:
        """Return where the framing of the snapshot *name* is, or would be."""
        return os.path.join(self._directory, hashlib.sha256(name.encode()).hexdigest())

    @contextlib.contextmanager
    def new(self, name: str) -> Iterator[FramingWriter]:
        """Keep what is written in the block as the framing of *name*, if it comes to its end."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        path = self.path(name)
        try:
            with open(f"{path}.new", "wb") as file:
                writer = FramingWriter(file)
                yield writer
                writer.finish()
                file.flush()
                os.fsync(file.fileno())
            os.rename(f"{path}.new", path)
        except BaseException:
            self.remove(name)
            raise

    def remove(self, name: str) -> None:
        """Remove the framing of *name*, if there is one."""
        for path in (self.path(name), f"{self.path(name)}.new"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def keep_only(self, names: set[str]) -> list[str]:
        """Remove the framings of all but *names*; return the files that are gone."""
        kept = {os.path.basename(self.path(name)) for name in names}
        gone = []
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(os.listdir(self._directory)):
                if entry not in kept:
                    gone.append(os.path.join(self._directory, entry))
                    os.unlink(gone[-1])
        return gone


def write_archive(
    store: Store, name: str, write: Callable[[bytes], object], diff_id: str | None
) -> None:
    """Give *write* the archive of the committed snapshot *name*.

    One that was imported comes out as it was; any other is packed, the same each time.
    *diff_id* is the digest that it must have, ``None`` where nothing is known. Raises
    `FaultyError` where it has another one.
    """
    framing = Framings(store).path(name)
    if diff_id is not None and os.path.exists(framing):
        with open(framing, "rb") as file, _files(store, name) as root_fd:
            try:
                rebuild(file, root_fd, write)
            except StoreError as error:
                raise FaultyError(f"layer {name}: {error}") from error
        return
    writer = TarWriter(write)
    with _files(store, name) as root_fd:
        layered = store.driver.stat(name).parent == "" or _is_stacked(store, name)
        if layered and is_complete(root_fd, marks()):
            pack_layer(root_fd, Packer(writer, marks()), marks())
            writer.finish()
            return
    with shown(store, name) as tree, contextlib.ExitStack() as stack:
        changes = snapshot_changes(store, name)
        told = ((one.path.removeprefix(b"/"), one.kind != DELETED) for one in changes)
        pack_changes(told, _opened(tree, stack), Packer(writer, marks()))
    writer.finish()


def _is_stacked(store: Store, name: str) -> bool:
    with viewed(store, name) as mounts:
        return _layers(mounts) is not None


@contextlib.contextmanager
def _files(store: Store, name: str) -> Iterator[int]:
    """Give the directory in which what *name* changes lies, by its paths in the tree."""
    with viewed(store, name) as mounts, contextlib.ExitStack() as stack:
        layers, directory = _layers(mounts), plain_directory(mounts, for_reading=True)
        if layers is not None:
            yield _opened(layers.lowerdirs[0], stack)
        elif directory is not None:
            yield _opened(os.fsencode(directory), stack)
        else:
            tree = stack.enter_context(shown(store, name))
            yield _opened(tree, stack)
