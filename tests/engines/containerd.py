"""containerd with snapshotters of ours, and ``ctr`` that talks to it."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.engines.ground import Ground
from tests.store.bundles import Layout, config, write_tar

#: Seconds until either of them answers, and until it is gone.
START: Final = 30.0

#: A containerd with all that is its own in the directory *home*.
OWN_HOME: Final = """\
version = 2
root = "{home}/root"
state = "{home}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{home}/socket"
[ttrpc]
  address = "{home}/ttrpc"
"""

#: Garbage is collected when `Containerd.collect` says so: it takes snapshots that nobody has
#: in a container, which `ctr snapshots view` makes.
CONFIGURATION: Final = f"""\
{OWN_HOME}[plugins."io.containerd.gc.v1.scheduler"]
  mutation_threshold = 1000000
[proxy_plugins]
"""

PROXY: Final = """\
  [proxy_plugins.{name}]
    type = "snapshot"
    address = "{socket}"
"""


def image_file(path: Path, name: str, *layers: bytes) -> Path:
    """Write an image of *layers* called *name*, for ``ctr images import``."""
    layout = Layout()
    settings = {"config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]}}
    layout.name(layout.image(layers, config(*layers, **settings)), None)
    # containerd takes the whole name from its own annotation.
    layout.manifests[-1]["annotations"] = {"io.containerd.image.name": name}
    return write_tar(path, layout.all())


def wait_for(done: Callable[[], bool], describe: Callable[[], str]) -> None:
    """Wait until *done*; else fail with what *describe* says."""
    end = time.monotonic() + START
    while not done():
        assert time.monotonic() < end, describe()
        time.sleep(0.05)


class Snapshotter:
    """``unionfs plugin snapshotter`` in *ground*, called *name* by containerd."""

    def __init__(self, ground: Ground, name: str, program: Path, *options: str) -> None:
        self.ground = ground
        self.name = name
        self.root = ground.base / name
        self.socket = ground.base / f"{name}.sock"
        self._program, self._options = str(program), options
        self._log = (ground.base / f"{name}.log").open("w")
        self.start()

    def start(self) -> None:
        """Start it, after its end, and wait until it answers."""
        self.process = self.ground.start(
            *(self._program, "plugin", "snapshotter", *self._options),
            f"--socket={self.socket}",
            f"--root={self.root}",
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        wait_for(self._answers, self.log)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            return asking.connect_ex(str(self.socket)) == 0

    def snapshots(self, *words: str) -> str:
        """Run ``unionfs snapshot`` on its store, beside it: we fork, and gRPC has threads."""
        store = [f"--root={self.root}", *(one for one in self._options)]
        return self.ground.run(self._program, "snapshot", *words, *store)

    def walk(self) -> list[dict[str, Any]]:
        """What is known of all that containerd knows."""
        found = json.loads(self.snapshots("ls", "--json"))
        return [info for info in found if not info["key"].startswith("unionfs:")]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it by a signal."""
        command = f"plugin snapshotter.*{self.socket}"
        self.ground.run("pkill", f"-{number.value}", "-f", command)
        self.process.wait(START)

    def log(self) -> str:
        """All that it has said."""
        return Path(self._log.name).read_text()

    def close(self) -> None:
        """Have nothing of it mounted or attached, and end it, if it runs."""
        if self.process.poll() is None:
            self.stop()
        self.ground.run("sh", "-c", f"umount {self.root}/mounted/* 2>/dev/null", status=None)
        for info in reversed(json.loads(self.snapshots("ls", "--json"))):
            self.snapshots("rm", info["key"])
        self._log.close()


class Containerd:
    """A containerd in *ground* with *snapshotters*; it finds ``unionfs`` in *programs*."""

    def __init__(self, ground: Ground, programs: Path, snapshotters: Sequence[Snapshotter]) -> None:
        self.ground = ground
        self.home = ground.base / "containerd"
        self.home.mkdir()
        self.socket = self.home / "socket"
        self.path = f"{programs}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._configuration = self.home / "config.toml"
        proxies = (PROXY.format(name=one.name, socket=one.socket) for one in snapshotters)
        self._configuration.write_text(CONFIGURATION.format(home=self.home) + "".join(proxies))
        self._log = (self.home / "log").open("w")
        self.start()

    def start(self) -> None:
        """Start containerd and wait until it answers."""
        self._daemon = self.ground.start(
            "containerd",
            f"--config={self._configuration}",
            environment={"PATH": self.path, "TMPDIR": str(self.ground.base / "tmp")},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        wait_for(self._answers, self.log)

    def _answers(self) -> bool:
        assert self._daemon.poll() is None, self.log()
        command = self.ground.command(["ctr", f"--address={self.socket}", "version"])
        done = subprocess.run(command, capture_output=True, timeout=START, check=False)
        return done.returncode == 0

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End containerd; its shims and their containers go on."""
        command = f"^containerd --config={self._configuration}"
        self.ground.run("pkill", f"-{number.value}", "-f", command)
        self._daemon.wait(START)

    def log(self) -> str:
        """All that containerd has said."""
        return (self.home / "log").read_text()

    def __call__(self, *arguments: str, namespace: str = "default", **options: Any) -> str:
        """Run ``ctr ARGUMENTS``; what it wrote. *options* are those of `Ground.run`."""
        settings: Mapping[str, str] = {"PATH": self.path, "TMPDIR": str(self.ground.base / "tmp")}
        out = self.ground.run(
            *("ctr", f"--address={self.socket}", f"--namespace={namespace}"),
            *arguments,
            environment=settings,
            **options,
        )
        return out.removesuffix("\n")

    def collect(self) -> None:
        """Collect garbage, and wait for the end of that."""
        self("leases", "create", "--id=collected")
        self("leases", "delete", "--sync", "collected")

    @property
    def said(self) -> str:
        """What the last command said on standard error."""
        return self.ground.said

    def close(self) -> None:
        """End containerd, if it runs."""
        if self._daemon.poll() is None:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.stop()
        self._log.close()
