"""Random operations on our mount, on the kernel's overlayfs and on a plain directory.

The number in CI is bounded and its sequences are the same each time. By hand, with others each
time: `UNIONFS_MODEL_EXAMPLES=2000 UNIONFS_TEST_LIMIT=7200 pytest -o faulthandler_timeout=0
tests/model`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.model.world import Operation, World
from tests.oracle import OLD, Subject
from tests.system import RENAME_EXCHANGE, RENAME_NOREPLACE

pytestmark = [pytest.mark.needs_root, pytest.mark.kernel_overlay, pytest.mark.slow]

EXAMPLES = int(os.environ.get("UNIONFS_MODEL_EXAMPLES", "40"))
STEPS = int(os.environ.get("UNIONFS_MODEL_STEPS", "30"))

names = st.sampled_from("abcde")
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
data = st.sampled_from([b"x", b"some data", b"y" * 5000])
flags = st.sampled_from([0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_APPEND])
holds = st.sampled_from(
    [os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_TRUNC, os.O_WRONLY]
)
renames = st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])
# No setuid: it goes with any write here, with a stranger's alone in the kernel's.
modes = st.sampled_from([0o755, 0o600, 0o711, 0o2744, 0o1777, 0o444])
which = st.integers(0, 2)
sizes = st.sampled_from([0, 1, 100, 9000])


def does(verb: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Operation]:
    return st.tuples(st.just(verb), *arguments)


operations = st.one_of(
    does("close", which),  # the first: what a failing sequence is shrunk to
    does("write", paths, data, flags),
    does("write", paths, data, st.just(os.O_CREAT)),
    does("mkdir", paths),
    does("mkdir", paths),
    does("rmdir", paths),
    does("unlink", paths),
    does("unlink", paths),
    does("rmtree", paths),
    does("mkfifo", paths),
    does("symlink", paths, names),
    does("readlink", paths),
    does("truncate", paths, sizes),
    does("chmod", paths, modes),
    does("lchown", paths, sizes, sizes),
    does("utime", paths, st.sampled_from([OLD, OLD + 1])),
    does("setxattr", paths, data),
    does("removexattr", paths),
    does("link", paths, paths),
    does("rename", paths, paths, renames),
    does("rename", paths, paths, renames),
    does("rename", paths, paths, renames),
    does("hold", paths, holds, which),
    does("held_state", which),
    does("held_links", which),
    does("held_write", which, data, sizes),
    does("held_truncate", which, sizes),
    does("held_chmod", which, modes),
    st.sampled_from([("remount",), ("swap",), ("commit",)]),
)


@pytest.fixture(scope="module")
def world(module_scratch: Path, subject: Subject) -> Iterator[World]:
    one = World(module_scratch, subject)
    yield one
    one.end()


def run(world: World, sequence: list[Operation]) -> None:
    world.begin()
    try:
        for operation in sequence:
            world.step(operation)
    except BaseException:
        world.broken = True
        raise


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= 40,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
@example(sequence=[("rename", "a", "z", 0), ("remount",), ("mkdir", "a"), ("swap",)])
@example(sequence=[("write", "e", b"x", 0), ("commit",)])
@given(sequence=st.lists(operations, min_size=STEPS // 2, max_size=STEPS))
def test_random_operations(world: World, sequence: list[Operation]) -> None:
    run(world, sequence)
