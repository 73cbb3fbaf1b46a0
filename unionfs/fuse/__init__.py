"""How a kernel request becomes a method call: two sessions behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from unionfs.errors import UsageError

if TYPE_CHECKING:
    from unionfs.fuse.interface import FileSystem, Session
    from unionfs.options import MountOptions

SESSION_NAMES: Final = ("auto", "device", "pyfuse3")


def open_session(options: MountOptions, filesystem: FileSystem) -> Session:
    """Return the session that *options* name; ``auto`` is the direct one.

    To let in root beside the mounting user is the work of libfuse, so that this is for the
    session on it. Raises `UsageError` where it cannot be had.
    """
    needs_libfuse = "allow_root" in options.fuse_options
    if needs_libfuse and options.session == "device":
        raise UsageError("allow_root: not with session=device, only with session=pyfuse3")
    if needs_libfuse or options.session == "pyfuse3":
        try:
            from unionfs.fuse.libfuse import PyfuseSession
        except ImportError as error:
            raise UsageError(f"session=pyfuse3: not available: {error}") from error

        return PyfuseSession(filesystem, options)
    from unionfs.fuse.device import DeviceSession

    return DeviceSession(filesystem, options)
