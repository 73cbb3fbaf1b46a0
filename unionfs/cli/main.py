"""Which command is meant, by the name it was called by and by its first argument."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING

from unionfs.cli import usage
from unionfs.cli.output import complain
from unionfs.errors import UnionError, UsageError, exit_status

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

#: Called by one of these names, the program follows mount(8)'s contract for its helpers.
MOUNT8_NAMES = ("mount.unionfs", "mount.fuse.unionfs", "mount.fuse3.unionfs")

#: Commands that have a module of their name, whose ``run`` takes the words after it.
_MODULES = frozenset({"umount", "ls", "diff", "run", "snapshot", "image", "volume", "plugin"})


def program() -> NoReturn:
    """Run the command line of this process, and end it with the exit status."""
    # What is imported stays, so that looking for garbage meanwhile only takes time. A
    # daemon looks for it again.
    gc.disable()
    status = main()
    for stream in (sys.stdout, sys.stderr):
        # None where the caller gave us none; a reader that had enough was met in `main`.
        with contextlib.suppress(OSError, AttributeError):
            stream.flush()
    # Engines wait for our end, and to take an interpreter apart costs as much as a mount.
    os._exit(status)


def main(argv: list[str] | None = None) -> int:
    """Run the command line *argv* (by default the process's own) and return its exit status."""
    program, *arguments = sys.argv if argv is None else argv
    try:
        run = _called_as(os.path.basename(program), arguments) or _command(arguments)
        status = run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output had enough. Python must not try to flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - all have an exit status
        status, line = exit_status(error)
        if status == 4 and not isinstance(error, UnionError):
            sys.excepthook(type(error), error, error.__traceback__)
        complain([line])
    return status


# ruff: noqa: PLC0415 - a mount should not wait for the imports of the other commands
def _called_as(program: str, arguments: list[str]) -> Callable[[], int] | None:
    """Return what to run where the name of the *program* says so."""
    if program in MOUNT8_NAMES:
        from unionfs.cli import mount8

        return lambda: mount8.run(program, arguments)
    if program == usage.FUSE_OVERLAYFS_NAME:
        from unionfs.cli import fuse_overlayfs

        return lambda: fuse_overlayfs.run(arguments)
    return None


def _command(arguments: list[str]) -> Callable[[], int]:
    """Return what to run; each subject is imported only when it is asked for."""
    match arguments:
        case ["mount", *rest]:
            from unionfs.cli import mount_command

            return lambda: mount_command.run(rest, tolerant=False)
        case [name, *rest] if name in _MODULES:
            module = importlib.import_module(f"unionfs.cli.{name}")
            return lambda: module.run(rest)
        case ["-h" | "--help"]:
            return lambda: _say(usage.COMMANDS)
        case []:
            return lambda: _say(usage.COMMANDS, status=1)
        case [word] if not word.startswith("-"):
            raise UsageError(
                f"{word}: no such command, and no -o lowerdir=... to mount there; see --help"
            )
        case _:
            from unionfs.cli import mount_command

            return lambda: mount_command.run(arguments, tolerant=True)


def _say(text: str, status: int = 0) -> int:
    print(text, file=sys.stderr if status else sys.stdout)
    return status
