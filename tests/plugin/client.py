"""An engine's side of Docker's protocol for volume plugins."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, Final, NamedTuple

#: Seconds for one answer.
PATIENCE: Final = 30.0


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: dict[str, Any]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str | Path) -> None:
        super().__init__("plugin.moby.localhost", timeout=PATIENCE)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = connected(self._path)


def connected(path: str | Path) -> socket.socket:
    """A connection to the socket at *path*, with nothing said yet."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(PATIENCE)
    try:
        made.connect(str(path))
    except OSError:
        made.close()
        raise
    return made


def request(path: str, body: bytes, *headers: str, version: str = "1.1") -> bytes:
    """A request as it is sent."""
    lines = [f"POST {path} HTTP/{version}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Client:
    """Calls the plugin at the socket *path*, on one connection as long as that is kept."""

    def __init__(self, path: str | Path) -> None:
        self._connection = _UnixConnection(path)

    def ask(self, path: str, body: bytes = b"", *, method: str = "POST", **headers: str) -> Answer:
        """Send a request, and return the answer; its body must be JSON."""
        self._connection.request(method, path, body, headers)
        answered = self._connection.getresponse()
        return Answer(answered.status, json.loads(answered.read()))

    def call(self, name: str, **fields: Any) -> dict[str, Any]:
        """Make the call ``VolumeDriver.NAME``, which must succeed; the answer."""
        status, body = self.ask(f"/VolumeDriver.{name}", json.dumps(fields).encode())
        assert (status, body.get("Err")) == (200, ""), body
        return body

    def refused(self, name: str, **fields: Any) -> str:
        """Make the call ``VolumeDriver.NAME``, which must fail as the protocol has it; why."""
        status, body = self.ask(f"/VolumeDriver.{name}", json.dumps(fields).encode())
        assert status == 500, body
        assert list(body) == ["Err"]
        assert isinstance(body["Err"], str)
        return body["Err"]

    def create(self, name: str, **options: str) -> None:
        self.call("Create", Name=name, Opts=options or None)

    def mount(self, name: str, holder: str) -> Path:
        return Path(self.call("Mount", Name=name, ID=holder)["Mountpoint"])

    def unmount(self, name: str, holder: str) -> None:
        self.call("Unmount", Name=name, ID=holder)

    def remove(self, name: str) -> None:
        self.call("Remove", Name=name)

    def names(self) -> list[str]:
        return [volume["Name"] for volume in self.call("List")["Volumes"]]

    def users(self, name: str) -> list[str]:
        """The ids that are counted for a volume."""
        found = self.call("Get", Name=name)["Volume"]["Status"]["Users"]
        assert isinstance(found, list)
        return found

    def close(self) -> None:
        self._connection.close()
