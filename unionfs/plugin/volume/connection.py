"""HTTP/1.1 over a Unix socket, as far as engines speak it: POST of JSON, answered by JSON.

The standard library reads the requests: it has limits for lines and headers, knows HTTP/1.0,
``Expect`` and how long a connection is to be kept, and blocks nobody but its own process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import FrameType
from typing import Any, Final

from unionfs.errors import UnionError, exit_status
from unionfs.log import Log
from unionfs.plugin.supervisor import Supervisor
from unionfs.plugin.volume.calls import CALLS, Call, Request, Service

#: What engines send has less than a thousandth of this, in bytes.
_BODY_LIMIT: Final = 1 << 20
#: Seconds between requests after which a connection is closed; engines make a new one.
_IDLE: Final = 30.0
#: Seconds in which a request that was begun must be here, and an answer be taken.
_ARRIVAL: Final = 20.0
#: What Docker asks for; Podman takes any.
_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_CHUNK_LINE_LIMIT: Final = 1024

log = Log("unionfs.plugin")


class _RefusedError(Exception):
    """A request that is not the protocol's: an HTTP status, and why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _outcome(call: Call, request: Request) -> tuple[HTTPStatus, dict[str, Any]]:
    """Make *call*, and return the answer, also of a failure."""
    try:
        return HTTPStatus.OK, {"Err": "", **call(request)}
    except Exception as error:
        # The engine hears of it, and we live on.
        if not isinstance(error, UnionError | OSError):
            log.exception("%s: internal error", call.__name__)
        # Docker reads both of status and text, Podman only the status.
        return HTTPStatus.INTERNAL_SERVER_ERROR, {"Err": exit_status(error)[1]}


class Connection(BaseHTTPRequestHandler):
    """One connection of an engine, in a process of its own."""

    protocol_version = "HTTP/1.1"
    #: Nothing is read ahead, so that select(2) tells of all that is there.
    rbufsize = 0
    timeout = _ARRIVAL

    def __init__(self, connection: socket.socket, told: Supervisor, service: Service) -> None:
        # Not by the base class, which would answer all before it returns.
        self.request = connection
        self.client_address = ("", 0)
        self._told = told
        self._service = service
        self._user = os.geteuid()

    def answer(self) -> None:
        """Answer requests until the engine, silence or a signal ends the connection."""
        signal.signal(signal.SIGALRM, _late)
        self.setup()
        self.close_connection = False
        while not self.close_connection and self._is_asked():
            signal.setitimer(signal.ITIMER_REAL, _ARRIVAL)
            try:
                self.handle_one_request()
            except (ConnectionError, TimeoutError) as error:
                log.debug("an engine has hung up, or is to be: %s", error)
                return
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _is_asked(self) -> bool:
        """Wait for the next request; say whether there is one, before we are to end."""
        found = select.select([self.connection, self._told], [], [], _IDLE)[0]
        return self.connection in found and self._told not in found

    def do_POST(self) -> None:
        """Answer one request."""
        try:
            fields, call = self._fields(), self._call()
        except _RefusedError as error:
            self.send_error(error.status, str(error))
            return
        # All is here; what it means may take its time.
        signal.setitimer(signal.ITIMER_REAL, 0)
        with contextlib.ExitStack() as undo:
            status, body = _outcome(call, Request(self._service, fields, undo))
            if status is not HTTPStatus.OK:
                undo.close()
            # Who has hung up does not know that it was done, and will not undo it.
            self._reply(status, body)
            undo.pop_all()

    def _call(self) -> Call:
        """Return what the path stands for. Raises `_RefusedError`."""
        if self.path not in CALLS:
            raise _RefusedError(HTTPStatus.NOT_FOUND, f"{self.path}: no such call")
        return CALLS[self.path]

    def _reply(self, status: HTTPStatus, body: Mapping[str, Any]) -> None:
        if os.geteuid() != self._user:
            self.close_connection = True  # see `Service.owned`
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Content-Length", str(len(text)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that is not the protocol's, and read no further."""
        self.close_connection = True
        self.request_version = self.protocol_version  # of one that says none there is no head
        status = HTTPStatus(code)
        self._reply(status, {"Err": message or explain or status.phrase})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say what the base class has to say: of requests, and of those that were too slow."""
        log.debug(format, *args)

    def _fields(self) -> dict[str, Any]:
        """Return what the body says; as engines have it, an empty one has no fields.

        Raises `_RefusedError`.
        """
        body = b"".join(self._body())
        if not body:
            return {}
        try:
            found = json.loads(body)
            # Half of a character, by its escape, is none that a name or a path may have.
            json.dumps(found, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"not JSON: {error}") from error
        if not isinstance(found, dict):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "not a JSON object")
        return found

    def _body(self) -> Iterator[bytes]:
        """Yield the body of the request in pieces. Raises `_RefusedError`."""
        coding = self.headers.get("Transfer-Encoding")
        length = self.headers.get("Content-Length")
        if coding is None:
            if not _LENGTH.fullmatch(length or "0"):
                raise _RefusedError(HTTPStatus.BAD_REQUEST, f"Content-Length: {length}")
            yield self._exactly(int(length or "0"), _BODY_LIMIT)
            return
        if coding.strip().lower() != "chunked" or length is not None:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"Transfer-Encoding: {coding}")
        left = _BODY_LIMIT
        while size := self._chunk_size():
            yield self._exactly(size, left)
            left -= size
            self._line()
        while self._line().strip():
            pass  # headers that come after the body

    def _chunk_size(self) -> int:
        found = _CHUNK_SIZE.fullmatch(self._line())
        if found is None:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "a chunk without its size")
        return int(found[1], 16)

    def _line(self) -> bytes:
        line = self.rfile.readline(_CHUNK_LINE_LIMIT)
        if not line:
            raise ConnectionAbortedError("in the midst of a request")
        return line

    def _exactly(self, size: int, limit: int) -> bytes:
        if size > limit:
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {_BODY_LIMIT} bytes"
            )
        found = b""
        while len(found) < size:
            piece = self.rfile.read(size - len(found))
            if not piece:
                raise ConnectionAbortedError("in the midst of a request")
            found += piece
        return found


def _late(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("a request that does not come to its end")
