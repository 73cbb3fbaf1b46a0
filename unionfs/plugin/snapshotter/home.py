"""A store that is containerd's: it has nobody else's snapshots, and one plugin serves it.

containerd removes all snapshots that it does not know. So a store with those of others is
refused, and a second plugin, which another containerd might ask, is too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from unionfs.errors import FailedPreconditionError, PluginError
from unionfs.store.store import Store


@contextlib.contextmanager
def claimed(store: Store) -> Iterator[None]:
    """Let the snapshots of *store*'s driver be containerd's, and nobody serve them meanwhile.

    Raises `FailedPreconditionError` if there are others, `PluginError` if somebody does.
    """
    mark = os.path.join(store.root, f"{store.driver.name}.containerd")
    if not os.path.lexists(mark):
        _require_none(store)
    fd = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PluginError(
                f"{store.root}: another snapshotter serves it; is the plugin running already?"
            ) from error
        yield
    finally:
        os.close(fd)


def _require_none(store: Store) -> None:
    for info in store.driver.walk():
        raise FailedPreconditionError(
            f"{store.root}: has snapshots that containerd does not know, as {info.key}, and would"
            " remove; choose another directory with --root"
        )
