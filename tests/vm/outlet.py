"""What a guest writes, on its way to a slow reader: QEMU drops at its end what nobody took."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable, Iterator
from threading import Thread

#: Of at most 64 KiB each, that wait to be read. With more the guest waits.
_PIECES = 1024


@contextlib.contextmanager
def outlet(fd: int) -> Iterator[Callable[[bytes], None]]:
    """Give what takes data for *fd* at once; at the end of the block it waits for the reader.

    Raises what writing raises, at the next call or at the end.
    """
    waiting: queue.Queue[bytes | None] = queue.Queue(_PIECES)
    errors: list[OSError] = []

    def write() -> None:
        while (data := waiting.get()) is not None:
            try:
                while data and not errors:
                    data = data[os.write(fd, data) :]
            except OSError as error:
                errors.append(error)

    def take(data: bytes) -> None:
        if errors:
            raise errors[0]
        waiting.put(data)

    writer = Thread(target=write, daemon=True)
    writer.start()
    try:
        yield take
    finally:
        waiting.put(None)
        writer.join()
    if errors:
        raise errors[0]
