"""What each call of containerd's snapshots API means, as verbs of a storage driver.

The calls and their rules: ``core/snapshots`` of containerd. Where they differ from
`unionfs.driver.api`: a label without a value is none; labels of a commit replace those of the
active snapshot; and a view may have no parent, which shows an empty directory.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Final

from unionfs.driver import api
from unionfs.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from unionfs.plugin.snapshotter import filters, messages
from unionfs.plugin.snapshotter.mounts import Mounts
from unionfs.store.store import Store

#: Bytes that a snapshot may have.
_MAX_SIZE: Final = "containerd.io/snapshot/max-size"
#: What fits 63 bits; more is no size of anything.
_SIZE: Final = re.compile(r"[0-9]{1,18}")
#: The parent of views that have none. containerd is not told of it, and would remove it.
_EMPTY: Final = "unionfs: an empty directory"
#: Snapshots that one message of a List has.
_BLOCK: Final = 100
_NANOSECONDS: Final = 1_000_000_000

_KINDS: Final = {
    api.Kind.ACTIVE: messages.Kind.ACTIVE,
    api.Kind.VIEW: messages.Kind.VIEW,
    api.Kind.COMMITTED: messages.Kind.COMMITTED,
}


class Snapshots:
    """The service, over the driver of *store*; each call raises what the driver's verb does."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._driver = store.driver
        self._mounts = Mounts(store)
        self._mounts.sweep()

    def prepare(self, request: messages.PrepareSnapshotRequest) -> messages.PrepareSnapshotResponse:
        """Make an active snapshot. Its size is limited where the driver can do that."""
        _refuse_ours(request.key, request.parent)
        labels = _with_values(request.labels)
        made = self._driver.prepare(
            request.key, request.parent, labels=labels, size=self._size_limit(labels)
        )
        return messages.PrepareSnapshotResponse(self._mounts_of_new(made))

    def _size_limit(self, labels: Mapping[str, str]) -> int | None:
        told = labels.get(_MAX_SIZE)
        if told is None or not self._driver.capabilities.quota:
            return None
        if not _SIZE.fullmatch(told):
            raise InvalidArgumentError(f"label {_MAX_SIZE}={told}: not a number of bytes")
        return int(told)

    def view(self, request: messages.ViewSnapshotRequest) -> messages.ViewSnapshotResponse:
        """Make a view."""
        _refuse_ours(request.key, request.parent)
        if not request.parent:
            self._make_empty()
        made = self._driver.view(
            request.key, request.parent or _EMPTY, labels=_with_values(request.labels)
        )
        return messages.ViewSnapshotResponse(self._mounts_of_new(made))

    def _make_empty(self) -> None:
        with self._store.alone(_EMPTY), contextlib.suppress(AlreadyExistsError):
            # Of one that was killed in between the first is there already.
            with contextlib.suppress(AlreadyExistsError):
                self._driver.prepare(_EMPTY)
            with contextlib.suppress(FailedPreconditionError):
                self._driver.commit(_EMPTY, _EMPTY)

    def _mounts_of_new(self, made: api.Info) -> tuple[messages.Mount, ...]:
        """Return what to mount of a snapshot that has just been made, or let it be gone."""
        try:
            return self._told_mounts(made)
        except BaseException:
            with contextlib.suppress(StoreError, OSError):
                self._remove(made.key)
            raise

    def _told_mounts(self, info: api.Info) -> tuple[messages.Mount, ...]:
        return tuple(
            messages.Mount(one.type, one.source, options=one.options)
            for one in self._mounts.of(info)
        )

    def mounts(self, request: messages.MountsRequest) -> messages.MountsResponse:
        """Tell again what to mount."""
        _refuse_ours(request.key)
        return messages.MountsResponse(self._told_mounts(self._driver.stat(request.key)))

    def commit(self, request: messages.CommitSnapshotRequest) -> messages.Empty:
        """Commit an active snapshot."""
        _refuse_ours(request.key, request.name)
        if request.parent:
            self._require_parent(request.key, request.parent)
        with self._store.alone(request.key):
            if self._driver.stat(request.key).kind is api.Kind.ACTIVE:
                self._mounts.let_go(request.key)
            self._driver.commit(request.name, request.key, labels=_with_values(request.labels))
        return messages.Empty()

    def _require_parent(self, key: str, parent: str) -> None:
        """Raise unless *parent* is what *key* was prepared on: there is no other way."""
        present = self._driver.stat(key).parent
        if not present:
            raise UnsupportedError(
                f"{key}: prepared without a parent, and cannot be put on {parent}; the plugin has"
                ' no capability "rebase", take it out of the configuration of containerd'
            )
        if present != parent:
            raise InvalidArgumentError(f"{key}: its parent is {present}, and stays that")

    def remove(self, request: messages.RemoveSnapshotRequest) -> messages.Empty:
        """Remove a snapshot of any kind."""
        _refuse_ours(request.key)
        self._remove(request.key)
        return messages.Empty()

    def _remove(self, key: str) -> None:
        with self._store.alone(key):
            self._mounts.let_go(key)
            self._driver.remove(key)

    def stat(self, request: messages.StatSnapshotRequest) -> messages.StatSnapshotResponse:
        """Tell what is known of a snapshot."""
        _refuse_ours(request.key)
        return messages.StatSnapshotResponse(_told(self._driver.stat(request.key)))

    def update(self, request: messages.UpdateSnapshotRequest) -> messages.UpdateSnapshotResponse:
        """Change labels: all of them, or those that the mask names."""
        name, labels, paths = request.info.name, request.info.labels, request.update_mask.paths
        _refuse_ours(name)
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidArgumentError(f"{name}: {path} cannot be changed, only labels can")
        replace = not paths or "labels" in paths
        if replace:
            wanted: dict[str, str | None] = {**_with_values(labels)}
        else:
            names = [path.removeprefix("labels.") for path in paths]
            wanted = {one: labels.get(one) or None for one in names}
        changed = self._driver.update(name, wanted, replace=replace)
        return messages.UpdateSnapshotResponse(_told(changed))

    def list(
        self, request: messages.ListSnapshotsRequest
    ) -> Iterator[messages.ListSnapshotsResponse]:
        """Tell what is known of all that one of the filters takes, in blocks."""
        takes = filters.any_of(request.filters)
        found = (
            info
            for info in self._driver.walk()
            if info.key != _EMPTY
            and takes(filters.fields_of(info.key, _parent(info), info.kind.value, info.labels))
        )
        while block := tuple(map(_told, itertools.islice(found, _BLOCK))):
            yield messages.ListSnapshotsResponse(block)

    def usage(self, request: messages.UsageRequest) -> messages.UsageResponse:
        """Tell what a snapshot itself takes of the disk."""
        _refuse_ours(request.key)
        return messages.UsageResponse(*self._driver.usage(request.key))

    def cleanup(self, _request: messages.CleanupRequest) -> messages.Empty:
        """Remove what crashes have left."""
        self._mounts.sweep()
        self._driver.cleanup()
        return messages.Empty()


def _refuse_ours(*keys: str) -> None:
    if _EMPTY in keys:
        raise NotFoundError(f"{_EMPTY}: no such snapshot, and the name is taken")


def _with_values(labels: Mapping[str, str]) -> dict[str, str]:
    """Return those of *labels* that say anything: containerd takes an empty one for none."""
    return {name: value for name, value in labels.items() if value}


def _parent(info: api.Info) -> str:
    return "" if info.parent == _EMPTY else info.parent


def _told(info: api.Info) -> messages.Info:
    """Return *info* as a message."""
    return messages.Info(
        name=info.key,
        parent=_parent(info),
        kind=_KINDS[info.kind],
        created_at=messages.Timestamp(*divmod(info.created, _NANOSECONDS)),
        updated_at=messages.Timestamp(*divmod(info.updated, _NANOSECONDS)),
        labels=info.labels,
    )
