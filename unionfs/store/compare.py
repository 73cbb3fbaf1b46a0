"""What a snapshot changes, for drivers that cannot tell: two trees are mounted and compared."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from unionfs.driver.api import Kind
from unionfs.driver.attach import attach, detach
from unionfs.layer import xattrs
from unionfs.store.store import Store
from unionfs.union.changes import ADDED, CHANGED, DELETED, Change


def snapshot_changes(store: Store, key: str) -> list[Change]:
    """Return what the snapshot *key* changes of its parent, each directory before its entries.

    Raises `NotFoundError`, and what mounting raises.
    """
    driver = store.driver
    if driver.capabilities.diff:
        return list(driver.changes(key))
    info = driver.stat(key)
    if info.kind is Kind.VIEW:
        return []
    with ExitStack() as mounted:
        new = mounted.enter_context(shown(store, key))
        old = mounted.enter_context(shown(store, info.parent)) if info.parent else None
        return list(compare(old, new))


@contextmanager
def shown(store: Store, key: str) -> Iterator[bytes]:
    """Give a directory that shows *key*; a committed one through a view for the time being."""
    driver = store.driver
    with ExitStack() as stack:
        if driver.stat(key).kind is Kind.COMMITTED:
            key = stack.enter_context(store.viewed(key))
        target = stack.enter_context(tempfile.TemporaryDirectory(prefix="unionfs-"))
        stack.callback(store.release_unused, key)
        attach(driver.mounts(key), target)
        stack.callback(detach, target)
        yield os.fsencode(target)


def compare(old: bytes | None, new: bytes) -> Iterator[Change]:
    """Yield what the tree *new* has otherwise than *old*; without *old* all of it is added.

    Files of one size and modification time are taken to be the same, as Docker does.
    """
    yield from _directory(old, new, b"")


def _directory(old: bytes | None, new: bytes, path: bytes) -> Iterator[Change]:
    before = set() if old is None else set(os.listdir(old))
    after = set(os.listdir(new))
    for name in sorted(before | after):
        here = path + b"/" + name
        if name not in after:
            yield Change(DELETED, here)
            continue
        added = os.path.join(new, name)
        status = os.lstat(added)
        below = os.path.join(old, name) if old is not None and name in before else None
        inside = []
        if stat.S_ISDIR(status.st_mode):
            was_directory = below is not None and stat.S_ISDIR(os.lstat(below).st_mode)
            inside = list(_directory(below if was_directory else None, added, here))
        if below is None:
            yield Change(ADDED, here)
        elif inside or not _same(below, added, status):
            yield Change(CHANGED, here)
        yield from inside


def _same(old: bytes, new: bytes, status: os.stat_result) -> bool:
    before = os.lstat(old)
    for field in ("st_mode", "st_uid", "st_gid", "st_rdev", "st_mtime_ns"):
        if getattr(before, field) != getattr(status, field):
            return False
    if not stat.S_ISDIR(status.st_mode) and before.st_size != status.st_size:
        return False
    return _attributes(old) == _attributes(new)


def _attributes(path: bytes) -> dict[bytes, bytes | None]:
    return {name: xattrs.read(path, name) for name in xattrs.names(path)}
