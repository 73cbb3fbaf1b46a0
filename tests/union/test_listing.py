"""Directory listings: each name once, true types and numbers, stable while things change."""

from __future__ import annotations

import os
import random
import resource
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import build
from tests.system import Listing, in_child

if TYPE_CHECKING:
    from tests.mounts import Layers
    from tests.oracle import Pair

pytestmark = pytest.mark.needs_root

Mount = Callable[..., Any]
#: The subject of the large listings.
MANY = 200_000


def fill(layers: Layers) -> set[bytes]:
    """Names in all layers, some in several, some whited out; what is to be seen."""
    seen = set()
    assert layers.upper is not None
    for index in range(300):
        name = f"name-{index:03}"
        holders = [layers.upper, *layers.lowers]
        for bit, holder in enumerate(holders):
            if index % 7 + 1 >> bit & 1:
                build.write(holder / "d" / name)
        if index % 5 == 0 and not (layers.upper / "d" / name).exists():
            build.whiteout(layers.upper / "d" / name)
            continue
        seen.add(name.encode())
    return seen


@pytest.fixture
def listing() -> Iterator[Callable[[Path], Listing]]:
    opened: list[Listing] = []

    def open_listing(path: Path) -> Listing:
        opened.append(Listing(path))
        return opened[-1]

    yield open_listing
    for one in opened:
        one.close()


Open = Callable[[Path], Listing]


def test_each_name_once(layers: Layers, union: Mount, listing: Open) -> None:
    seen = fill(layers)
    names = [name for name, _, _ in listing(union().root / "d").rest()]
    assert len(names) == len(set(names))
    assert set(names) - {b".", b".."} == seen
    assert {b".", b".."} <= set(names)


def test_numbers_and_types_are_those_of_stat(layers: Layers, union: Mount, listing: Open) -> None:
    for name, kind in build.KINDS.items():
        kind(layers, f"d/{name}")
        kind(layers, name)
    root = union().root
    (root / "d" / "lower_file").chmod(0o600)
    (root / "d" / "lower_full").rename(root / "d" / "renamed")
    for where in (root, root / "d"):
        for entry, number, kind_number in listing(where).rest():
            status = os.lstat(os.path.join(os.fsencode(where), entry))
            if entry != b".." or where != root:
                assert number == status.st_ino, entry
            assert kind_number == stat.S_IFMT(status.st_mode) >> 12, entry


def test_positions_can_be_returned_to(layers: Layers, union: Mount, listing: Open) -> None:
    fill(layers)
    stream = listing(union().root / "d")
    positions, entries = [], []
    while True:
        positions.append(stream.tell())
        entry = stream.read()
        if entry is None:
            break
        entries.append(entry)
    for index in random.Random(1).sample(range(len(entries)), 60):
        stream.seek(positions[index])
        assert stream.read() == entries[index]
    stream.seek(positions[-1])
    assert stream.read() is None


def test_rewind_sees_the_new_state(layers: Layers, union: Mount, listing: Open) -> None:
    fill(layers)
    root = union().root
    stream = listing(root / "d")
    before = {name for name, _, _ in stream.rest()}
    (root / "d" / "brand-new").touch()
    (root / "d" / "name-001").unlink()
    stream.rewind()
    after = {name for name, _, _ in stream.rest()}
    assert after == before - {b"name-001"} | {b"brand-new"}


def test_open_listing_neither_repeats_nor_loses(
    layers: Layers, union: Mount, listing: Open
) -> None:
    seen = fill(layers)
    for index in range(2000):
        build.write(layers.lowers[0] / "d" / f"more-{index}")
        seen.add(f"more-{index}".encode())
    root = union().root
    rng = random.Random(2)
    stream = listing(root / "d")
    got: list[bytes] = []
    touched: set[bytes] = set()
    while (entry := stream.read()) is not None:
        got.append(entry[0])
        if len(got) % 20 == 0:
            name = os.fsdecode(rng.choice(sorted(seen)))
            touched.add(os.fsencode(name))
            if (root / "d" / name).exists():
                (root / "d" / name).unlink()
            else:
                (root / "d" / name).touch()
            (root / "d" / f"new-{len(got)}").touch()
    assert len(got) == len(set(got))
    assert seen - touched <= set(got)


def test_listing_of_a_removed_directory(layers: Layers, union: Mount, listing: Open) -> None:
    (layers.lowers[0] / "d").mkdir()
    root = union().root
    stream = listing(root / "d")
    (root / "d").rmdir()
    assert [name for name, _, _ in stream.rest() if name not in (b".", b"..")] == []


def test_removal_while_listing_empties_a_directory(
    layers: Layers, union: Mount, listing: Open
) -> None:
    names = fill(layers)
    root = union().root
    stream = listing(root / "d")
    while (entry := stream.read()) is not None:
        if entry[0] not in (b".", b".."):
            os.unlink(os.path.join(os.fsencode(root / "d"), entry[0]))
            names.discard(entry[0])
    assert names == set()
    (root / "d").rmdir()
    assert "d" not in os.listdir(root)


@pytest.mark.kernel_overlay
def test_scandir_after_every_change(pair: Callable[..., Pair]) -> None:
    both = pair(lambda layers: fill(layers) and None)

    def seen(root: Path) -> list[tuple[str, bool]]:
        return sorted((entry.name, entry.is_file()) for entry in os.scandir(root / "d"))

    for step in (
        lambda root: (root / "d" / "name-001").unlink(),
        lambda root: (root / "d" / "name-001").mkdir(),
        lambda root: (root / "d" / "name-002").rename(root / "d" / "z"),
        lambda root: (root / "d" / "name-000").touch(),
        lambda root: os.link(root / "d" / "name-003", root / "d" / "linked"),
        lambda root: (root / "d").rename(root / "e"),
        lambda root: (root / "e").rename(root / "d"),
    ):
        both.same(step)
        both.same(seen)


def _resident(pid: int) -> int:
    """The memory of a process, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.usefixtures("ours_only")
def test_huge_directory(layers: Layers, union: Mount) -> None:
    directory = layers.lowers[0] / "huge"
    directory.mkdir()
    (layers.lowers[1] / "huge").mkdir()
    build.write(layers.lowers[1] / "other", "other")
    made = 0
    for block in range(0, MANY, 50_000):  # ext4 allows 65,000 links of a file
        os.mknod(directory / f"file-{block}")
        for index in range(block + 1, block + 50_000):
            os.link(directory / f"file-{block}", directory / f"file-{index}")
        made += 50_000
    layers.lower_may_change = True  # 200,000 names are compared below instead
    mounted = union(seconds=300.0)

    def count() -> int:
        return sum(1 for _ in os.scandir(mounted.root / "huge"))

    assert count() == made
    first = _resident(mounted.process.pid)
    begun = time.monotonic()
    pauses = in_child(lambda: _pauses_while(count, mounted.root), timeout=120.0)
    # The names are sorted at once, which takes a slow machine longer than anything is to take.
    most = max(0.5, (time.monotonic() - begun) / 2)
    assert max(pauses) < most, f"other requests waited {max(pauses):.2f} s"
    for _ in range(8):
        assert count() == made
    # One listing is more than 16 MB of names. The allocator may keep the room of two or three.
    assert _resident(mounted.process.pid) < first + (64 << 20)


def _pauses_while(work: Callable[[], int], root: Path) -> list[float]:
    """How long requests for another directory took while *work* ran in a child."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    pauses = []
    index = 0
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        index += 1
        begin = time.monotonic()
        (root / f"nothing-{index}").exists()
        pauses.append(time.monotonic() - begin)
        time.sleep(0.01)
    return pauses
