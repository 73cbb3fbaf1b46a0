"""One command run over a fresh snapshot, from the making of its layer to the end of it.

All that is mounted is in a mount namespace of the container's own, which ends with its last
process, however that ends. The daemons of its unions are not in it: they live where this
program was started, and end when the kernel gives the mounts up.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from unionfs import registry
from unionfs.container import places, records, terminal
from unionfs.container.first import FirstProcess
from unionfs.container.init import Plan
from unionfs.container.records import Record
from unionfs.container.rootfs import Grafted
from unionfs.container.spec import Bind, NamedVolume, Place, Spec, Tmpfs, check_name
from unionfs.driver.api import Info, Kind, Mount
from unionfs.driver.attach import attach
from unionfs.errors import AlreadyExistsError, MountError, NotFoundError, StoreError, UsageError
from unionfs.fuse import mounting
from unionfs.namespace import MountNamespace
from unionfs.store.store import Store

#: For the daemons of what was mounted to bring all to the disk, in seconds.
_PATIENCE: Final = 60.0
#: Says of a snapshot that it is a container's.
LABEL: Final = "unionfs/container"
#: Says of it that it goes when the container has ended.
EPHEMERAL: Final = "unionfs/ephemeral"


class Streams(NamedTuple):
    """The descriptors of the caller that a command is given."""

    source: int
    """What it reads; with a terminal of its own, the keys."""
    sink: int
    errors: int


def run(
    store: Store,
    name: str,
    parent: str,
    spec: Spec,
    *,
    ephemeral: bool,
    open_streams: Callable[[Record], Streams],
    started: Callable[[], None],
) -> int:
    """Run *spec* as container *name* over the committed snapshot *parent*; return its status.

    The snapshot *name* that takes its changes is removed at the end when it is *ephemeral*,
    and always when the command could not be started. *started* is called once it runs.
    Raises `CommandError` when it cannot be, `StoreError`, `MountError` and ``OSError``.
    """
    clean(store)
    with contextlib.closing(records.claim(store.root, name)) as record:
        stays = True  # whatever has the name
        try:
            _prepare(store, name, parent, ephemeral=ephemeral)
            stays = False
            named = (place.name for place in spec.places if isinstance(place, NamedVolume))
            record.begin(driver=store.driver.name, volumes=named)
            container = _Container(store, record, spec, open_streams(record))
            with container.running():
                stays = not ephemeral
                started()
                return container.wait()
        finally:
            if not stays:
                store.driver.remove(name)
            record.end(keep_log=stays)


def _prepare(store: Store, name: str, parent: str, *, ephemeral: bool) -> None:
    labels = {LABEL: name, EPHEMERAL: ""} if ephemeral else {LABEL: name}
    try:
        store.driver.prepare(name, parent, labels=labels)
    except AlreadyExistsError as error:
        raise AlreadyExistsError(
            f"{name}: the name is taken; free it with unionfs snapshot rm {name}"
        ) from error


def clean(store: Store) -> list[str]:
    """Put in order what containers that were killed have left with the driver of *store*.

    Returns the keys of the snapshots that were removed: those of ephemeral ones.
    """
    for record in records.take_dead(store.root):
        if record.driver not in ("", store.driver.name):
            continue  # a snapshot of that name is another one here
        # Where its last daemon is still about to end, there will be a next time; and of one
        # that is damaged the others need not suffer.
        with contextlib.suppress(StoreError):
            record.end(keep_log=_clean_up(store, record))
    removed = []
    for key in [info.key for info in store.driver.walk() if _is_ephemeral(info)]:
        # Nobody runs one of that name meanwhile, and whoever does now has it.
        with (
            contextlib.suppress(StoreError, UsageError),
            contextlib.closing(records.claim(store.root, check_name(key))) as record,
        ):
            store.remove(key)
            removed.append(key)
            if record.driver in ("", store.driver.name):
                record.end(keep_log=False)
    return removed


def _is_ephemeral(info: Info) -> bool:
    """Whether a snapshot goes with its container; what was captured of it has its labels only."""
    own = info.kind is Kind.ACTIVE and info.labels.get(LABEL) == info.key
    return own and EPHEMERAL in info.labels


def _clean_up(store: Store, record: Record) -> bool:
    """Release the volumes and snapshot of a container that has ended; say whether that stays."""
    for volume in record.volumes:
        places.settle(store, volume)
    try:
        if _is_ephemeral(store.driver.stat(record.name)):
            return False
    except NotFoundError:
        return False
    store.release_unused(record.name)
    return True


class _Container:
    """What is there while a command runs, in the order in which it is made."""

    def __init__(self, store: Store, record: Record, spec: Spec, streams: Streams) -> None:
        self._store = store
        self._record = record
        self._spec = spec
        self._streams = streams
        self._daemons: list[registry.Record] = []
        #: Those in use, with the directories that show them.
        self._volumes: list[tuple[NamedVolume, str]] = []
        self._first: FirstProcess | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Have the command run in the block; nothing of it is left after the block."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._used())
            stack.callback(self._wait_for_daemons)
            first = self._start(stack)
            self._first = first
            first.wait_for_command()
            yield

    def wait(self) -> int:
        """Pass on signals and what is typed and shown, until the command has ended."""
        first = self._first
        assert first is not None
        with contextlib.ExitStack() as stack:
            if first.terminal is not None:
                source = self._streams.source if self._spec.interactive else None
                ends = (self._streams.source, self._streams.sink)
                relay = terminal.Relay(first.terminal, source, self._streams.sink)
                if (before := self._caller()) is not None:
                    stack.enter_context(terminal.passing(before, keys=source is not None))
                stack.enter_context(relay.follow_window(ends))
                relay.run(until=first.descriptor)
            return first.wait()

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        """Have the snapshot marked as used, by this process for as long as it lives."""
        name = self._record.name
        subject = self._store.subject(name)
        number = self._store.uses.add(
            subject, f"container {name}", self._record.root, pid=os.getpid()
        )
        try:
            yield
        finally:
            self._store.uses.remove(number)
            self._store.release_unused(name)

    def _start(self, stack: contextlib.ExitStack) -> FirstProcess:
        """Mount everything where nobody else sees it, and start the first process there."""
        home = stack.enter_context(contextlib.closing(MountNamespace()))
        # Volumes are everybody's, and so are their mounts; what a driver starts is the store's.
        mounts = self._store.driver.mounts(self._record.name)
        shown = [self._shown(place, stack) for place in self._spec.places]
        binds = [*places.own_files(self._record, self._spec), *shown]
        with home.left(), contextlib.ExitStack() as descriptors:
            self._attach(mounts, home)
            grafts = [places.opened(place, descriptors) for place in binds]
            first = FirstProcess.start(self._plan(grafts))
            stack.callback(first.close)
            stack.callback(first.kill)
        return first

    def _shown(self, place: Place, stack: contextlib.ExitStack) -> Bind | Tmpfs:
        """Return *place*, a volume as the directory that shows it until *stack* is closed."""
        if not isinstance(place, NamedVolume):
            return place
        holder = f"container {self._record.name}"
        path = stack.enter_context(places.held(self._store, place, holder))
        self._volumes.append((place, path))
        return Bind(path, place.target, place.read_only)

    def _attach(self, mounts: Sequence[Mount], home: MountNamespace) -> None:
        """Mount the snapshot; its daemons are to be waited for, whatever happens."""
        before = {entry.device for entry in mounting.unions()}
        try:
            attach(mounts, self._record.root, home=home)
        finally:
            for entry in mounting.unions():
                if entry.device not in before and (found := registry.find(entry)) is not None:
                    self._daemons.append(found)
        for place, path in self._volumes:
            places.fill_new(self._store, place, path, self._record.root)

    def _plan(self, grafts: list[Grafted | Tmpfs]) -> Plan:
        streams = self._streams
        return Plan(
            spec=self._spec,
            root=self._record.root,
            places=grafts,
            streams=(streams.source, streams.sink, streams.errors),
            window=terminal.window((streams.source, streams.sink)),
            caller=self._caller(),
        )

    def _caller(self) -> terminal.Settings | None:
        """Return how the terminal is that the caller sits at, where it is to be changed."""
        if not self._spec.terminal:
            return None
        streams = self._streams
        return terminal.settings(streams.source if self._spec.interactive else streams.sink)

    def _wait_for_daemons(self) -> None:
        """Wait until all that was written is where it belongs. Raises `MountError`."""
        for daemon in self._daemons:
            if not registry.wait_for_end(daemon, _PATIENCE):
                raise MountError(f"process {daemon.pid} still serves {daemon.target}")
