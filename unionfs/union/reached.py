"""The way to an object, open for as long as it is needed."""

from __future__ import annotations

import os


class Reached:
    """What leads to an object for a while: see ``MergedTree.object``."""

    __slots__ = ("_own", "_target")

    def __init__(self, target: bytes | int, own: int = -1) -> None:
        self._target = target
        #: The descriptor that was opened for it, else -1.
        self._own = own

    def __enter__(self) -> bytes | int:
        return self._target

    def __exit__(self, *_: object) -> None:
        if self._own >= 0:
            os.close(self._own)
