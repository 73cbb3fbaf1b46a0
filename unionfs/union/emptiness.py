"""Whether a directory shows anything, however many whiteouts it holds."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Final

from unionfs.union import merge
from unionfs.waiting import blocking

if TYPE_CHECKING:
    from unionfs.union.nodes import DirNode

#: Entries looked at before other requests get their turn.
AT_ONCE: Final = 2000


def version_of(node: DirNode) -> int:
    """Return a number that changes with every name that the upper directory gets."""
    return -1 if node.upper is None else node.upper.version


async def is_empty(node: DirNode) -> bool:
    """Say whether nothing shows in *node* when this returns.

    Gives way to others while it passes over many whiteouts; should they bring names, it
    looks again.
    """
    while True:
        version = version_of(node)
        if await _shows_something(node):
            return False
        if version == version_of(node):
            return True


async def _shows_something(node: DirNode) -> bool:
    source = merge.look_through(node.places())
    while True:
        batch = list(itertools.islice(source, AT_ONCE))
        if any(entry is not None for entry in batch):
            return True
        if len(batch) < AT_ONCE:
            return False
        await blocking(os.sched_yield)
