"""The service behind its socket: calls over gRPC, errors as status codes, an orderly end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from socket import socket
from typing import Any, Final

import grpc

from unionfs.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnionError,
    UnsupportedError,
    exit_status,
)
from unionfs.log import Log
from unionfs.plugin.snapshotter import messages
from unionfs.plugin.snapshotter.home import claimed
from unionfs.plugin.snapshotter.protobuf import MalformedError, decode, encode
from unionfs.plugin.snapshotter.relay import relay
from unionfs.plugin.snapshotter.service import Snapshots
from unionfs.plugin.socket import private, require_short
from unionfs.plugin.supervisor import Supervisor
from unionfs.store.store import Store

log = Log("unionfs.snapshotter")

#: Calls that are worked on at once; others wait.
_WORKERS: Final = 16
#: Seconds that calls have to come to their end once the plugin is told to.
_GRACE: Final = 30.0
#: containerd's own limit, each way.
_LARGEST: Final = 16 << 20

#: Bytes of an error's text. Of all metadata gRPC takes 8 KiB, in which other than ASCII is tripled.
_TEXT_LIMIT: Final = 2000

#: containerd's errors are told by these codes (its package errdefs); of all others only the text.
_CODES: Final[dict[type[Exception], grpc.StatusCode]] = {
    MalformedError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
}


def serve(listener: socket, supervisor: Supervisor, store: Store) -> None:
    """Answer on *listener* with the snapshots of *store* until *supervisor* says to end.

    Calls that are being worked on then come to their end, others are refused (UNAVAILABLE).
    Raises `PluginError` and what `claimed` raises.
    """
    inner = os.path.join(os.path.realpath(store.root), "grpc")
    require_short(inner)
    with claimed(store), ThreadPoolExecutor(_WORKERS, "call") as workers:
        server = grpc.server(
            workers,
            handlers=[_handlers(Snapshots(store))],
            options=[
                ("grpc.max_receive_message_length", _LARGEST),
                ("grpc.max_send_message_length", _LARGEST),
            ],
        )
        with private():  # the store's directory may be one that others can enter
            server.add_insecure_port(f"unix:{inner}")
        server.start()
        supervisor.ready()
        relay(listener, inner, until=supervisor)
        supervisor.stopping()
        server.stop(_GRACE).wait()


def _handlers(service: Snapshots) -> grpc.GenericRpcHandler:
    """Return what answers each call of the API."""
    unary: dict[str, tuple[Callable[[Any], object], type]] = {
        "Prepare": (service.prepare, messages.PrepareSnapshotRequest),
        "View": (service.view, messages.ViewSnapshotRequest),
        "Mounts": (service.mounts, messages.MountsRequest),
        "Commit": (service.commit, messages.CommitSnapshotRequest),
        "Remove": (service.remove, messages.RemoveSnapshotRequest),
        "Stat": (service.stat, messages.StatSnapshotRequest),
        "Update": (service.update, messages.UpdateSnapshotRequest),
        "Usage": (service.usage, messages.UsageRequest),
        "Cleanup": (service.cleanup, messages.CleanupRequest),
    }
    handlers = {name: _unary(name, *each) for name, each in unary.items()}
    handlers["List"] = _stream("List", service.list, messages.ListSnapshotsRequest)
    return grpc.method_handlers_generic_handler(messages.SERVICE, handlers)


def _unary(name: str, call: Callable[[Any], object], kind: type) -> grpc.RpcMethodHandler:
    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        with _failures_told(name, context):
            return encode(call(decode(kind, data)))

    return grpc.unary_unary_rpc_method_handler(answer)


def _stream(
    name: str, call: Callable[[Any], Iterator[object]], kind: type
) -> grpc.RpcMethodHandler:
    def answer(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        with _failures_told(name, context):
            yield from map(encode, call(decode(kind, data)))

    return grpc.unary_stream_rpc_method_handler(answer)


@contextlib.contextmanager
def _failures_told(name: str, context: grpc.ServicerContext) -> Iterator[None]:
    """Answer an exception of the block with its code and its text; a bug is logged as well."""
    try:
        yield
    except MalformedError as error:
        context.abort(_CODES[MalformedError], _short(f"{name}: not a message of the API: {error}"))
    except (UnionError, OSError) as error:
        context.abort(
            _CODES.get(type(error), grpc.StatusCode.UNKNOWN), _short(exit_status(error)[1])
        )
    except Exception as error:
        log.exception("%s failed", name)
        context.abort(grpc.StatusCode.INTERNAL, _short(f"{name}: internal error: {error!r}"))


def _short(text: str) -> str:
    """Return as much of *text* as a reply may have of it: a key may be as long as a request."""
    told = text.encode(errors="backslashreplace")
    end = "…" if len(told) > _TEXT_LIMIT else ""
    return told[:_TEXT_LIMIT].decode(errors="ignore") + end
