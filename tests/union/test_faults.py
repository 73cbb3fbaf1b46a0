"""A disk that fails once, at every point of every operation.

`UnionFS` is called directly. Each operation is made again and again on fresh layers, and the
first, second, ... call that would change a disk fails with EIO. Then either the operation is done
or nothing has changed; the union that saw the failure goes on, and does the operation when it is
asked again; and whoever mounts the layers next sees the same.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from tests.crash.changes import CHANGES
from tests.crash.operations import make
from tests.mounts import Layers
from tests.system import RENAME_EXCHANGE
from tests.union.client import Client, opened
from unionfs.layer.syscalls import FS_APPEND_FL, FS_IMMUTABLE_FL, FS_NOATIME_FL

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

Operation = Callable[[Client], Awaitable[None]]

OPERATIONS: dict[str, Operation] = {
    "chmod": lambda c: c.chmod("deep/down/file", 0o4711),
    "chown": lambda c: c.chown("deep/down/file", 7, 7),
    "setxattr": lambda c: c.setxattr("deep/down/file", b"user.colour", b"red"),
    "write": lambda c: c.write("deep/down/file", b"written"),
    "write to a large file": lambda c: c.write("large", b"written", 1000),
    "truncate": lambda c: c.truncate("large", 100),
    "change one of two names": lambda c: c.truncate("links/a", 3),
    "punch a hole": lambda c: c.fallocate("large", 0x3, 0, 8192),
    "copy a range": lambda c: c.copy_range("deep/down/file", "large", 3),
    "chattr": lambda c: c.chattr("deep/down/file", FS_NOATIME_FL),
    "chattr +i": lambda c: c.chattr("deep/down/file", FS_IMMUTABLE_FL | FS_NOATIME_FL),
    "chattr +a a directory": lambda c: c.chattr("tree", FS_APPEND_FL),
    "chown a link": lambda c: c.chown("symlink", 7, 7),
    "chmod a directory": lambda c: c.chmod("tree", 0o700),
    "chmod a lower directory": lambda c: c.chmod("pure", 0o700),
    "unlink lower": lambda c: c.unlink("deep/down/file"),
    "unlink one of two names": lambda c: c.unlink("links/b"),
    "unlink upper over lower": lambda c: c.unlink("both"),
    "unlink upper": lambda c: c.unlink("mine"),
    "rmdir merged": lambda c: c.rmdir("emptied"),
    "mkdir over whiteout": lambda c: c.mkdir("deleted", 0o750),
    "symlink over whiteout": lambda c: c.symlink("deleted", b"elsewhere"),
    "create": lambda c: c.create("pure/new", 0o640),
    "create without a name, then link": lambda c: c.tmpfile("pure/new"),
    "and over a whiteout": lambda c: c.tmpfile("deleted"),
    "mkdir": lambda c: c.mkdir("pure/new"),
    "mknod": lambda c: c.mknod("deep/down/fifo", 0o010644),
    "link": lambda c: c.link("deep/down/file", "pure/hard"),
    "link to a linked one": lambda c: c.link("links/a", "pure/hard"),
    "rename lower": lambda c: c.rename("deep/down/file", "pure/moved"),
    "rename over lower": lambda c: c.rename("mine", "deep/down/file"),
    "rename over whiteout": lambda c: c.rename("mine", "deleted"),
    "rename one of two names": lambda c: c.rename("links/a", "pure/a"),
    "rename over one of two names": lambda c: c.rename("mine", "links/b"),
    "rename lower directory": lambda c: c.rename("pure", "renamed"),
    "rename merged directory away": lambda c: c.rename("tree", "deep/tree"),
    "rename directory over whiteout": lambda c: c.rename("my", "deleted"),
    "rename directory over merged": lambda c: c.rename("tree", "emptied"),
    "exchange": lambda c: c.rename("tree", "deep/down/file", RENAME_EXCHANGE),
    "exchange directories": lambda c: c.rename("tree", "pure", RENAME_EXCHANGE),
}


class Faults:
    """Counts the calls that change a disk, and lets one of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.fail_at = 0
        self.failed = ""
        for module, names in CHANGES.items():
            for name in names:
                monkeypatch.setattr(module, name, self._wrapped(getattr(module, name)))

    def arm(self, fail_at: int) -> None:
        """From here on count; 0 lets nothing fail."""
        self.calls, self.fail_at, self.failed = 0, fail_at, ""

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def call(*arguments: Any, **options: Any) -> Any:
            if original.__name__ != "open" or arguments[1] & os.O_CREAT:
                self.calls += 1
                if self.calls == self.fail_at:
                    self.failed = original.__name__
                    raise OSError(5, "the disk fails")
            return original(*arguments, **options)

        return call


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


def fresh(base: Path) -> Layers:
    layers = Layers(base)
    assert layers.upper is not None
    make(layers.upper, *layers.lowers)
    layers.remember_lowers()
    return layers


async def _with_a_fault(base: Path, faults: Faults, operation: Operation, at: int) -> Any:
    """What the operation came to, what showed then, and what shows to the next mount."""
    layers = fresh(base)
    with opened(layers) as client:
        old = await client.tree()
        faults.arm(at)
        error = await _attempt(operation, client)
        calls = faults.calls
        faults.arm(0)
        seen = await client.tree()
    with opened(layers) as client:
        assert await client.tree() == seen, f"the next mount sees something else ({faults.failed})"
    layers.check_lowers()
    return old, error, seen, calls


async def _attempt(operation: Operation, client: Client) -> OSError | None:
    try:
        await operation(client)
    except OSError as error:
        return error
    return None


@pytest.mark.parametrize("name", OPERATIONS)
async def test_one_failure_at_any_change(scratch: Path, faults: Faults, name: str) -> None:
    operation = OPERATIONS[name]
    old, error, new, calls = await _with_a_fault(scratch / "good", faults, operation, 0)
    assert error is None
    assert calls > 0
    assert new != old
    for at in range(1, calls + 1):
        found = await _with_a_fault(scratch / f"{at}", faults, operation, at)
        wanted = old if found[1] is not None else new
        assert found[2] == wanted, f"call {at} of {calls} ({name}), which said {found[1]}"


@pytest.mark.parametrize("name", OPERATIONS)
async def test_asked_again_it_is_done(scratch: Path, faults: Faults, name: str) -> None:
    operation = OPERATIONS[name]
    _, _, new, calls = await _with_a_fault(scratch / "good", faults, operation, 0)
    for at in range(1, calls + 1):
        layers = fresh(scratch / f"{at}")
        with opened(layers) as client:
            faults.arm(at)
            first = await _attempt(operation, client)
            faults.arm(0)
            if first is not None:
                await operation(client)
            assert await client.tree() == new, f"call {at} of {calls}"
        layers.check_lowers()
