"""The front door: mount options become layers, layers a `UnionFS`, and that is served.

In the background the caller's process only waits: everything, the opening of the layers
included, happens in the daemon, and what goes wrong before the mount is live is raised by
`mount` as if it had happened here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from unionfs import daemon
from unionfs.errors import MountError, UnionError, UsageError
from unionfs.fuse import SESSION_NAMES, mounting
from unionfs.layer.stack import LayerStack
from unionfs.log import OUTPUT
from unionfs.options import require_layers, with_defaults

if TYPE_CHECKING:
    from unionfs.daemon import Ready
    from unionfs.namespace import MountNamespace
    from unionfs.options import MountOptions

_FUSE_CONF = "/etc/fuse.conf"


def mount(
    options: MountOptions, target: bytes, *, foreground: bool, home: MountNamespace | None = None
) -> None:
    """Mount the union that *options* name on *target*.

    In the *foreground* this serves the mount until it is unmounted or a signal ends it;
    else it returns when a daemon does so and the mount is live. A daemon with a *home* goes
    there once it has mounted: the mount then ends with the mount namespace it was made in.
    Nothing stays mounted when it raises
    `UnionError` or ``OSError``.
    """
    daemon.fill_standard_descriptors()
    options = _checked(options)
    place = _resolve_target(target)
    OUTPUT.debug = options.debug
    if foreground:
        _serve(options, place, lambda: None, home)
        return
    before = {entry.mount_id for entry in mounting.unions() if entry.target == place}
    try:
        daemon.start(
            lambda ready: _serve(options, place, ready, home), keep=mounting.device_of(place)
        )
    except (UnionError, KeyboardInterrupt):
        _clear(place, before)
        raise


def check(options: MountOptions, target: bytes) -> None:
    """Raise what `mount` would raise about *options*, the layers and *target*; mount nothing."""
    options = _checked(options)
    _resolve_target(target)
    LayerStack.check(options)


def _checked(options: MountOptions) -> MountOptions:
    """Return *options* with the defaults of this user. Raises `UnionError`."""
    require_layers(options)
    if options.session not in SESSION_NAMES:
        names = ", ".join(SESSION_NAMES)
        raise UsageError(f"session={options.session}: not available, choose one of {names}")
    conf = ""
    with (
        contextlib.suppress(OSError),
        open(_FUSE_CONF, encoding="utf-8", errors="replace") as file,
    ):
        conf = file.read()
    return with_defaults(
        options,
        privileged=os.geteuid() == 0,
        user_allow_other=mounting.allows_other_users(conf),
    )


def _resolve_target(target: bytes) -> bytes:
    """Return the absolute path of *target*, which must be a directory to mount on."""
    if (given := mounting.device_of(target)) is not None:
        if not mounting.is_device(given):
            raise MountError(f"{os.fsdecode(target)}: not an open /dev/fuse")
        return target
    try:
        place = mounting.resolve(target)
    except OSError as error:
        raise MountError(f"{os.fsdecode(target)}: {error.strerror}") from error
    if place == b"/proc":
        raise MountError("/proc: the daemon needs it, a union cannot take its place")
    require_directory(target, os.fsdecode(target))
    return place


def require_directory(target: str | bytes, shown: str) -> None:
    """Raise `MountError`, about *shown*, unless *target* is a directory to mount something on."""
    try:
        if stat.S_ISDIR(os.stat(target).st_mode):
            return
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise MountError(
                f"{shown}: the daemon of what is mounted here has died; unmount that first, by"
                f" unionfs umount {shown}"
            ) from error
    raise MountError(f"{shown}: not a directory")


def _clear(place: bytes, before: set[int]) -> None:
    """Unmount what a daemon that is dead has left on *place* beyond the mounts *before*."""
    for entry in mounting.unions():
        if entry.target == place and entry.mount_id not in before:
            with contextlib.suppress(MountError):
                mounting.unmount(place, lazy=True)


def _serve(options: MountOptions, place: bytes, ready: Ready, home: MountNamespace | None) -> None:
    # The FUSE library and trio take longer to import than all the rest; only the server pays.
    from unionfs.service import serve  # noqa: PLC0415 - see above

    serve(options, place, ready, home)
