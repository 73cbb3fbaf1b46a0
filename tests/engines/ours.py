"""Our program as engines get it; whether a mount is one of ours, and which process serves it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.engines.ground import Ground

#: The command as it was installed beside this Python.
UNIONFS = Path(sys.executable).parent / "unionfs"

#: What tells, inside of a container, whether its root file system is ours.
ASK_ROOT = "stat -f -c %t /; head -n 1 /proc/self/mountinfo"

#: FUSE_SUPER_MAGIC: engines take a mount point with another file system for not mounted.
FUSE = "65735546"


def linked(ground: Ground, program: Path = UNIONFS) -> Path:
    """A link to *program* by the name ``fuse-overlayfs``, in a directory of its own."""
    link = ground.base / "bin" / "fuse-overlayfs"
    link.parent.mkdir()
    link.symlink_to(program)
    return link


def assert_ours(answer: str) -> None:
    """Fail unless *answer*, to `ASK_ROOT`, is of a union of ours."""
    kind, mount = answer.splitlines()[:2]
    assert kind == FUSE, answer
    assert " / / " in mount, answer
    assert " - fuse.unionfs " in mount, answer


def assert_ours_at(ground: Ground, target: str) -> None:
    """Fail unless a union of ours is mounted at *target*."""
    assert ground.run("stat", "-f", "-c", "%t", target) == f"{FUSE}\n"
    found = [fields for fields in ground.mountinfo() if fields[4] == target]
    assert [fields[fields.index("-") + 1] for fields in found] == ["fuse.unionfs"]


def daemon(ground: Ground, upper: str) -> str:
    """The number, in *ground*, of the process that serves the union with this upper."""
    (found,) = ground.run("pgrep", "-f", f"upperdir={upper},").split()
    return found
