"""Docker's protocol for volume plugins, spoken to the plugin on its socket."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests import system
from tests.container.runner import make_image, wait_for
from tests.plugin.client import Client, connected
from tests.plugin.conftest import PluginGround
from unionfs import registry
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


# Ended, killed, and started again


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


# Requests that are none


def request(path: str, body: bytes, *headers: str, version: str = "1.1") -> bytes:
    """A request as it is sent."""
    lines = [f"POST {path} HTTP/{version}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def exchange(path: Path, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Send *pieces*, and return all that comes back before the plugin hangs up."""
    with connected(path) as engine:
        for piece in pieces:
            try:
                engine.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break  # it has had enough
            time.sleep(pause)
        return rest(engine)


def rest(engine: socket.socket) -> bytes:
    """All that comes back before the plugin hangs up."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := engine.recv(1 << 16):
            found += piece
    return found


def told(answer: bytes) -> tuple[int, str]:
    """The status and the error of one answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["Err"]


CHUNKED = b"POST /VolumeDriver.Create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"

BAD = {
    "not JSON": (request("/VolumeDriver.Create", b"{"), 400, "not JSON"),
    "no object": (request("/VolumeDriver.Create", b"[]"), 400, "not a JSON object"),
    "not UTF-8": (request("/VolumeDriver.Create", b'{"Name": "\xff"}'), 400, "not JSON"),
    "very deep": (request("/VolumeDriver.Create", b"[" * 100_000), 400, "not JSON"),
    "no call": (
        request("/VolumeDriver.Explode", b"{}"),
        404,
        "/VolumeDriver.Explode: no such call",
    ),
    "another path": (request("/", b""), 404, "/: no such call"),
    "another method": (b"GET /VolumeDriver.List HTTP/1.1\r\n\r\n", 501, "Unsupported method"),
    "no length": (
        b"POST /Plugin.Activate HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        400,
        "Content-Length: -1",
    ),
    "too long": (
        b"POST /VolumeDriver.Create HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        413,
        "more than 1048576 bytes",
    ),
    "too long in chunks": (CHUNKED + b"FFFFFFFF\r\n", 413, "more than 1048576 bytes"),
    "too many chunks": (
        CHUNKED + b"".join(b"80000\r\n%s\r\n" % bytes(0x80000) for _ in range(3)),
        413,
        "more than 1048576 bytes",
    ),
    "no chunks": (CHUNKED + b"some bytes\r\n", 400, "a chunk without its size"),
    "both lengths": (
        request("/VolumeDriver.Create", b"{}", "Transfer-Encoding: chunked"),
        400,
        "Transfer-Encoding: chunked",
    ),
    "another coding": (
        b"POST /VolumeDriver.Create HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        400,
        "Transfer-Encoding: gzip",
    ),
    "a long line": (b"POST /" + b"a" * 70_000, 414, ""),
    "many headers": (b"POST / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, ""),
    "a long header": (b"POST / HTTP/1.1\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", 431, ""),
    "another version": (b"POST / HTTP/2.0\r\n\r\n", 505, "Invalid HTTP version"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests(ground: PluginGround, case: str) -> None:
    """Each is told as the protocol tells errors, and the connection ended."""
    sent, status, said = BAD[case]
    found = told(exchange(ground.socket, sent))
    assert found[0] == status
    assert said in found[1]
    ground.connect().create("after")


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", b"\0" * 99, b"POST", b"\x16\x03\x01 hello", request("/x", b"{}")[:-1]]
)
def test_no_requests(ground: PluginGround, sent: bytes) -> None:
    """Who hangs up in the midst, or speaks another protocol."""
    with connected(ground.socket) as engine:
        engine.sendall(sent)
        engine.shutdown(socket.SHUT_WR)
        engine.recv(1 << 16)
    ground.connect().create("after")


def test_good_requests_of_other_forms(ground: PluginGround) -> None:
    """In chunks, after a question, several at once, of the older version."""
    body = b'{"Name": "one"}'
    chunks = CHUNKED + b"1\r\n{\r\ne;x=y\r\n%s\r\n0\r\nAfter: this\r\n\r\n" % body[1:]
    close = request("/Plugin.Activate", b"", "Connection: close")
    found = exchange(ground.socket, chunks + close)
    assert found.count(b"HTTP/1.1 200 OK") == 2
    asking = request("/VolumeDriver.Get", body, "Expect: 100-continue", "Connection: close")
    found = exchange(ground.socket, asking)
    assert found.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    found = exchange(ground.socket, request("/VolumeDriver.Get", body, version="1.0"))
    assert told(found) == (200, "")


def test_slow_engines_are_hung_up_on(ground: PluginGround) -> None:
    """And meanwhile hold up nobody."""
    ground.restart(
        patch="from unionfs.plugin.volume import connection\n"
        "connection._ARRIVAL = connection.Connection.timeout = 0.5; connection._IDLE = 0.5"
    )
    with ThreadPoolExecutor() as threads:
        begun = time.monotonic()
        sent = [bytes([byte]) for byte in request("/VolumeDriver.List", b"{}")]
        slow = threads.submit(exchange, ground.socket, *sent, pause=0.05)
        idle = threads.submit(exchange, ground.socket)
        for _ in range(20):
            ground.client.call("List")
        assert time.monotonic() - begun < 0.5
        assert slow.result() == idle.result() == b""
        assert time.monotonic() - begun < 10


def test_more_connections_than_there_may_be(ground: PluginGround) -> None:
    """They wait for others to end."""
    ground.restart(patch="from unionfs.plugin.volume import server; server._LIMIT = 3")
    with contextlib.ExitStack() as engines:
        *_, last, waiting = [engines.enter_context(connected(ground.socket)) for _ in range(4)]
        waiting.sendall(request("/Plugin.Activate", b"", "Connection: close"))
        waiting.settimeout(0.5)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        waiting.settimeout(10)
        last.close()
        assert told(rest(waiting)) == (200, "")


def test_many_at_once(ground: PluginGround) -> None:
    """Every mount is counted, and nothing is made twice."""

    def work(number: int) -> set[str]:
        client = ground.connect()
        places = set()
        for turn in range(4):
            name = f"vol-{(number + turn) % 3}"
            client.create(name, type="tmpfs")
            places.add(str(client.mount(name, f"id-{number}")))
        for turn in range(4):
            client.unmount(f"vol-{(number + turn) % 3}", f"id-{number}")
        client.close()
        return places

    with ThreadPoolExecutor(12) as threads:
        places = set().union(*threads.map(work, range(24)))
    assert places == {str(ground.root / f"volumes/vol-{n}/_data") for n in range(3)}
    for name in ground.client.names():
        assert ground.client.users(name) == []
    assert ground.mounted() == []


def test_a_bug_is_told_and_survived(ground: PluginGround) -> None:
    ground.restart(
        patch="from unionfs.plugin.volume import calls\n"
        "def broken(_request): raise KeyError('a bug')\n"
        "calls.CALLS['/VolumeDriver.List'] = broken"
    )
    client = ground.connect()
    assert client.refused("List") == "internal error: KeyError('a bug')"
    client.create("after")
    assert "KeyError: 'a bug'" in ground.log.read_text()
    ground.restart()
    ground.log.write_text("")


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
