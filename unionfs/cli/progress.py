"""How far long work is, in one line that a terminal shows as it goes."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Final, Self

from unionfs.cli.output import printable
from unionfs.cli.store_arguments import readable

_INTERVAL: Final = 0.1
_LONGEST_NAME: Final = 24
_CLEAR: Final = "\r\033[K"


class ProgressLine:
    """Shows what is worked on, its bytes so far and their rate; nothing if that is no terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr is not None and os.isatty(sys.stderr.fileno())
        self._what = ""
        self._bytes = 0
        self._begun = self._last = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._what:
            self._write(_CLEAR)

    def __call__(self, what: str, size: int) -> None:
        """Take note of *size* more bytes of *what*."""
        if not self._shown:
            return
        now = time.monotonic()
        if what != self._what:
            self._what, self._bytes, self._begun = what, 0, now
        self._bytes += size
        if now - self._last >= _INTERVAL:
            self._last = now
            rate = self._bytes / max(now - self._begun, _INTERVAL)
            name = what if len(what) <= _LONGEST_NAME else f"…{what[1 - _LONGEST_NAME :]}"
            amounts = f"{readable(self._bytes)}  {readable(int(rate))}/s"
            self._write(f"{_CLEAR}{printable(name)}  {amounts}")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
