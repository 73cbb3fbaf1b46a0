"""How a kernel request becomes a method call: two sessions behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from unionfs.fuse.interface import FileSystem, Session
    from unionfs.options import MountOptions

SESSION_NAMES: Final = ("auto", "device", "pyfuse3")


def open_session(options: MountOptions, filesystem: FileSystem) -> Session:
    """Return the session that *options* name; ``auto`` is the direct one."""
    if options.session == "pyfuse3":
        from unionfs.fuse.libfuse import PyfuseSession

        return PyfuseSession(filesystem)
    from unionfs.fuse.device import DeviceSession

    return DeviceSession(filesystem, options)
