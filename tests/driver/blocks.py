"""A block driver under test: opened, mounted, killed; nothing of it is left afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from unionfs.driver.attach import attach, detach
from unionfs.driver.block import loop
from unionfs.driver.block.driver import BlockDriver
from unionfs.driver.block.export import DAEMON


class Blocks:
    """One home of the block driver in *base*."""

    def __init__(self, base: Path, **options: str) -> None:
        self.base = base
        self.home = base / "home"
        self.options = options
        self._loops: set[tuple[str, str | None]] = set()
        self.driver = self.open()

    def open(self) -> BlockDriver:
        return BlockDriver.open(str(self.home), {"size": "1G", **self.options})

    def device(self, key: str) -> int:
        return self.driver.device(self.driver.metadata.find(key))

    def image(self, key: str) -> Path:
        return self.home / "images" / f"{self.device(key):010}"

    def mount(self, key: str) -> Path:
        """Mount *key*, and leave it so."""
        mounts = self.driver.mounts(key)
        self._loops.add((mounts[0].source, loop.tag_of(mounts[0].source)))
        target = self.base / f"at-{os.urandom(4).hex()}"
        target.mkdir()
        attach(mounts, str(target))
        return target

    @contextlib.contextmanager
    def at(self, key: str) -> Iterator[Path]:
        """Give a directory that shows *key*; it is released afterwards."""
        target = self.mount(key)
        try:
            yield target
        finally:
            detach(str(target))
            self.driver.release(key)

    def commit(self, name: str, parent: str, change: Callable[[Path], object]) -> None:
        """Make the committed snapshot *name* on top of *parent* with what *change* does."""
        self.driver.prepare(f"making {name}", parent)
        with self.at(f"making {name}") as root:
            change(root)
        self.driver.commit(name, f"making {name}")

    def daemons(self) -> list[int]:
        """The processes that serve something of this home."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                if words.startswith(DAEMON.encode()) and os.fsencode(self.home) in words:
                    found.append(int(pid))
        return found

    def kill_daemons(self) -> None:
        """SIGKILL all of them, and wait until they are gone."""
        for pid in self.daemons():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.daemons())

    def end(self) -> None:
        """Remove all, and see that nothing is left over."""
        self.driver.close()
        driver = self.open()
        for info in reversed(list(driver.walk())):
            driver.remove(info.key)
        driver.cleanup()
        assert driver.cleanup() == []
        driver.close()
        assert self.daemons() == []
        assert os.listdir(self.home / "run") == []
        bases = driver_bases(self.home)
        assert sorted(os.listdir(self.home / "images")) == bases, "images of nobody"
        for path, tag in self._loops:
            assert loop.tag_of(path) not in (tag, loop.GONE), f"{path} is left over"


def driver_bases(home: Path) -> list[str]:
    """The images of empty file systems, which stay."""
    driver = BlockDriver.open(str(home), {})
    with contextlib.closing(driver):
        rows = driver.metadata.rows("SELECT id FROM devices WHERE base IS NOT NULL ORDER BY id")
    return [f"{number:010}" for (number,) in rows]


def wait_until(happened: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for what happens soon; fail if it does not."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
