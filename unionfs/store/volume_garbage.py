"""Snapshots that were volumes' and are nobody's: of a removed one, or left by a crash."""

from __future__ import annotations

import contextlib
import os

from unionfs.driver import registry
from unionfs.driver.api import Driver
from unionfs.errors import FailedPreconditionError, NotFoundError, UnsupportedError
from unionfs.store.store import Store
from unionfs.store.uses import Subject
from unionfs.store.volume import LABEL
from unionfs.store.volume_tree import clear_place


def drop(store: Store, driver: Driver, key: str) -> int:
    """Remove the snapshot *key*, and those below it that were volumes' and are nobody's now.

    Return the bytes that came free.
    """
    freed = 0
    with contextlib.suppress(NotFoundError, FailedPreconditionError):
        while key:
            info = driver.stat(key)
            used = store.uses.of(Subject("snapshot", driver.name, key))
            if LABEL not in info.labels or used:
                break
            size = driver.usage(key).size
            driver.remove(key)
            freed += size
            key = info.parent
    return freed


def cleanup(store: Store) -> list[str]:
    """Remove snapshots that were volumes' and are nobody's, left by a crash; return them."""
    gone: list[str] = []
    for name in registry.names():
        if not os.path.isdir(os.path.join(store.root, name)):
            continue
        try:
            driver = store.driver_called(name)
        except UnsupportedError:
            continue  # what it keeps stays, for a machine or a user that can
        # In this order: who makes one is its user until its row is there.
        found = [info.key for info in driver.walk() if LABEL in info.labels]
        used = {use.subject for use in store.uses.all()}
        rows = store.database.rows("SELECT data FROM volumes WHERE driver = ?", (name,))
        known = {row[0] for row in rows}
        for key in reversed(found):
            if key not in known and Subject("snapshot", name, key) not in used:
                clear_place(store, key)
                with contextlib.suppress(NotFoundError, FailedPreconditionError):
                    driver.remove(key)
                    gone.append(key)
    return gone
