"""What is remembered of which layer has which name must never change what is found.

The oracle is the one walk down all the layers, without anything remembered.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import build
from tests.mounts import Layers
from tests.union.client import CALLER, Client, opened
from unionfs.fuse.interface import ROOT_ID, DirectoryEntry, ListedName
from unionfs.layer import names as layer_names
from unionfs.layer.names import NameSet
from unionfs.union import listing, lookup, merge, placeindex, sieve, snapshot
from unionfs.union.merge import Found
from unionfs.union.nodes import DirNode
from unionfs.union.tree import MergedTree

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

NAMES = "abcde"


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories are read at the first question that is asked in vain."""
    monkeypatch.setattr(placeindex, "_PATIENCE", -1000)
    monkeypatch.setattr(layer_names, "_FEW", 2)


def questions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The names that layers are asked for from now on."""
    asked: list[bytes] = []
    original = os.stat

    def counted(path: Any, **options: Any) -> os.stat_result:
        if options.get("dir_fd") is not None:
            asked.append(path)
        return original(path, **options)

    monkeypatch.setattr(os, "stat", counted)
    return asked


def described(found: Found | None) -> object:
    if found is None:
        return None
    places = [(place.layer.index, place.path()) for place in found.places]
    return found.status.st_ino, found.name, places, found.redirect


def outcome(find: Callable[[], Found | None]) -> object:
    try:
        return described(find())
    except OSError as error:
        return error.errno


def assert_true(tree: MergedTree, node: DirNode) -> None:
    """Everything that is remembered of *node* and below finds what the plain walk finds."""
    for name in (os.fsencode(name) for name in (*NAMES, "x", "absent")):
        upper = node.upper
        quick = outcome(functools.partial(lookup.find, tree, node, name))
        known = None if upper is None else upper.names
        if upper is not None:
            upper.names = None
        plain = outcome(functools.partial(merge.find, tree.stack.lowers, node.places(), name))
        assert quick == plain, name
        if upper is not None:
            upper.names = known
    for letter in NAMES:
        try:
            child = lookup.child(tree, node, os.fsencode(letter))
        except OSError:
            continue
        if isinstance(child, DirNode):
            child.lookups = 1  # held, so that what is remembered of it lives
            assert_true(tree, child)
        elif child is not None:
            tree.nodes.drop_unknown(child)


def _write(holder: Path, path: str) -> None:
    build.write(holder / path, path)


def _mkdir(holder: Path, path: str) -> None:
    (holder / path).mkdir(parents=True)


def _aufs_whiteout(holder: Path, path: str) -> None:
    build.write((holder / path).parent / f".wh.{Path(path).name}")


def _aufs_opaque(holder: Path, path: str) -> None:
    build.write(holder / path / ".wh..wh..opq")


PARTS: list[Callable[[Path, str], None]] = [
    _write,
    _write,
    _mkdir,
    _mkdir,
    lambda holder, path: build.whiteout(holder / path),
    lambda holder, path: build.xattr_whiteout(holder / path),
    lambda holder, path: build.opaque(holder / path),
    lambda holder, path: build.redirect(holder / path, "a"),
    lambda holder, path: build.redirect(holder / path, "/b/c"),
    _aufs_whiteout,
    _aufs_opaque,
]

CHANGES: list[Callable[[Client, str, str], Awaitable[Any]]] = [
    lambda c, one, _: c.create(one),
    lambda c, one, _: c.mkdir(one),
    lambda c, one, _: c.symlink(one, b"target"),
    lambda c, one, _: c.unlink(one),
    lambda c, one, _: c.rmdir(one),
    lambda c, one, _: c.chmod(one, 0o700),
    lambda c, one, _: c.names(one),
    lambda c, one, two: c.rename(one, two),
    lambda c, one, two: c.rename(one, two, 2),
    lambda c, one, two: c.link(one, two),
]

paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
parts = st.tuples(st.integers(0, 3), st.sampled_from(range(len(PARTS))), paths)
changes = st.tuples(st.sampled_from(range(len(CHANGES))), paths, paths)


@settings(
    max_examples=int(os.environ.get("UNIONFS_SIEVE_EXAMPLES", "60")),
    deadline=None,
    database=None,
    derandomize="UNIONFS_SIEVE_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(content=st.lists(parts, max_size=25), steps=st.lists(changes, max_size=15))
def test_nothing_remembered_is_wrong(
    scratch: Path,
    eager: None,
    content: list[tuple[int, int, str]],
    steps: list[tuple[int, str, str]],
) -> None:
    base = scratch / "union"
    layers = Layers(base, 3)
    assert layers.upper is not None
    for place, part, path in content:
        try:
            PARTS[part]([layers.upper, *layers.lowers][place], path)
        except OSError:
            continue  # something else stands there
    try:
        trio.run(_try_all, layers, steps)
    finally:
        shutil.rmtree(base)


async def _try_all(layers: Layers, steps: list[tuple[int, str, str]]) -> None:
    with opened(layers) as client:
        tree = client.fs._tree
        for change, one, two in steps:
            with contextlib.suppress(OSError):
                await CHANGES[change](client, one, two)
            assert_true(tree, tree.nodes.root)


@pytest.fixture
def many(scratch: Path) -> Layers:
    """A directory in 40 layers, each with a name of its own, and a file in the last."""
    layers = Layers(scratch / "many", 40)
    for index, lower in enumerate(layers.lowers):
        build.write(lower / "d" / f"own-{index}")
    for index in range(50):
        build.write(layers.lowers[-1] / "d" / f"file-{index}")
    return layers


async def test_layers_that_cannot_matter_are_not_asked(
    many: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(many) as client:
        async with client.node("d") as node:
            await client.absent(node, b"nothing")
            asked = questions(monkeypatch)
            for index in range(50):
                name = b"file-%d" % index
                client.took(client.fs.lookup(node, name))
                await client.absent(node, b"nothing-%d" % index)
            assert sorted(asked) == sorted(b"file-%d" % index for index in range(50))


async def test_a_listing_answers_lookups(many: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(many) as client:
        async with client.node("d") as node:
            await client.names("d")
            asked = questions(monkeypatch)
            await client.absent(node, b"nothing")
            client.took(client.fs.lookup(node, b"own-20"))
            assert asked == [b"own-20"]


async def test_what_was_just_made_is_known(many: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(many) as client:
        node = client.took(client.fs.mkdir(ROOT_ID, b"new", 0o755, CALLER))
        await client.create("new/file")
        asked = questions(monkeypatch)
        await client.absent(node, b"nothing")
        assert asked == []
        assert await client.names("new") == ["file"]


async def test_no_timeout_remembers_nothing(many: Layers) -> None:
    many.lower_may_change = True
    with opened(many, timeout=0.0) as client:
        await client.mkdir("new")
        for path in ("d", "new"):
            async with client.node(path) as node:
                assert "late" not in await client.names(path)
                await client.absent(node, b"late")
                holder = many.lowers[7] if path == "d" else many.upper
                assert holder is not None
                build.write(holder / path / "late")
                client.took(client.fs.lookup(node, b"late"))
                assert "late" in await client.names(path)


async def test_what_is_remembered_ages(many: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    many.lower_may_change = True
    with opened(many, timeout=100.0) as client:
        async with client.node("d") as node:
            await client.names("d")
            build.write(many.lowers[3] / "d" / "late")
            await client.absent(node, b"late")
            later = time.monotonic() + 11
            monkeypatch.setattr(sieve, "monotonic", lambda: later)
            client.took(client.fs.lookup(node, b"late"))


async def test_a_large_directory_is_not_read_for_a_few_lookups(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3000):
        build.write(layers.lowers[0] / "d" / f"file-{index}")
    (layers.lowers[1] / "d").mkdir()
    with opened(layers) as client:
        async with client.node("d") as node:
            for index in range(30):
                await client.absent(node, b"nothing-%d" % index)
            tree = client.fs._tree
            assert tree.nodes.get(node).sieve.index is None
            for index in range(1000):
                await client.absent(node, b"nothing-%d" % index)
            assert tree.nodes.get(node).sieve.index is not None


async def test_sieves_are_bounded_and_end_with_their_directories(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sieve, "_MOST_NAMES", 30)
    for directory, index in itertools.product("abcdef", range(10)):
        build.write(layers.lowers[0] / directory / f"file-{index}")
    with opened(layers) as client:
        tree = client.fs._tree
        held = [client.took(client.fs.lookup(ROOT_ID, bytes([one]))) for one in b"abcdef"]
        for node in held:
            list(await client.fs.readdir_plus(node, 0))
        assert 20 <= tree.sieves._total <= 30
        for node in held:
            client.forget(node)
        assert tree.sieves._total == 0


def test_name_sets_grow() -> None:
    names = [b"%d" % index for index in range(5000)]
    one = NameSet(names[:100], 0.0)
    for name in names[100:]:
        assert name not in one
        one.add(name)
    assert all(name in one for name in names)
    assert b"other" not in one
    assert len(one) == len(names)


async def test_directories_that_ignore_case_are_asked(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of ext4 with casefold do: they have names that they do not list."""
    build.write(layers.lowers[0] / "d" / "Name")
    (layers.lowers[1] / "d").mkdir()
    original = os.stat

    def folded(path: Any, **options: Any) -> os.stat_result:
        if isinstance(path, bytes) and path.lower() == b"name":
            path = b"Name"
        return original(path, **options)

    with opened(layers) as client:
        async with client.node("d") as node:
            monkeypatch.setattr(os, "stat", folded)
            await client.names("d")
            client.took(client.fs.lookup(node, b"nAME"))


# Listings


async def entries(client: Client, node: int, offset: int) -> list[DirectoryEntry | ListedName]:
    return list(await client.fs.readdir_plus(node, offset))


@pytest.mark.parametrize("forgets", [False, True], ids=["kept", "forgotten"])
@pytest.mark.parametrize("hashes", [(1 << 28) - 2, 100], ids=["", "colliding"])
async def test_positions_survive_changes(
    layers: Layers, monkeypatch: pytest.MonkeyPatch, forgets: bool, hashes: int
) -> None:
    """Neither repeats nor loses a name that stays, whatever is kept of the snapshot."""
    monkeypatch.setattr(snapshot, "_HASHES", hashes)
    stays = {f"stays-{index}" for index in range(150)}
    for name in stays:
        build.write(layers.lowers[0] / "d" / name)
    for index in range(50):
        build.write(layers.lowers[0] / "d" / f"goes-{index}")
    with opened(layers) as client:
        async with client.node("d") as node:
            got: list[str] = []
            offset = 0
            step = 0
            while batch := (await entries(client, node, offset))[:7]:
                got += [os.fsdecode(one.name) for one in batch]
                offset = batch[-1].offset
                # Among names of one hash the order must not change under a reader.
                if step < 50 and hashes > 100:
                    await client.unlink(f"d/goes-{step}")
                    await client.create(f"d/new-{step}")
                step += 1
                if forgets:
                    client.fs._listings.drop(client.fs._nodes.get(node))
            assert len(got) == len(set(got))
            assert stays <= set(got)


async def test_positions_fit_32_bits(layers: Layers) -> None:
    for index in range(500):
        build.write(layers.lowers[0] / f"file-{index}")
    with opened(layers) as client:
        offsets = [one.offset for one in await entries(client, ROOT_ID, 0)]
        assert offsets == sorted(set(offsets))
        assert offsets[-1] < 1 << 31


async def test_names_alone_have_the_numbers_of_stat(layers: Layers) -> None:
    for name, kind in build.KINDS.items():
        kind(layers, f"zoo/{name}")
    with opened(layers) as client:
        await client.chmod("zoo/lower_file", 0o600)
        await client.rename("zoo/lower_full", "zoo/renamed")
        for _ in range(2):
            async with client.node("zoo") as node:
                plain = list(await client.fs.readdir_names(node, 0))
                full = {one.name: one for one in await entries(client, node, 0)}
                assert {one.name for one in plain} == set(full)
                for name, offset, number, kind_number in plain:
                    listed = full[name]
                    assert offset == listed.offset
                    if isinstance(listed, ListedName):
                        assert listed == (name, offset, number, kind_number)
                        continue
                    assert listed.entry is not None
                    attr = listed.entry.attr
                    assert (number, kind_number) == (attr.ino, attr.status.st_mode & 0o170000)
        assert len(client.fs._nodes) == 1


async def test_a_copy_made_while_listing_is_seen(layers: Layers) -> None:
    for index in range(50):
        build.write(layers.lowers[0] / "d" / f"file-{index}", "x")
    with opened(layers) as client:
        async with client.node("d") as node:
            first = (await entries(client, node, 0))[5]
            for index in range(50):
                await client.chmod(f"d/file-{index}", 0o601)
            for one in await entries(client, node, first.offset):
                assert isinstance(one, DirectoryEntry)
                assert one.entry is not None
                assert one.entry.attr.status.st_mode & 0o777 == 0o601


async def test_snapshots_are_not_kept_for_long(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        build.write(layers.lowers[0] / name / "file")
    with opened(layers) as client:
        kept = client.fs._listings._kept
        async with client.node("a") as one, client.node("b") as two:
            last = (await entries(client, one, 0))[-1].offset
            assert len(kept) == 1
            assert await entries(client, one, last) == []
            assert len(kept) == 0, "read to its end"
            await entries(client, one, 0)
            later = time.monotonic() + 61
            monkeypatch.setattr(listing, "monotonic", lambda: later)
            await entries(client, two, 0)
            assert [node.name for node in kept] == [b"b"]
