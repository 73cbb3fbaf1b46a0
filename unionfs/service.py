"""One mount served: layers opened, mounted, answered for, unmounted, given back."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from typing import TYPE_CHECKING

from unionfs import daemon, registry
from unionfs.errors import MountError
from unionfs.fuse import mounting, open_session
from unionfs.layer.stack import LayerStack
from unionfs.log import Log
from unionfs.options import format_options
from unionfs.union.operations import UnionFS

if TYPE_CHECKING:
    from types import FrameType

    from unionfs.daemon import Ready
    from unionfs.fuse.interface import Session
    from unionfs.fuse.mounting import MountEntry
    from unionfs.namespace import MountNamespace
    from unionfs.options import MountOptions
    from unionfs.registry import Record

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = Log(__name__)


def serve(
    options: MountOptions, place: bytes, ready: Ready, home: MountNamespace | None = None
) -> None:
    """Open the layers, mount them on *place* and serve until unmounted or told by a signal.

    With *home* it is served from there: the namespace that it is mounted in can end, and
    the mount with it. Calls *ready* once, when the kernel has its first answer. Raises
    `UnionError` and ``OSError``; nothing stays mounted if that is before *ready*.
    """
    daemon.raise_descriptor_limit()
    # The modes of new files are the business of the callers' umasks.
    os.umask(0)
    with contextlib.closing(LayerStack.open(options)) as stack:
        # Before the daemon leaves the directory that relative paths start from.
        shown = _with_absolute_layers(options)
        union = UnionFS(stack, options)
        session = open_session(options, union)
        # From the mount on a signal must find the loop that unmounts.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        session.mount(place, options.fsname, options.fuse_options)
        entry = mounting.entry_of(place)
        if home is not None:
            home.enter()
        # What is there by now stays; garbage is looked for in what comes.
        gc.freeze()
        gc.enable()
        # As fuse-overlayfs does; without a handler the signal would end us.
        signal.signal(signal.SIGUSR1, lambda *_: _tell_statistics(union, session))
        _Service(session, place, entry, shown, ready).run()


def _tell_statistics(union: UnionFS, session: Session) -> None:
    log.info("%s; requests: %s", union.statistics(), session.counted() or "not counted")


def _with_absolute_layers(options: MountOptions) -> MountOptions:
    def absolute(path: bytes) -> bytes:
        with contextlib.suppress(OSError):
            return mounting.resolve(path)
        return path

    return options._replace(
        lowerdirs=tuple(absolute(path) for path in options.lowerdirs),
        upperdir=None if options.upperdir is None else absolute(options.upperdir),
        workdir=None if options.workdir is None else absolute(options.workdir),
    )


class _Service:
    """A mount, from the moment that it is there to its end."""

    def __init__(
        self,
        session: Session,
        place: bytes,
        entry: MountEntry | None,
        options: MountOptions,
        ready: Ready,
    ) -> None:
        self._session = session
        self._place = place
        self._entry = entry
        self._options = options
        self._tell_ready = ready
        self._is_ready = False
        self._told_to_end = False
        self._record: Record | None = None

    def run(self) -> None:
        """Serve until the mount is unmounted or a signal comes; then it is unmounted too."""
        try:
            for number in _ENDING:
                signal.signal(number, self._end_on_signal)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            self._session.serve(self._ready)
        finally:
            # After a crash the mount stays and answers ENOTCONN: an empty directory in its
            # place could be taken for the truth. A mount that nobody was told of goes.
            self._session.close(unmount=self._told_to_end or not self._is_ready)
        if self._record is not None and not self._is_left_mounted(self._record):
            registry.remove(self._record)
        if not self._is_ready and not self._told_to_end:
            raise MountError(f"{os.fsdecode(self._place)}: ended before it was ready")

    def _is_left_mounted(self, record: Record) -> bool:
        """Tell whether the mount is there still, dead: `unionfs ls` is to say so."""
        return any(entry.device == record.device for entry in mounting.mounts())

    def _end_on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._end()

    def _end(self) -> None:
        self._told_to_end = True
        self._session.stop()

    def _ready(self) -> None:
        self._write_record()
        try:
            self._tell_ready()
        except BrokenPipeError:
            # Whoever asked for the mount is gone and could not know that it must unmount.
            self._end()
        else:
            self._is_ready = True

    def _write_record(self) -> None:
        entry = self._entry
        if entry is None or entry.kind != mounting.FSTYPE:
            return
        record = registry.describe_self(
            entry.device,
            os.fsdecode(entry.target),
            self._session.name,
            format_options(self._options),
        )
        try:
            registry.write(record, (one.device for one in mounting.mounts()))
            self._record = record
        except OSError as error:
            log.warning("no record of this mount for `unionfs ls`: %s", error)
