from __future__ import annotations

import errno

import pytest

from unionfs.errors import LayerError, MountError, UnionError, UsageError, exit_status


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("bad"), 1, "bad"),
        (LayerError("lowerdir", b"/x", "No such file"), 32, "lowerdir=/x: No such file"),
        (LayerError("upperdir", b"/\xff\n", "r"), 32, "upperdir=/\\xff\n: r"),
        (MountError("no"), 32, "no"),
        (OSError(errno.ENOSPC, "No space left", "/f"), 2, "/f: No space left"),
        (OSError(errno.ENOSPC, "No space left"), 2, "No space left"),
        (KeyboardInterrupt(), 8, "interrupted"),
        (ValueError("x"), 4, "internal error: ValueError('x')"),
    ],
)
def test_exit_statuses_are_those_of_mount(error: BaseException, status: int, line: str) -> None:
    assert exit_status(error) == (status, line)


def test_all_errors_of_commands_are_of_one_tree() -> None:
    assert all(issubclass(one, UnionError) for one in (UsageError, LayerError, MountError))
