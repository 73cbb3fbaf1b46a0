"""Copying data: holes kept, sizes exact, and by whatever way the disks offer."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import build, tree
from unionfs.layer.copydata import copy_data

MIB = 1 << 20


@contextmanager
def both(scratch: Path) -> Iterator[tuple[int, int]]:
    """The source, and a new target, open."""
    source = os.open(scratch / "source", os.O_RDONLY)
    target = os.open(scratch / "target", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        yield source, target
    finally:
        os.close(source)
        os.close(target)


def sparse(path: Path) -> bytes:
    """A file with holes at both ends and in between."""
    with open(path, "wb") as file:
        for offset in (MIB, 5 * MIB):
            file.seek(offset)
            file.write(random.Random(offset).randbytes(300_000))
        file.truncate(9 * MIB)
    return path.read_bytes()


def _nothing_copied(*_arguments: Any) -> int:
    return 0


def _cannot(code: int) -> Callable[..., int]:
    def call(*_arguments: Any) -> int:
        raise OSError(code, os.strerror(code))

    return call


WAYS = {
    "as the disk offers": None,
    "copying nothing": _nothing_copied,
    "across file systems": _cannot(errno.EXDEV),
    "not at all": _cannot(errno.EOPNOTSUPP),
}


@pytest.mark.parametrize("way", WAYS)
def test_copies_are_exact_and_sparse(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    content = sparse(scratch / "source")
    if WAYS[way] is not None:
        monkeypatch.setattr(os, "copy_file_range", WAYS[way])
    with both(scratch) as (source, target):
        copy_data(source, target, len(content))
    assert (scratch / "target").read_bytes() == content
    assert tree.data_segments(scratch / "target") == tree.data_segments(scratch / "source")


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB + 5, 5 * MIB + 7, 9 * MIB])
def test_the_beginning_alone(scratch: Path, size: int) -> None:
    content = sparse(scratch / "source")
    with both(scratch) as (source, target):
        copy_data(source, target, size)
    assert (scratch / "target").read_bytes() == content[:size]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_errors_are_raised(scratch: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    build.write(scratch / "source", "content")
    monkeypatch.setattr(os, "copy_file_range", _cannot(code))
    expected = pytest.raises(OSError, match=os.strerror(code))
    with both(scratch) as (source, target), expected:
        copy_data(source, target, 7)


def test_source_that_was_truncated_meanwhile(scratch: Path) -> None:
    build.write(scratch / "source", "short")
    with both(scratch) as (source, target):
        copy_data(source, target, 4096)
    assert (scratch / "target").read_bytes() == b"short" + bytes(4091)
