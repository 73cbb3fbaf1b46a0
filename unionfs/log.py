"""What the daemon has to say: on stderr while its caller listens, then in the system's log.

Written here because the standard library's logging takes as long to import as a tenth of a
mount's start, and engines wait for mounts by the thousand.
"""

from __future__ import annotations

import contextlib
import os
import sys
import syslog
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SYSLOG = "/dev/log"
_PRIORITIES = {
    "CRITICAL": syslog.LOG_CRIT,
    "ERROR": syslog.LOG_ERR,
    "WARNING": syslog.LOG_WARNING,
    "DEBUG": syslog.LOG_DEBUG,
}


class Output:
    """Where lines go; one for the process."""

    def __init__(self) -> None:
        self.debug = False
        self.write: Callable[[str, str], None] = to_stderr

    def line(self, name: str, level: str, text: str) -> None:
        """Write a line that the part *name* has to say."""
        if level != "DEBUG" or self.debug:
            self.write(level, f"{name}: {level}: {text}")


def to_stderr(_level: str, line: str) -> None:
    """Write to stderr, which may be closed."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


def to_syslog(level: str, line: str) -> None:
    """Write to the system's log."""
    text = line.encode(errors="backslashreplace").decode()
    syslog.syslog(_PRIORITIES.get(level, syslog.LOG_INFO), text.replace("\0", "\\0"))


def _nowhere(_level: str, _line: str) -> None:
    pass


def connect() -> Callable[[str, str], None]:
    """Return what writes to syslog, or nowhere if there is none."""
    if not os.path.exists(_SYSLOG):
        return _nowhere
    # Connected now: later something may be mounted on the way.
    syslog.openlog("unionfs", syslog.LOG_PID | syslog.LOG_NDELAY, syslog.LOG_DAEMON)
    return to_syslog


OUTPUT = Output()


class Log:
    """What one part of the program says; *arguments* are put into the message by ``%``."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, message: str, *arguments: object) -> None:
        """Say what helps to find a mistake."""
        if OUTPUT.debug:
            OUTPUT.line(self._name, "DEBUG", message % arguments)

    def info(self, message: str, *arguments: object) -> None:
        """Say what somebody has asked for."""
        OUTPUT.line(self._name, "INFO", message % arguments)

    def warning(self, message: str, *arguments: object) -> None:
        """Say what an administrator should know."""
        OUTPUT.line(self._name, "WARNING", message % arguments)

    def exception(self, message: str, *arguments: object) -> None:
        """Say what failed, with where the present exception came from."""
        text = f"{message % arguments}\n{described(sys.exc_info()[1])}"
        OUTPUT.line(self._name, "ERROR", text)

    def critical(self, message: str, error: BaseException) -> None:
        """Say what ends the program, and where *error* came from."""
        OUTPUT.line(self._name, "CRITICAL", f"{message}\n{described(error)}")


def described(error: BaseException | None) -> str:
    """Return where *error* and its causes came from, without lines of source code.

    The files that these would be read from may be inside of our own mount.
    """
    lines = []
    while error is not None:
        lines.append(f"{type(error).__name__}: {error}")
        place = error.__traceback__
        while place is not None:
            code = place.tb_frame.f_code
            lines.append(f"  {code.co_filename}:{place.tb_lineno} {code.co_qualname}")
            place = place.tb_next
        error = error.__cause__ or error.__context__
    return "\n".join(lines)
