"""What takes long to make is made once: one directory for each thing, named by what it was made of.

Whatever lies there can be removed; it is made again when it is needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.vm.errors import CannotError

#: Bytes that must be free before anything is made.
ROOM = 3 << 30


def place() -> Path:
    """The directory of all that is kept, of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "unionfs-vm"


def made(name: str, of: str, make: Callable[[Path], None]) -> Path:
    """Return the directory *name* that *make* filled, made anew when *of* is another text.

    Two at once, of one name, wait for each other. Raises what *make* raises; then nothing is left.
    """
    key = hashlib.sha256(of.encode()).hexdigest()[:16]
    path = place() / f"{name}-{key}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with (place() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_dir():
            _make(path, make)
    return path


def _make(path: Path, make: Callable[[Path], None]) -> None:
    require_room(path.parent, ROOM)
    unfinished = path.with_name(path.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    start = time.monotonic()
    try:
        make(unfinished)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    say(f"{path.name}: made in {time.monotonic() - start:.0f} s, kept in {path.parent}")


def require_room(directory: Path, size: int) -> None:
    """Raise `CannotError` where *size* bytes are not free."""
    free = shutil.disk_usage(directory).free
    if free < size:
        raise CannotError(f"{directory}: {free >> 20} MB are free, {size >> 20} MB are needed")


def say(what: str) -> None:
    """Tell whoever waits what is going on."""
    sys.stderr.write(f"vm: {what}\n")
    sys.stderr.flush()
