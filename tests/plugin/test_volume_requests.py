"""HTTP as engines speak it, and as nobody should."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.plugin.client import connected, request
from tests.plugin.conftest import PluginGround

pytestmark = pytest.mark.needs_root


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
    "half a character": (request("/VolumeDriver.Get", b'{"Name": "\\ud800"}'), 400, "not JSON"),
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
    "a length of many digits": (
        b"POST /Plugin.Activate HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        400,
        "Content-Length: 999",
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
