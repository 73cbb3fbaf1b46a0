"""Our command over layers that take their time: what has `slow` in its name is read in SECONDS."""

from __future__ import annotations

import sys
import time

from unionfs import cli
from unionfs.union.files import OpenFiles
from unionfs.waiting import blocking

SECONDS = 2.0

_read = OpenFiles.read


async def _slow_read(self: OpenFiles, number: int, offset: int, size: int) -> bytes | memoryview:
    if b"slow" in self.get(number).node.name:
        await blocking(time.sleep, SECONDS)
    return await _read(self, number, offset, size)


if __name__ == "__main__":
    OpenFiles.read = _slow_read  # type: ignore[method-assign]
    sys.argv[0] = "unionfs"
    sys.exit(cli.main())
