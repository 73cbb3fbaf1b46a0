"""Random changes and restarts: every handle leads to its object as long as that lives.

A handle, once taken, is tried after each restart before anybody has looked anything up by name,
and then the names tell what lives.
`UNIONFS_MODEL_EXAMPLES=2000 UNIONFS_TEST_LIMIT=7200 pytest tests/nfs/test_random.py` for more.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.mounts import Layers
from tests.nfs.exported import Exported, fill
from tests.system import RENAME_EXCHANGE, RENAME_NOREPLACE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

EXAMPLES = int(os.environ.get("UNIONFS_MODEL_EXAMPLES", "60"))
STEPS = 30
names = st.sampled_from("abcd")
paths = st.lists(names, min_size=1, max_size=3).map("/".join)

Operation = tuple[Any, ...]


def does(verb: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Operation]:
    return st.tuples(st.just(verb), *arguments)


operations = st.one_of(
    st.just(("restart",)),
    does("create", paths),
    does("mkdir", paths),
    does("symlink", paths),
    does("tmpfile", paths),
    does("write", paths),
    does("write", paths),
    does("link", paths, paths),
    does("link", paths, paths),
    does("unlink", paths),
    does("unlink", paths),
    does("rmdir", paths),
    does("rename", paths, paths, st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])),
    does("rename", paths, paths, st.just(0)),
    does("hold", paths),
    does("release"),
    does("take", paths),
    does("take", paths),
)


@pytest.fixture(scope="module")
def places(module_scratch: Path) -> Iterator[Path]:
    """Directories for one example after the other."""
    return (module_scratch / f"{number}" for number in itertools.count())


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= 60,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
@example(sequence=[("take", "c/a"), ("unlink", "c/a"), ("restart",), ("unlink", "c/b")])
@example(sequence=[("take", "d"), ("unlink", "d"), ("restart",), ("write", "b/a")])
@given(sequence=st.lists(operations, min_size=STEPS // 2, max_size=STEPS))
def test_random_changes(places: Iterator[Path], sequence: list[Operation]) -> None:
    layers = Layers(next(places))
    fill(layers)

    async def run() -> None:
        exported = Exported(layers)
        try:
            for operation in [*sequence, ("restart",)]:
                await exported.step(*operation)
        finally:
            exported.close()

    trio.run(run)
