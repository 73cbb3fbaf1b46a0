"""A store with volumes, opened as often as a test likes, and an end for all that is mounted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import system, tree
from tests.driver.drivers import Kit
from tests.kills import calls_of_child
from tests.mounts import device_minor, mounted_below
from tests.watchdog import Watchdog
from unionfs.errors import UnsupportedError
from unionfs.store.store import Store
from unionfs.store.volume_garbage import cleanup
from unionfs.store.volumes import Volumes


class VolumeGround:
    """A store of one driver on *home*."""

    def __init__(self, kit: Kit, home: Path, watchdog: Watchdog) -> None:
        self.kit = kit
        self.root = home / "store"
        self.base = home.parent
        self._watchdog = watchdog
        self._opened: list[Store] = []
        self.volumes = self.open()

    def open(self) -> Volumes:
        """Open the store, as one more process would."""
        try:
            store = Store.open(str(self.root), self.kit.driver, self.kit.options)
        except UnsupportedError as error:
            pytest.skip(str(error))
        self._opened.append(store)
        return Volumes(store)

    def place(self) -> Path:
        """A new, empty directory."""
        made = self.base / f"at-{os.urandom(4).hex()}"
        made.mkdir()
        return made

    @contextlib.contextmanager
    def at(self, name: str, holder: str | None = None, *extra: str) -> Iterator[Path]:
        """Give a directory that has the volume *name* mounted."""
        target = self.place()
        self.volumes.mount(name, str(target), holder, extra=extra)
        self.guard(target)
        try:
            yield target
        finally:
            self.volumes.unmount(str(target))
            target.rmdir()

    def guard(self, target: Path) -> None:
        """Let no mount hang the test."""
        minor = device_minor(target)
        if minor is not None:
            self._watchdog.arm(minor, 120)

    def write(self, name: str, change: Callable[[Path], None]) -> None:
        """Change the volume *name*."""
        with self.at(name) as root:
            change(root)

    def in_child(self, do: Callable[[Volumes], Any], kill_at: int = 0) -> int:
        """Let a process *do* something; it is killed at its call *kill_at*. The number of calls."""

        def prepare() -> Callable[[], Any]:
            volumes = self.open()
            return lambda: do(volumes)

        return calls_of_child(prepare, kill_at)

    def mounted(self) -> list[str]:
        """What is mounted of the store."""
        return mounted_below(self.root)

    def close(self) -> None:
        """Remove all volumes, and see that nothing is left over."""
        while below := mounted_below(self.base):
            found = [one for one in below if one.startswith(f"{self.base}/at-")]
            if not found:
                break
            system.umount(found[-1], system.MNT_DETACH)
        volumes = self.open()
        for volume in volumes.all():
            for use in volumes.uses(volume):
                volumes.release(use.id)
            volumes.remove(volume.name)
        driver = volumes.store.driver
        for info in reversed(list(driver.walk())):
            if "unionfs.volume" not in info.labels:
                driver.remove(info.key)
        cleanup(volumes.store)
        assert [info.key for info in driver.walk()] == []
        assert self.mounted() == []
        places = self.root / "volumes"
        assert not places.exists() or os.listdir(places) == []
        for store in self._opened:
            store.close()


def assert_same(expected: tree.Tree, found: tree.Tree) -> None:
    """As `tree.assert_same`, but that a union counts no directories in a directory."""
    tree.assert_same(expected, found, ignore=["directory.nlink"])


def only_file(text: str) -> Callable[[Path], None]:
    """Return a change: one file that says *text*."""

    def change(root: Path) -> None:
        (root / "file").write_text(text)

    return change
