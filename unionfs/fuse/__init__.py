"""How a kernel request becomes a method call: two sessions behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from unionfs.errors import UsageError

if TYPE_CHECKING:
    from unionfs.fuse.interface import FileSystem, Session

SESSION_NAMES: Final = ("auto", "pyfuse3")


def open_session(name: str, filesystem: FileSystem) -> Session:
    """Return the session called *name*; ``auto`` is the fastest that works here."""
    if name not in SESSION_NAMES:
        raise UsageError(f"session={name}: not available; choose one of {', '.join(SESSION_NAMES)}")
    # Imported late: whoever only prints a version must not load pyfuse3 and trio.
    from unionfs.fuse.libfuse import PyfuseSession

    return PyfuseSession(filesystem)
