"""Docker's protocol for volume plugins, spoken to the plugin on its socket."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests import system
from tests.container.runner import make_image
from tests.plugin.client import Client
from tests.plugin.conftest import PluginGround
from unionfs.store.store import Store
from unionfs.store.volumes import Volumes

pytestmark = pytest.mark.needs_root

#: What Podman calls itself, for all containers.
PODMAN = "2f73349cfc4630255319c6c8dfc1b46a8996ace9d14d8e07563b165915918ec2"


def test_what_it_implements(ground: PluginGround) -> None:
    """As Docker asks, and as Podman does, with whatever body and headers."""
    for body, headers in (
        (b"", {"Accept": "application/vnd.docker.plugins.v1.2+json"}),
        (b"", {"Content-Type": "application/vnd.docker.plugins.v1.1+json", "Host": "plugin"}),
        (b"{}", {"Content-Type": "text/plain"}),
    ):
        answer = ground.client.ask("/Plugin.Activate", body, **headers)
        assert answer == (200, {"Implements": ["VolumeDriver"], "Err": ""})
        answer = ground.client.ask("/VolumeDriver.Capabilities", body, **headers)
        assert answer == (200, {"Capabilities": {"Scope": "local"}, "Err": ""})
        assert ground.client.ask("/VolumeDriver.List", body) == (200, {"Volumes": [], "Err": ""})


def test_a_volume_from_beginning_to_end(ground: PluginGround) -> None:
    client = ground.client
    assert client.refused("Get", Name="data") == "get data: no such volume"
    client.create("data")
    client.create("data")  # Docker has lost it
    place = client.mount("data", "one")
    assert client.mount("data", "two") == place
    (place / "file").write_text("kept")
    assert client.refused("Remove", Name="data") == "remove data: volume is in use - [one, two]"
    client.unmount("data", "one")
    client.unmount("data", "two")
    assert (client.mount("data", "three") / "file").read_text() == "kept"
    client.unmount("data", "three")
    client.remove("data")
    assert client.names() == []
    for call in ("Get", "Path", "Remove"):
        assert "no such volume" in client.refused(call, Name="data")
    assert "no such volume" in client.refused("Mount", Name="data", ID="one")


def test_what_is_told_of_a_volume(ground: PluginGround) -> None:
    client = ground.client
    client.create("some", type="tmpfs", o="size=1m")
    volume = client.call("Get", Name="some")["Volume"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", volume["CreatedAt"])
    age = time.time() - datetime.fromisoformat(volume["CreatedAt"]).timestamp()
    assert -1 <= age < 60
    place = client.mount("some", "one")
    volume = client.call("Get", Name="some")["Volume"]
    assert volume == {
        "Name": "some",
        "Mountpoint": str(place),
        "CreatedAt": volume["CreatedAt"],
        "Status": {
            "Driver": "overlay",
            "Options": {"type": "tmpfs", "o": "size=1m"},
            "Users": ["one"],
        },
    }
    assert client.call("List")["Volumes"] == [volume]
    assert client.call("Path", Name="some")["Mountpoint"] == str(place)


def test_names_and_opts_that_are_none(ground: PluginGround) -> None:
    client = ground.client
    client.call("Create", Name="empty", Opts={})
    client.call("Create", Name="null", Opts=None)
    client.call("Create", Name="without")
    assert client.names() == ["empty", "null", "without"]
    for name in ("", None, 1, ["a"], {"a": 1}):
        assert client.refused("Create", Name=name) == "Name: is missing in the request, or no text"
    assert client.refused("Mount", Name="without") == "ID: is missing in the request, or no text"
    assert "invalid characters" in client.refused("Create", Name="../up")
    no_options: list[Any] = [[], "size=1", {"size": 1}, {"size": None}]
    for options in no_options:
        said = client.refused("Create", Name="bad", Opts=options)
        assert said == "Opts: not an object of texts"
    assert len(client.names()) == 3


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        ({"color": "red"}, 'invalid option: "color"'),
        ({"SIZE": "1m"}, 'invalid option: "SIZE"'),
        ({"SIZE": "1m", "type": "tmpfs", "o": "uid=1"}, 'invalid option: "SIZE"'),
        ({"from": "./here"}, "from=./here: give the absolute path of a directory"),
        ({"size": "1m"}, "the driver overlay cannot limit a volume; use --driver block"),
        ({"type": "nfs", "o": "addr=host"}, 'missing required option: "device"'),
        ({"from": "nothing"}, "from=nothing: no volume, image or directory"),
        ({"driver": "dentist"}, "dentist"),
    ],
)
def test_options_that_make_no_volume(ground: PluginGround, opts: dict[str, str], said: str) -> None:
    assert said in ground.client.refused("Create", Name="bad", Opts=opts)
    assert ground.client.names() == []


def test_one_that_is_there_with_other_options(ground: PluginGround) -> None:
    ground.client.create("one", type="tmpfs")
    said = ground.client.refused("Create", Name="one", Opts={"type": "tmpfs", "o": "size=1m"})
    assert "there is one with other options: type=tmpfs" in said


def test_in_memory(ground: PluginGround) -> None:
    """The limit holds, and what is there from the first use to the last."""
    client = ground.client
    client.create(
        "cache", type="tmpfs", device="tmpfs", o="size=1m,uid=7", SIZE="1m", UID="7", NOQUOTA="true"
    )
    place = client.mount("cache", "one")
    assert place.stat().st_uid == 7
    with pytest.raises(OSError, match="No space left"):
        (place / "big").write_bytes(bytes(2 << 20))
    client.mount("cache", "two")
    client.unmount("cache", "one")
    assert (place / "big").stat().st_size == 1 << 20
    client.unmount("cache", "two")
    assert ground.mounted() == []
    assert list(client.mount("cache", "three").iterdir()) == []


def test_a_size(ground: PluginGround) -> None:
    """Each storage driver keeps volumes beside the others."""
    client = ground.client
    client.create("small", driver="block", size="16m")
    place = client.mount("small", "one")
    with pytest.raises(OSError, match="No space left"):
        (place / "big").write_bytes(bytes(32 << 20))
    assert client.call("Get", Name="small")["Volume"]["Status"]["Driver"] == "block"


def test_a_directory_of_the_host(ground: PluginGround) -> None:
    (ground.base / "host").mkdir()
    ground.client.create("bind", type="none", o="bind", device=str(ground.base / "host"))
    (ground.client.mount("bind", "one") / "file").write_text("here")
    assert (ground.base / "host/file").read_text() == "here"


def test_views_of_an_image(ground: PluginGround) -> None:
    make_image(ground.root, "image")
    client = ground.client
    for name in ("one", "two"):
        client.create(name, **{"from": "image"})
        words = client.mount(name, "id") / "etc/words"
        ground.guard()
        assert words.read_text() == "of the image\n"
        words.write_text("changed")
        assert (words.parents[1] / "bin/sh").exists()


def test_views(ground: PluginGround) -> None:
    """Of a directory and of a volume: what was there is seen, and changed for the view alone."""
    client = ground.client
    host = ground.base / "host"
    host.mkdir()
    (host / "file").write_text("of the host")
    client.create("view", **{"from": str(host)})
    place = client.mount("view", "one")
    ground.guard()
    assert ground.mounted() == ["volumes/view/_data"]
    (place / "file").write_text("changed")
    assert (host / "file").read_text() == "of the host"
    client.create("data")
    (client.mount("data", "one") / "file").write_text("of the volume")
    said = client.refused("Create", Name="copy", Opts={"from": "data"})
    assert "volume is in use by one" in said
    client.unmount("data", "one")
    client.create("copy", **{"from": "data"})
    place = client.mount("copy", "one")
    ground.guard()
    assert (place / "file").read_text() == "of the volume"
    (place / "file").write_text("changed")
    assert (client.mount("data", "one") / "file").read_text() == "of the volume"


# Who uses it


def test_an_id_is_counted_as_often_as_it_comes(ground: PluginGround) -> None:
    """As `docker cp` does on a container that runs, and Podman for all containers."""
    client = ground.client
    client.create("cache", type="tmpfs")
    place, *_ = [client.mount("cache", PODMAN) for _ in range(3)]
    (place / "file").write_text("here")
    assert client.users("cache") == [PODMAN] * 3
    client.unmount("cache", PODMAN)
    ground.restart()
    client = ground.connect()
    client.unmount("cache", PODMAN)
    assert client.users("cache") == [PODMAN]
    assert (place / "file").read_text() == "here"
    client.unmount("cache", PODMAN)
    assert client.users("cache") == []
    assert ground.mounted() == []


def test_an_id_that_is_not_known(ground: PluginGround) -> None:
    client = ground.client
    client.create("cache", type="tmpfs")
    client.mount("cache", "one")
    client.unmount("cache", "two")
    client.unmount("gone", "one")
    assert client.users("cache") == ["one"]


def test_the_command_and_the_plugin_use_it_at_once(ground: PluginGround) -> None:
    """Neither ends what the other has begun."""
    client = ground.client
    client.create("cache", type="tmpfs")
    place = client.mount("cache", "one")
    (place / "file").write_text("shared")
    target = ground.base / "target"
    target.mkdir()
    store = Store.open(str(ground.root), "overlay", {})
    try:
        Volumes(store).mount("cache", str(target), "one")
        client.unmount("cache", "one")
        client.unmount("cache", "one")  # not this one
        assert (target / "file").read_text() == "shared"
        assert client.users("cache") == ["one"]
        client.mount("cache", "two")
        Volumes(store).unmount(str(target))
        assert (place / "file").read_text() == "shared"
    finally:
        store.close()


def test_ids_of_another_boot_are_forgotten(ground: PluginGround) -> None:
    client = ground.client
    client.create("data")
    client.mount("data", "one")
    store = Store.open(str(ground.root), "overlay", {})
    with store.database.write():
        store.database.run("UPDATE uses SET boot = 'the one before'")
    store.close()
    assert client.users("data") == []
    client.unmount("data", "one")
    client.remove("data")


def test_ids_that_a_killed_engine_has_lost(ground: PluginGround) -> None:
    """When it wants to remove the volume, and nobody shows it any more."""
    client, kept = ground.client, ground.base / "kept"
    kept.mkdir()
    client.create("cache", type="tmpfs")
    client.create("plain")
    places = [client.mount(name, "one") for name in ("cache", "plain")]
    for place in places:
        (place / "sub").mkdir()
    time.sleep(0.02)  # the kernel counts in hundredths

    def remove(name: str) -> str:
        """As an engine that has been started since."""
        client = Client(ground.socket)
        found = client.ask("/VolumeDriver.Remove", json.dumps({"Name": name}).encode())
        assert isinstance(found.body["Err"], str)
        return found.body["Err"]

    def elsewhere(place: Path, name: str) -> str:
        """While a mount namespace shows it in which the engine is not."""
        container = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"mount --bind {place}/sub {kept}; echo; exec sleep 60"],
            stdout=subprocess.PIPE,
        )
        with container:
            assert container.stdout is not None
            container.stdout.readline()
            try:
                return str(system.in_child(lambda: remove(name)))
            finally:
                container.kill()

    for name, place in zip(("cache", "plain"), places, strict=True):
        in_use = f"remove {name}: volume is in use - [one]"
        assert client.refused("Remove", Name=name) == in_use
        assert elsewhere(place, name) == in_use
        system.mount(place / "sub", kept, None, system.MS_BIND)
        assert system.in_child(functools.partial(remove, name)) == in_use
        system.umount(kept)
        assert system.in_child(functools.partial(remove, name)) == ""
    assert client.names() == []
    assert ground.mounted() == []


def test_many_at_once(ground: PluginGround) -> None:
    """Every mount is counted, those of one id too, and nothing is made twice."""

    def work(number: int) -> set[str]:
        client = ground.connect()
        places = set()
        for turn in range(4):
            name = f"vol-{(number + turn) % 3}"
            client.create(name, type="tmpfs")
            places.add(str(client.mount(name, f"id-{number % 3}")))
        for turn in range(4):
            client.unmount(f"vol-{(number + turn) % 3}", f"id-{number % 3}")
        client.close()
        return places

    with ThreadPoolExecutor(12) as threads:
        places = set().union(*threads.map(work, range(24)))
    assert places == {str(ground.root / f"volumes/vol-{n}/_data") for n in range(3)}
    for name in ground.client.names():
        assert ground.client.users(name) == []
    assert ground.mounted() == []


# Where the engine runs


def test_an_engine_in_another_mount_namespace(ground: PluginGround) -> None:
    """What it would not see is refused: a container would write to an empty directory."""
    ground.client.create("plain")
    ground.client.create("cache", type="tmpfs")

    def engine() -> tuple[str, str]:
        system.private_mount_namespace()
        client = Client(ground.socket)
        return str(client.mount("plain", "one")), client.refused("Mount", Name="cache", ID="one")

    place, said = system.in_child(engine)
    assert Path(place).is_dir()
    assert "does not see it, being in another mount namespace" in said
    assert ground.client.users("plain") == ["one"]
    assert ground.client.users("cache") == []
    assert ground.mounted() == []


def test_an_engine_that_sees_another_file_system(ground: PluginGround) -> None:
    ground.client.create("plain")

    def engine() -> str:
        system.private_mount_namespace()
        client = Client(ground.socket)
        system.mount("none", ground.root, "tmpfs")
        return client.refused("Mount", Name="plain", ID="one")

    assert "does not see it" in system.in_child(engine)
    assert ground.client.users("plain") == []
