"""A volume plugin on a store of the test's own, or beside an engine; an end for its mounts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests import system
from tests.engines.conftest import linked, need
from tests.engines.docker import Docker
from tests.engines.ground import Ground
from tests.engines.images import busybox_tar
from tests.engines.podman import Podman
from tests.mounts import device_minor, mounted_below
from tests.plugin.client import Client
from tests.plugin.in_ground import SOCKET, Engine, PluginBeside
from tests.plugin.process import PluginProcess
from tests.watchdog import Watchdog
from unionfs import registry
from unionfs.fuse import mounting


class PluginGround:
    """A plugin, started as often as a test likes, and the engine that calls it."""

    def __init__(self, base: Path, watchdog: Watchdog) -> None:
        self.base = base
        self.root = base / "store"
        self.socket = base / "plugin.sock"
        self.log = base / "log"
        self._watchdog = watchdog
        self._clients: list[Client] = []
        self.plugin = self.start()
        self.client = self.connect()

    def start(self, *more: str, **options: Any) -> PluginProcess:
        """Start the plugin, after its end."""
        self.plugin = PluginProcess(
            self.log, "volume", f"--socket={self.socket}", f"--root={self.root}", *more, **options
        )
        return self.plugin

    def restart(self, *, killed: bool = False, **options: Any) -> None:
        """End or kill the plugin, and start it again."""
        if killed:
            self.plugin.kill()
        else:
            assert self.plugin.end() == 0
        self.start(**options)

    def connect(self) -> Client:
        """One more connection of an engine."""
        self._clients.append(Client(self.socket))
        return self._clients[-1]

    def guard(self) -> None:
        """Let no mount hang the test."""
        for target in mounted_below(self.root):
            minor = device_minor(Path(target))
            if minor is not None:
                self._watchdog.arm(minor, 60)

    def mounted(self) -> list[str]:
        """What is mounted of the store, below it."""
        return [os.path.relpath(path, self.root) for path in mounted_below(self.root)]

    def daemon(self, name: str) -> registry.Record:
        """The record of the daemon that serves the volume *name*."""
        entry = mounting.mount_at(os.fsencode(self.root / "volumes" / name / "_data"))
        assert entry is not None
        record = registry.find(entry)
        assert record is not None
        return record

    def hang_up(self) -> None:
        """End all connections."""
        for one in self._clients:
            one.close()

    def close(self) -> None:
        """Remove all volumes as the engine would, and see that nothing is left over."""
        if self.plugin.process.poll() is not None:
            self.start()
        client = self.connect()
        for name in client.names():
            for holder in client.users(name):
                client.unmount(name, holder)
            client.remove(name)
        assert self.mounted() == []
        self.hang_up()
        assert self.plugin.end() == 0
        assert not self.socket.exists()
        assert self.log.read_text() == ""


@pytest.fixture
def ground(scratch: Path, watchdog: Watchdog) -> Iterator[PluginGround]:
    """A plugin on a store of the driver overlay."""
    made = PluginGround(scratch, watchdog)
    try:
        yield made
        made.close()
    finally:
        made.hang_up()
        if made.plugin.process.poll() is None:
            os.killpg(made.plugin.process.pid, signal.SIGKILL)
            made.plugin.process.wait()
        for target in reversed(mounted_below(scratch)):
            system.umount(target, system.MNT_DETACH)


#: How Podman is told of a plugin.
_VOLUME_PLUGINS = """
[engine.volume_plugins]
unionfs = "{socket}"
"""


@pytest.fixture(scope="session")
def docker_of_session() -> Iterator[Engine]:
    """A dockerd with an image ``base``, and the plugin."""
    need("dockerd", "tini", "busybox", Docker.CLIENT)
    with closing(Ground()) as ground, closing(PluginBeside(ground)) as plugin:
        plugin.start()
        with closing(Docker(ground, linked(ground).parent)) as docker:
            docker("import", str(busybox_tar(ground.base)), "base")
            yield Engine(docker, plugin)


def _podman(*, user: bool) -> Iterator[Engine]:
    need("podman", "runc", "tini", "busybox")
    with closing(Ground()) as ground:
        podman = Podman(ground, linked(ground), user=user)
        socket = str(podman.home / "plugin.sock") if user else SOCKET
        settings = podman.home / "containers.conf"
        settings.write_text(settings.read_text() + _VOLUME_PLUGINS.format(socket=socket))
        with closing(PluginBeside(ground, socket, user=user)) as plugin:
            plugin.start()
            podman("import", str(busybox_tar(ground.base)), "base")
            yield Engine(podman, plugin)


@pytest.fixture(scope="session")
def podman_of_session() -> Iterator[Engine]:
    """Root's Podman with an image ``base``, and the plugin."""
    yield from _podman(user=False)


@pytest.fixture(scope="session")
def rootless_of_session() -> Iterator[Engine]:
    """An ordinary user's Podman with an image ``base``, and a plugin of this user's."""
    need("newuidmap", "catatonit", "slirp4netns")
    yield from _podman(user=True)


@pytest.fixture
def docker(docker_of_session: Engine) -> Iterator[Engine]:
    """Docker and the plugin; all containers and volumes are removed after the test."""
    yield docker_of_session
    docker_of_session.clear()


@pytest.fixture
def podman(podman_of_session: Engine) -> Iterator[Engine]:
    """Podman and the plugin, likewise."""
    yield podman_of_session
    podman_of_session.clear()


@pytest.fixture
def rootless(rootless_of_session: Engine) -> Iterator[Engine]:
    """An ordinary user's Podman and plugin, likewise."""
    yield rootless_of_session
    rootless_of_session.clear()


@pytest.fixture(params=["docker", "podman"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Docker and Podman in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Engine)
    return found
