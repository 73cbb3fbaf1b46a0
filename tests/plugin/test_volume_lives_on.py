"""The plugin, an engine or a daemon ends or is killed, and what of a volume lives on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.container.runner import wait_for
from tests.plugin.client import connected, request
from tests.plugin.conftest import PluginGround
from unionfs import registry

pytestmark = pytest.mark.needs_root


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
def test_what_is_mounted_lives_on(ground: PluginGround, killed: bool) -> None:
    """A union's daemon is not the plugin."""
    host = ground.base / "host"
    host.mkdir()
    (host / "file").write_text("of the host")
    ground.client.create("view", **{"from": str(host)})
    place = ground.client.mount("view", "one")
    ground.guard()
    with (place / "open").open("w", buffering=1) as file:
        daemon = ground.daemon("view")
        ground.restart(killed=killed)
        file.write("written meanwhile")
        assert (place / "file").read_text() == "of the host"
        assert ground.daemon("view") == daemon
        client = ground.connect()
        assert client.mount("view", "two") == place
        assert client.users("view") == ["one", "two"]
    client.unmount("view", "one")
    assert (place / "open").read_text() == "written meanwhile"
    client.unmount("view", "two")
    assert not registry.is_running(daemon)
    assert ground.mounted() == []


@pytest.mark.parametrize(
    "options",
    [{}, {"type": "tmpfs"}, {"driver": "block", "size": "64m"}],
    ids=["plain", "memory", "block"],
)
def test_what_is_no_union_lives_on(ground: PluginGround, options: dict[str, str]) -> None:
    """Nor is what serves a block device the plugin."""
    ground.client.create("vol", **options)
    place = ground.client.mount("vol", "one")
    (place / "file").write_bytes(bytes(8 << 20))
    mounted = ground.mounted()
    ground.restart(killed=True)
    assert ground.mounted() == mounted
    with (place / "file").open("rb+") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read() == bytes(8 << 20)
        file.write(b"more")
        os.fsync(file.fileno())
    client = ground.connect()
    assert client.mount("vol", "two") == place
    client.unmount("vol", "one")
    assert (place / "file").stat().st_size == (8 << 20) + 4


def test_a_dead_mount_is_made_anew(ground: PluginGround) -> None:
    """Who has the dead one is counted still, and gets nothing else by it."""
    client = ground.client
    (ground.base / "host").mkdir()
    client.create("view", **{"from": str(ground.base / "host")})
    place = client.mount("view", "one")
    (place / "file").write_text("kept")
    daemon = ground.daemon("view")
    os.kill(daemon.pid, signal.SIGKILL)
    assert registry.wait_for_end(daemon, 5)
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        (place / "file").read_text()
    assert (client.mount("view", "two") / "file").read_text() == "kept"
    ground.guard()
    client.unmount("view", "one")
    assert (place / "file").read_text() == "kept"


def test_what_a_killed_plugin_has_mounted_for_nobody(ground: PluginGround) -> None:
    """It was killed before it could answer; the next one unmounts that."""
    (ground.base / "host").mkdir()
    ground.client.create("view", **{"from": str(ground.base / "host")})
    ground.client.create("cache", type="tmpfs")
    ground.restart(
        patch="import os; from unionfs.store.uses import Uses\n"
        "Uses.outlive = lambda *_: os.kill(os.getpid(), 9)"
    )
    for name in ("view", "cache"):
        with pytest.raises(ConnectionError):
            ground.connect().mount(name, "one")
    ground.guard()
    assert len(ground.mounted()) == 2
    ground.restart(killed=True)
    assert ground.mounted() == []
    client = ground.connect()
    assert client.users("view") == []
    client.mount("view", "one")


def test_what_cannot_be_unmounted_at_the_start(ground: PluginGround) -> None:
    """It is told, and all others are served."""
    ground.client.create("stuck")
    ground.restart(
        patch="from unionfs.errors import MountError; from unionfs.store.volumes import Volumes\n"
        "def settle(_self, name): raise MountError('is busy')\n"
        "Volumes.settle = settle"
    )
    said = "unionfs.plugin: WARNING: stuck: could not be unmounted: is busy\n"
    assert ground.log.read_text() == said
    ground.log.write_text("")
    client = ground.connect()
    client.create("other")
    client.mount("other", "one")


def test_who_hangs_up_has_not_mounted(ground: PluginGround) -> None:
    """Podman waits for some seconds only, and then knows of no mount."""
    ground.client.create("cache", type="tmpfs")
    ground.restart(
        patch="import time; from unionfs.store.volumes import Volumes; hold = Volumes.hold\n"
        "Volumes.hold = lambda *given: (time.sleep(0.3), hold(*given))[1]"
    )
    with connected(ground.socket) as engine:
        engine.sendall(request("/VolumeDriver.Mount", b'{"Name": "cache", "ID": "one"}'))
    time.sleep(0.1)
    client = ground.connect()
    assert client.mount("cache", "two").is_dir()  # after the one that was first
    wait_for(lambda: client.users("cache") == ["two"])
    client.unmount("cache", "two")
    assert ground.mounted() == []
