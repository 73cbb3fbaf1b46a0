"""The messages of containerd's snapshots API, by the names and numbers that it documents.

``api/services/snapshots/v1/snapshots.proto`` and ``api/types/mount.proto`` of containerd, and
of Protocol Buffers ``Timestamp``, ``FieldMask`` and ``Empty`` (google.protobuf).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

SERVICE: Final = "containerd.services.snapshots.v1.Snapshots"


class Kind(enum.IntEnum):
    """What kind of snapshot an `Info` is about."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True)
class Empty:
    """Nothing."""


@dataclass(frozen=True)
class Timestamp:
    """A time since 1970."""

    seconds: Annotated[int, 1] = 0
    nanos: Annotated[int, 2] = 0


@dataclass(frozen=True)
class FieldMask:
    """Which fields are meant; none of them means all."""

    paths: Annotated[tuple[str, ...], 1] = ()


@dataclass(frozen=True)
class Mount:
    """``containerd.types.Mount``."""

    type: Annotated[str, 1] = ""
    source: Annotated[str, 2] = ""
    target: Annotated[str, 3] = ""
    """A directory below the place that is mounted on."""
    options: Annotated[tuple[str, ...], 4] = ()


@dataclass(frozen=True)
class Info:
    """What is known of a snapshot."""

    name: Annotated[str, 1] = ""
    parent: Annotated[str, 2] = ""
    kind: Annotated[int, 3] = Kind.UNKNOWN
    created_at: Annotated[Timestamp, 4] = Timestamp()
    updated_at: Annotated[Timestamp, 5] = Timestamp()
    labels: Annotated[Mapping[str, str], 6] = field(default_factory=dict)


@dataclass(frozen=True)
class PrepareSnapshotRequest:
    """``Prepare``: a new active snapshot *key*."""

    snapshotter: Annotated[str, 1] = ""
    key: Annotated[str, 2] = ""
    parent: Annotated[str, 3] = ""
    labels: Annotated[Mapping[str, str], 4] = field(default_factory=dict)


@dataclass(frozen=True)
class PrepareSnapshotResponse:
    """What to mount."""

    mounts: Annotated[tuple[Mount, ...], 1] = ()


@dataclass(frozen=True)
class ViewSnapshotRequest:
    """``View``: a new read-only snapshot *key*."""

    snapshotter: Annotated[str, 1] = ""
    key: Annotated[str, 2] = ""
    parent: Annotated[str, 3] = ""
    labels: Annotated[Mapping[str, str], 4] = field(default_factory=dict)


@dataclass(frozen=True)
class ViewSnapshotResponse:
    """What to mount."""

    mounts: Annotated[tuple[Mount, ...], 1] = ()


@dataclass(frozen=True)
class MountsRequest:
    """``Mounts``: what an active snapshot or a view is mounted by."""

    snapshotter: Annotated[str, 1] = ""
    key: Annotated[str, 2] = ""


@dataclass(frozen=True)
class MountsResponse:
    """What to mount."""

    mounts: Annotated[tuple[Mount, ...], 1] = ()


@dataclass(frozen=True)
class CommitSnapshotRequest:
    """``Commit``: the active *key* becomes the committed *name*."""

    snapshotter: Annotated[str, 1] = ""
    name: Annotated[str, 2] = ""
    key: Annotated[str, 3] = ""
    labels: Annotated[Mapping[str, str], 4] = field(default_factory=dict)
    parent: Annotated[str, 5] = ""
    """What a snapshot without a parent is to be put on; since containerd 2.2."""


@dataclass(frozen=True)
class RemoveSnapshotRequest:
    """``Remove``."""

    snapshotter: Annotated[str, 1] = ""
    key: Annotated[str, 2] = ""


@dataclass(frozen=True)
class StatSnapshotRequest:
    """``Stat``."""

    snapshotter: Annotated[str, 1] = ""
    key: Annotated[str, 2] = ""


@dataclass(frozen=True)
class StatSnapshotResponse:
    """What is known of it."""

    info: Annotated[Info, 1] = Info()


@dataclass(frozen=True)
class UpdateSnapshotRequest:
    """``Update``: the labels of ``info.name`` become those of *info*."""

    snapshotter: Annotated[str, 1] = ""
    info: Annotated[Info, 2] = Info()
    update_mask: Annotated[FieldMask, 3] = FieldMask()


@dataclass(frozen=True)
class UpdateSnapshotResponse:
    """What is known of it afterwards."""

    info: Annotated[Info, 1] = Info()


@dataclass(frozen=True)
class ListSnapshotsRequest:
    """``List``: those that one of the *filters* takes."""

    snapshotter: Annotated[str, 1] = ""
    filters: Annotated[tuple[str, ...], 2] = ()


@dataclass(frozen=True)
class ListSnapshotsResponse:
    """Some of them; the reply is a stream of these."""

    info: Annotated[tuple[Info, ...], 1] = ()


@dataclass(frozen=True)
class UsageRequest:
    """``Usage``."""

    snapshotter: Annotated[str, 1] = ""
    key: Annotated[str, 2] = ""


@dataclass(frozen=True)
class UsageResponse:
    """What a snapshot itself takes of the disk."""

    size: Annotated[int, 1] = 0
    inodes: Annotated[int, 2] = 0


@dataclass(frozen=True)
class CleanupRequest:
    """``Cleanup``: what no snapshot needs any more is removed."""

    snapshotter: Annotated[str, 1] = ""
