"""``unionfs plugin snapshotter`` as a process over one driver, and a client of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.containerd import SnapshotsClient
from tests.driver.drivers import EXAMPLE, Kit, offer_example
from tests.plugin.mounting import mounted
from tests.plugin.process import PluginProcess
from tests.watchdog import Watchdog
from unionfs.driver.api import Mount
from unionfs.plugin.snapshotter import messages

KINDS = messages.Kind


class SnapshotterGround:
    """A snapshotter with the driver of *kit* in the directory *home*, asked by `client`."""

    def __init__(self, kit: Kit, home: Path, watchdog: Watchdog) -> None:
        self.kit = kit
        self.work = home.parent
        self.root = home / "root"
        self.socket = home.parent / "socket"
        self.log = home.parent / "log"
        self._watchdog = watchdog
        self._environment: dict[str, str] = {}
        if kit.driver == "copy":
            site = home.parent / "site"
            if not site.exists():
                offer_example(site)
            self._environment = {"PYTHONPATH": f"{site}:{EXAMPLE.parents[2]}"}
        self.plugin = self.start()
        self.client = self.connect()

    def start(self, **options: Any) -> PluginProcess:
        """Start the plugin, after its end."""
        self.plugin = PluginProcess(
            self.log, "snapshotter", *self.arguments, env=self._environment, **options
        )
        return self.plugin

    @property
    def arguments(self) -> list[str]:
        """Its command line."""
        told = [f"--socket={self.socket}", f"--root={self.root}", f"--driver={self.kit.driver}"]
        return [*told, *(f"--storage-opt={key}={value}" for key, value in self.kit.options.items())]

    def restart(self, *, killed: bool = False) -> None:
        """End or kill the plugin, and start it again."""
        if killed:
            self.plugin.kill()
        else:
            assert self.plugin.end() == 0
        self.start()

    def connect(self) -> SnapshotsClient:
        """One more client; the connection is made when it first asks."""
        return SnapshotsClient(str(self.socket))

    @contextlib.contextmanager
    def at(self, mounts: Sequence[Mount], name: str = "at") -> Iterator[Path]:
        """*mounts* in a directory, as containerd mounts them."""
        with mounted(mounts, self.work / name, self._watchdog) as place:
            yield place

    def layer(
        self, name: str, parent: str, change: Callable[[Path], None], labels: Mapping[str, str] = {}
    ) -> None:
        """The committed snapshot *name* on *parent* with what *change* does."""
        with self.at(self.client.prepare(f"making {name}", parent, labels)) as root:
            change(root)
        self.client.commit(name, f"making {name}", labels)

    def clear(self) -> None:
        """Remove all snapshots as containerd's garbage collection does: children first."""
        for info in reversed(self.client.walk()):
            self.client.remove(info.name)
        self.client.cleanup()

    def close(self) -> None:
        """Remove all, and see that nothing is left over."""
        self.clear()
        self.client.close()
        assert self.plugin.end() == 0
        assert not self.socket.exists()
        assert self.log.read_text() == ""
