"""Our command, that kills itself just before the K-th change it makes to a disk.

Run as ``python -m tests.crash.killer ARGUMENTS...`` with UNIONFS_KILL_AT=K (0: never) and
UNIONFS_KILL_FILES=PREFIX: changes count while ``PREFIX.armed`` exists, and their number so far
stands in ``PREFIX.count``.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from typing import Any

from tests.crash.changes import CHANGES
from unionfs import cli

_KILL_AT = int(os.environ["UNIONFS_KILL_AT"])
_PREFIX = os.environ["UNIONFS_KILL_FILES"]


class _Counter:
    def __init__(self) -> None:
        self.changes = 0
        self._file = os.open(f"{_PREFIX}.count", os.O_RDWR | os.O_CREAT, 0o600)
        self._pwrite = os.pwrite

    def change(self) -> None:
        if not os.path.exists(f"{_PREFIX}.armed"):
            return
        self.changes += 1
        self._pwrite(self._file, b"%d" % self.changes, 0)
        if self.changes == _KILL_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def _count(counter: _Counter, module: Any, name: str) -> None:
    original = getattr(module, name)

    @functools.wraps(original)
    def counted(*arguments: Any, **options: Any) -> Any:
        if name != "open" or arguments[1] & os.O_CREAT:
            counter.change()
        return original(*arguments, **options)

    setattr(module, name, counted)


def main() -> int:
    counter = _Counter()
    for module, names in CHANGES.items():
        for name in names:
            _count(counter, module, name)
    sys.argv[0] = "unionfs"
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
