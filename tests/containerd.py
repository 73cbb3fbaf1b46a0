"""containerd's snapshots API, asked as its clients ask: a plugin by its socket, or containerd.

The verbs have the names of `unionfs.driver.api.Driver`; what fails raises ``grpc.RpcError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from unionfs.driver.api import Mount
from unionfs.plugin.snapshotter import messages
from unionfs.plugin.snapshotter.messages import Info
from unionfs.plugin.snapshotter.protobuf import decode, encode

#: Seconds for one call.
PATIENCE = 120
#: Without it a snapshot that no image or lease needs is garbage, soon collected. `ctr` sets it too.
KEEP = "containerd.io/gc.root"

Labels = Mapping[str, str] | None


class SnapshotsClient:
    """One *snapshotter* of whoever listens on *socket*: a plugin ignores its name."""

    def __init__(self, socket: str, snapshotter: str = "", namespace: str = "tests") -> None:
        import grpc  # noqa: PLC0415 - only whoever talks to containerd has it

        self._snapshotter = snapshotter
        self._metadata = (("containerd-namespace", namespace),)
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._calls: dict[str, Callable[..., Any]] = {}

    def call(self, name: str, message: bytes) -> bytes:
        """The reply to *message*, as it came."""
        if name not in self._calls:
            method = name if name.startswith("/") else f"/{messages.SERVICE}/{name}"
            self._calls[name] = self._channel.unary_unary(method)
        reply = self._calls[name](message, metadata=self._metadata, timeout=PATIENCE)
        assert isinstance(reply, bytes)
        return reply

    def blocks(self, *filters: str) -> Iterator[bytes]:
        """The replies to a List, as they come."""
        if "List" not in self._calls:
            self._calls["List"] = self._channel.unary_stream(f"/{messages.SERVICE}/List")
        request = encode(messages.ListSnapshotsRequest(self._snapshotter, filters))
        yield from self._calls["List"](request, metadata=self._metadata, timeout=PATIENCE)

    def prepare(self, key: str, parent: str = "", labels: Labels = None) -> list[Mount]:
        request = messages.PrepareSnapshotRequest(self._snapshotter, key, parent, labels or {})
        reply = self.call("Prepare", encode(request))
        return _mounts(decode(messages.PrepareSnapshotResponse, reply).mounts)

    def view(self, key: str, parent: str, labels: Labels = None) -> list[Mount]:
        request = messages.ViewSnapshotRequest(self._snapshotter, key, parent, labels or {})
        return _mounts(
            decode(messages.ViewSnapshotResponse, self.call("View", encode(request))).mounts
        )

    def mounts(self, key: str) -> list[Mount]:
        request = messages.MountsRequest(self._snapshotter, key)
        return _mounts(decode(messages.MountsResponse, self.call("Mounts", encode(request))).mounts)

    def commit(self, name: str, key: str, labels: Labels = None, parent: str = "") -> None:
        request = messages.CommitSnapshotRequest(self._snapshotter, name, key, labels or {}, parent)
        assert self.call("Commit", encode(request)) == b""

    def remove(self, key: str) -> None:
        request = messages.RemoveSnapshotRequest(self._snapshotter, key)
        assert self.call("Remove", encode(request)) == b""

    def stat(self, key: str) -> Info:
        request = messages.StatSnapshotRequest(self._snapshotter, key)
        return decode(messages.StatSnapshotResponse, self.call("Stat", encode(request))).info

    def update(self, info: Info, *paths: str) -> Info:
        request = messages.UpdateSnapshotRequest(self._snapshotter, info, messages.FieldMask(paths))
        return decode(messages.UpdateSnapshotResponse, self.call("Update", encode(request))).info

    def walk(self, *filters: str) -> list[Info]:
        blocks = [decode(messages.ListSnapshotsResponse, one) for one in self.blocks(*filters)]
        return [info for block in blocks for info in block.info]

    def usage(self, key: str) -> messages.UsageResponse:
        request = messages.UsageRequest(self._snapshotter, key)
        return decode(messages.UsageResponse, self.call("Usage", encode(request)))

    def cleanup(self) -> None:
        assert self.call("Cleanup", encode(messages.CleanupRequest(self._snapshotter))) == b""

    def close(self) -> None:
        self._channel.close()


def _mounts(told: Sequence[messages.Mount]) -> list[Mount]:
    assert not any(one.target for one in told), "containerd before 1.7 does not know it"
    return [Mount(one.type, one.source, one.options) for one in told]
