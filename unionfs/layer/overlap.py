"""Which layers may not lie inside each other (the kernel's overlayfs refuses them too)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Protocol

from unionfs.errors import LayerError
from unionfs.layer import syscalls


class OpenLayer(Protocol):
    """An option's directory as ``stack`` has it open."""

    option: str
    path: bytes
    fd: int
    stat: os.stat_result


def refuse_overlaps(lowers: Sequence[OpenLayer], writers: Sequence[OpenLayer]) -> None:
    """Raise ``LayerError`` for a layer that is, or lies in, one it must not share with.

    *writers* are the upper and the work directory: neither may lie in the other, and no
    lower in either. They themselves may lie inside a lower: ``lowerdir=/`` must work.
    """
    roots = {_identity(one.stat): one for one in (*lowers, *writers)}
    writing = {_identity(one.stat) for one in writers}
    seen: dict[tuple[int, int], OpenLayer] = {}
    for one in (*lowers, *writers):
        same = seen.setdefault(_identity(one.stat), one)
        if same is not one:
            raise _overlap(one, "is the same directory as", same)
        for above in _ancestors(one.fd):
            outer = roots.get(above)
            if outer is not None and (one in lowers or above in writing):
                raise _overlap(one, "lies inside", outer)


def _overlap(one: OpenLayer, relation: str, other: OpenLayer) -> LayerError:
    place = os.fsdecode(other.path)
    return LayerError(one.option, one.path, f"{relation} {other.option}={place}")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _ancestors(fd: int) -> Iterator[tuple[int, int]]:
    """Yield what lies above *fd* on its own mount: beyond it, nothing is part of a layer."""
    current = os.dup(fd)
    try:
        below = _identity(os.fstat(current))
        while True:
            flags = os.O_PATH | os.O_DIRECTORY
            try:
                above = syscalls.openat2(current, b"..", flags, syscalls.RESOLVE_NO_XDEV)
            except OSError:
                return
            os.close(current)
            current = above
            identity = _identity(os.fstat(current))
            if identity == below:
                return
            below = identity
            yield identity
    finally:
        os.close(current)
