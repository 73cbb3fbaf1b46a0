"""Three systems side by side: our mount, the kernel's overlayfs and a plain directory.

A world holds many equal *slots*, so that one mount serves many sequences of operations; each
sequence has a slot of its own. `World.step` makes one operation on all three and compares.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import build, tree
from tests.mounts import Layers
from tests.oracle import OLD, Pair, Subject
from tests.system import attempt, renameat2

#: Sequences that one mount serves.
SLOTS = 40

#: Where a plain directory counts otherwise than a union.
PLAIN_IGNORES = ("directory.nlink",)

#: After a commit links to names that are covered by then count on.
PLAIN_IGNORES_COMMITTED = ("nlink",)

#: The kernel copies up before it looks whether a rename can be done.
FAILED_IGNORES = ("directory.mtime", "directory.nlink")

Operation = tuple[Any, ...]
Held = dict[int, int]


def fill(layers: Layers) -> None:
    """Equal slots, of everything that layers can hold."""
    for index in range(SLOTS):
        _fill_slot(layers, f"slot{index}")


def _fill_slot(layers: Layers, slot: str) -> None:
    assert layers.upper is not None
    upper, lower, lowest = (layer / slot for layer in (layers.upper, *layers.lowers))
    build.write(lowest / "a" / "a", "lowest a/a")
    build.write(lowest / "a" / "b", "lowest a/b")
    build.write(lowest / "a" / "d" / "a", "lowest a/d/a")
    build.write(lowest / "b" / "a", "lowest b/a")
    build.write(lowest / "c" / "a", "lowest c/a")
    build.write(lowest / "e", "linked")
    os.link(lowest / "e", lowest / "a" / "e")
    build.write(lower / "a" / "b", "lower a/b")
    build.write(lower / "a" / "c" / "b", "lower a/c/b")
    build.whiteout(lower / "a" / "d")
    build.opaque(lower / "c")
    build.write(lower / "c" / "c", "lower c/c")
    build.write(lower / "b" / "b", "lower b/b", 0o640)
    (lower / "d").symlink_to("a")
    (lower / "b" / "d").symlink_to("a")
    build.write(upper / "a" / "c" / "a", "upper a/c/a")
    build.whiteout(upper / "b" / "a")


def _close(held: Held, index: int) -> None:
    if index in held:
        os.close(held.pop(index))


def hold(root: Path, held: Held, path: str, flags: int, index: int) -> None:
    fd = os.open(root / path, flags | os.O_NONBLOCK, 0o644)
    _close(held, index)
    held[index] = fd


def held_state(_root: Path, held: Held, index: int) -> Any:
    if index not in held:
        return None
    status = os.fstat(held[index])
    if stat.S_ISDIR(status.st_mode):
        return sorted(os.listdir(held[index]))
    return status.st_size, status.st_mode, os.pread(held[index], 1 << 16, 0)


def held_links(_root: Path, held: Held, index: int) -> int | None:
    return os.fstat(held[index]).st_nlink if index in held else None


def held_write(_root: Path, held: Held, index: int, data: bytes, offset: int) -> Any:
    return os.pwrite(held[index], data, offset) if index in held else None


def held_truncate(_root: Path, held: Held, index: int, size: int) -> None:
    if index in held:
        os.ftruncate(held[index], size)


def held_chmod(_root: Path, held: Held, index: int, mode: int) -> None:
    if index in held:
        os.fchmod(held[index], mode)


def write(root: Path, _held: Held, path: str, data: bytes, flags: int) -> int:
    fd = os.open(root / path, flags | os.O_WRONLY | os.O_NONBLOCK, 0o644)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operation on one path."""
    return lambda root, _held, path, *rest: function(root / path, *rest)


def two(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operation on two paths."""
    return lambda root, _held, old, new, *rest: function(root / old, root / new, *rest)


VERBS: dict[str, Callable[..., Any]] = {
    "write": write,
    "mkdir": plain(os.mkdir),
    "rmdir": plain(os.rmdir),
    "unlink": plain(os.unlink),
    "rmtree": plain(lambda path: shutil.rmtree(path, ignore_errors=True)),
    "mkfifo": plain(os.mkfifo),
    "symlink": plain(lambda path, target: os.symlink(target, path)),
    "readlink": plain(os.readlink),
    "truncate": plain(os.truncate),
    "chmod": plain(os.chmod),
    "lchown": plain(os.lchown),
    "utime": plain(lambda path, when: os.utime(path, ns=(when, when), follow_symlinks=False)),
    "setxattr": plain(lambda path, value: os.setxattr(path, "trusted.x", value)),
    "removexattr": plain(lambda path: os.removexattr(path, "trusted.x")),
    "link": two(lambda old, new: os.link(old, new, follow_symlinks=False)),
    "rename": two(renameat2),
    "hold": hold,
    "held_state": held_state,
    "held_links": held_links,
    "held_write": held_write,
    "held_truncate": held_truncate,
    "held_chmod": held_chmod,
    "close": lambda _root, held, index: _close(held, index),
}


class World:
    """The three systems and what is held open in each."""

    def __init__(self, base: Path, subject: Subject) -> None:
        self._base = base
        self._subject = subject
        self._pair: Pair | None = None
        self._round = 0
        self._next = SLOTS
        self._held: list[Held] = [{}, {}, {}]
        self.slot = ""
        self.broken = False
        self._committed = self._failed = False

    def begin(self) -> None:
        """Take a fresh slot, in a fresh mount if need be."""
        self.release()
        if self._next == SLOTS or self.broken:
            self.end()
            self._round += 1
            where = self._base / f"round{self._round}"
            self._pair = Pair(where, self._subject, fill, seconds=600.0)
            (where / "plain").mkdir()
            for layers in (self._pair.theirs_layers, self._pair.ours_layers):
                layers.lower_may_change = True  # no check at every remount
            self._next, self.broken, self._committed = 0, False, False
        self.slot = f"slot{self._next}"
        self._next += 1
        self._failed = False
        self._copy_plain()

    @property
    def pair(self) -> Pair:
        assert self._pair is not None
        return self._pair

    @property
    def _plain(self) -> Path:
        return self._base / f"round{self._round}" / "plain" / self.slot

    def _copy_plain(self) -> None:
        shutil.rmtree(self._plain, ignore_errors=True)
        source = self.pair.theirs.root / self.slot
        subprocess.run(["cp", "-a", source, self._plain], check=True)

    def roots(self) -> list[Path]:
        """The slot in the kernel's mount, in ours, and the plain directory."""
        return [self.pair.theirs.root / self.slot, self.pair.ours.root / self.slot, self._plain]

    def release(self) -> None:
        """Close what the sequence held open."""
        for held in self._held:
            for index in list(held):
                _close(held, index)

    def step(self, operation: Operation) -> None:
        """One operation on all, and a comparison of outcomes and trees."""
        verb, *rest = operation
        if verb in ("remount", "swap", "commit"):
            self.release()
            getattr(self, f"_{verb}")()
            return
        theirs, ours, plain_one = (
            attempt(VERBS[verb], root, held, *rest)
            for root, held in zip(self.roots(), self._held, strict=True)
        )
        assert ours == theirs, f"{operation}: the kernel: {theirs}; ours: {ours}"
        self._failed = self._failed or theirs.error is not None
        if verb != "held_links":
            assert ours == plain_one, f"{operation}: a plain directory: {plain_one}; ours: {ours}"
        self.compare()

    def compare(self) -> None:
        """Demand equal trees."""
        theirs, ours, plain_one = (
            tree.snapshot(root, since=self.pair.since) for root in self.roots()
        )
        self._assert_same_unions(theirs, ours)
        ignore = PLAIN_IGNORES_COMMITTED if self._committed else PLAIN_IGNORES
        tree.assert_same(plain_one, ours, ignore=ignore)

    def _assert_same_unions(self, theirs: tree.Tree, ours: tree.Tree) -> None:
        """Equal, but for what operations that failed leave in the kernel's and not in ours."""
        tree.assert_same(theirs, ours, ignore=FAILED_IGNORES if self._failed else ())

    def _remount(self) -> None:
        self.pair.remount()
        self.compare()

    def _swap(self) -> None:
        """The kernel mounts our layers from here on, and ours the kernel's."""
        pair = self.pair
        pair.unmount()
        pair.theirs_layers, pair.ours_layers = pair.ours_layers, pair.theirs_layers
        pair.mount()
        self.compare()

    def _commit(self) -> None:
        """The upper becomes the topmost lower, as when an engine commits an image layer.

        The index ends with the workdir, and with it the links of names that only it holds
        together: the kernel leaves names to it that ours links at once. So all are linked first.
        What is covered by then counts on as a link, so the plain copy is made again.
        """
        self._committed = True
        pair = self.pair
        for root in self.roots():
            _copy_up_links(root)
        pair.unmount()
        for layers in (pair.theirs_layers, pair.ours_layers):
            _commit_upper(layers)
        pair.mount()
        theirs, ours = (tree.snapshot(root, since=pair.since) for root in self.roots()[:2])
        self._assert_same_unions(theirs, ours)
        self._copy_plain()

    def end(self) -> None:
        """Unmount, with all checks unless something failed before."""
        self.release()
        pair, self._pair = self._pair, None
        if pair is None:
            return
        if self.broken:
            pair.abandon()
        else:
            for layers in (pair.theirs_layers, pair.ours_layers):
                layers.lower_may_change = False  # checked here for all sequences at once
            pair.unmount()


def _copy_up_links(root: Path) -> None:
    for name, entry in tree.snapshot(root).items():
        if entry.kind != "directory" and entry.nlink > 1:
            os.lchown(os.path.join(os.fsencode(root), name), entry.uid, entry.gid)


def _commit_upper(layers: Layers) -> None:
    assert layers.upper is not None
    assert layers.work is not None
    shutil.rmtree(layers.work)
    layers.lowers.insert(0, layers.upper)
    generation = len(layers.lowers)
    layers.upper = layers.base / f"upper{generation}"
    layers.work = layers.base / f"work{generation}"
    for directory in (layers.upper, layers.work):
        directory.mkdir()
    os.utime(layers.upper, ns=(OLD, OLD))
