"""``unionfs plugin``: what container engines ask by a socket, served until a signal ends it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from socket import socket
from typing import Final

from unionfs import daemon
from unionfs.cli import usage
from unionfs.cli.arguments import Arguments
from unionfs.cli.store_arguments import grammar, open_store
from unionfs.cli.verbs import Verb, run_verb
from unionfs.errors import UnsupportedError
from unionfs.plugin.socket import listening
from unionfs.plugin.supervisor import Supervisor
from unionfs.store.store import Store

_SERVING: Final = grammar(valued={"socket"})
#: Where Docker looks for the plugin of a name.
_VOLUME_SOCKET: Final = "/run/docker/plugins/unionfs.sock"
#: What the configuration of containerd in the documentation names.
_SNAPSHOTTER_SOCKET: Final = "/run/unionfs-snapshotter.sock"


def run(argv: list[str]) -> int:
    """Serve what *argv*, the words after ``plugin``, says. Raises `UnionError`."""
    daemon.fill_standard_descriptors()
    return run_verb("plugin", VERBS, usage.PLUGIN, argv)


def _serve(arguments: Arguments, default: str, serve: Callable[[socket, Supervisor], None]) -> None:
    """Let *serve* answer on the socket that *arguments* or systemd name, by default *default*.

    It says when it is ready, and returns after it was told to end.
    """
    gc.enable()  # other than a command, it lives for long
    with (
        Supervisor(os.environ) as supervisor,
        listening(arguments.last("socket"), default, os.environ) as listener,
    ):
        serve(listener, supervisor)


def _volume(store: Store, arguments: Arguments) -> None:
    from unionfs.plugin.volume.server import serve  # noqa: PLC0415 - not for other plugins

    # A process for each connection uses the store, and each opens it for itself.
    store.close()

    def opened() -> AbstractContextManager[Store]:
        return open_store(arguments, founds=True)

    def owned() -> AbstractContextManager[Store]:
        return open_store(arguments, as_owner=True, founds=True)

    _serve(
        arguments,
        _VOLUME_SOCKET,
        lambda listener, supervisor: serve(listener, supervisor, opened, owned),
    )


def _snapshotter(store: Store, arguments: Arguments) -> None:
    try:
        from unionfs.plugin.snapshotter.server import serve  # noqa: PLC0415 - not for other plugins
    except ModuleNotFoundError as error:
        if error.name != "grpc":
            raise
        # There may be several Pythons, and Debian's own takes no packages of pip's.
        command = f"{sys.executable} -m pip install grpcio"
        raise UnsupportedError(f"grpcio is missing: {command}") from error

    _serve(
        arguments,
        _SNAPSHOTTER_SOCKET,
        lambda listener, supervisor: serve(listener, supervisor, store),
    )


#: Each plugin with what it takes; in the order that --help tells them.
VERBS: Final[dict[str, Verb]] = {
    "volume": Verb(_volume, _SERVING, 0, 0, founds=True),
    # containerd removes what it does not know: nobody else's snapshots may be there.
    "snapshotter": Verb(_snapshotter, _SERVING, 0, 0, founds=True, apart="-snapshotter"),
}
