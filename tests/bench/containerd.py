"""containerd's snapshotters under the verbs of our drivers, so that one worker measures both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.containerd import KEEP, SnapshotsClient
from unionfs.driver.api import Mount
from unionfs.plugin.snapshotter.protobuf import raw_fields

LABELS = {KEEP: "bench"}


class Client:
    """One snapshotter of the containerd whose socket is given; all that it keeps has a label."""

    def __init__(self, socket: str, snapshotter: str) -> None:
        self._client = SnapshotsClient(socket, snapshotter, "bench")
        self.remove, self.close = self._client.remove, self._client.close

    def ask_nothing(self) -> None:
        """A call that does no work: what the way there and back takes."""
        self._client.call("/containerd.services.version.v1.Version/Version", b"")

    def prepare(self, key: str, parent: str = "") -> Sequence[Mount]:
        return self._client.prepare(key, parent, LABELS)

    prepare_mounts = prepare

    def commit(self, name: str, key: str) -> None:
        self._client.commit(name, key, LABELS)

    def release(self, key: str) -> None:
        """Nothing: its snapshotters take nothing."""

    def walk(self) -> Iterator[bytes]:
        """All snapshots in the blocks that they come in, not decoded: Go does that faster."""
        return self._client.blocks()

    def count(self, blocks: Sequence[bytes]) -> int:
        """How many snapshots *blocks* of `walk` have."""
        return sum(1 for block in blocks for number, _ in raw_fields(block) if number == 1)
