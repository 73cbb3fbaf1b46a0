"""What can go wrong before a union is mounted, as one tree.

    UnionError            a command failed; `exit_code` is its exit status
    ├── UsageError        1   a bad option or a wrong invocation
    ├── LayerError        32  a layer that cannot be used
    ├── MountError        32  the mount itself failed
    ├── CommandError      125 or more: what `unionfs run` could not run
    ├── PluginError       1   a plugin that cannot have its socket
    └── StoreError        1   a snapshot, an image or a volume
        ├── NotFoundError             there is none of that name
        ├── AlreadyExistsError        the name is taken
        ├── InvalidArgumentError      what was asked for makes no sense
        ├── FailedPreconditionError   not in the state that it is in
        ├── UnsupportedError          not by this driver, user, machine or file system
        ├── ArchiveError              an archive that is broken or not to be trusted
        └── FaultyError               its data are not to be trusted

Exit codes are those of mount(8), where 2 is a system error, 4 a bug of ours and 8 an
interruption: `exit_status` has all of it. Of the store's errors containerd's names are kept,
and Docker's exit status. What a *request* of a mounted union meets is a plain
``OSError(errno, …)`` instead: its number is the answer, and no other class is needed.
"""

from __future__ import annotations

import os


class UnionError(Exception):
    """A command failed; its text is the one line for stderr."""

    exit_code: int = 32


class UsageError(UnionError):
    """A bad option or a wrong invocation."""

    exit_code = 1


class LayerError(UnionError):
    """The layer at *path*, given by *option*, cannot be used for *reason*."""

    def __init__(self, option: str, path: bytes | str, reason: str) -> None:
        # Bytes that are no UTF-8 are shown as the shell would, never raised about.
        shown = os.fsencode(path).decode(errors="backslashreplace")
        super().__init__(f"{option}={shown}: {reason}")
        self.option = option
        self.path = path
        self.reason = reason


class MountError(UnionError):
    """The mount itself failed."""


class CommandError(UnionError):
    """A command could not be run in a container; *exit_code* tells why, as Docker's does."""

    def __init__(self, exit_code: int, line: str) -> None:
        super().__init__(line)
        self.exit_code = exit_code


class PluginError(UnionError):
    """A plugin cannot have the socket that it is to serve."""

    exit_code = 1


class StoreError(UnionError):
    """A snapshot, an image or a volume cannot be had, or not so."""

    exit_code = 1


class NotFoundError(StoreError):
    """There is none of that name."""


class AlreadyExistsError(StoreError):
    """The name is taken."""


class InvalidArgumentError(StoreError):
    """What was asked for makes no sense, whatever the state of things."""


class FailedPreconditionError(StoreError):
    """It cannot be done in the state that things are in."""


class UnsupportedError(StoreError):
    """This driver, user, machine or file system cannot do it."""


class ArchiveError(StoreError):
    """An archive is broken, or has a member that is not to be trusted: nothing of it is kept."""


class FaultyError(StoreError):
    """The data of a snapshot are not to be trusted, after a crash in the midst of a change."""


def exit_status(error: BaseException) -> tuple[int, str]:
    """Return the exit status that *error* means for a command, and the line that explains it."""
    match error:
        case UnionError():
            return error.exit_code, str(error)
        case OSError():
            reason = error.strerror or str(error)
            if error.filename is None:
                return 2, reason
            name = os.fsencode(error.filename).decode(errors="backslashreplace")
            return 2, f"{name}: {reason}"
        case KeyboardInterrupt():
            return 8, "interrupted"
        case _:
            return 4, f"internal error: {error!r}"
