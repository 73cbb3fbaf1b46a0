"""What users have reported against fuse-overlayfs and engines on it: that it is not so here.

Each test names the report. The kernel's overlayfs says what is right, wherever it can do the same.
Reports that other files pin as well: deleted files that are open (#175: `test_io.py`), order and
completeness of listings (#46, #318: `test_listing.py`), memory of large directories (#238, #360:
`test_listing.py`), descriptors (#210, #289: `test_daemon.py`), layers that change (#190, #275,
#298, #320: `test_outside_changes.py`), a full disk (`test_copyup_failure.py`), directories that are
renamed (moby#25409, podman#13123: `test_rename.py`), the umask of `xattr_permissions` (#407:
`test_override.py`).
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import build, system
from tests.mounts import Layers
from tests.oracle import Pair
from tests.ordinary import as_user

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

Mount = Callable[..., Any]


def sh(root: Path, script: str) -> None:
    """Run a script, as the report has it, in a union."""
    done = subprocess.run(["sh", "-e", "-c", script], cwd=root, capture_output=True, check=False)
    if done.returncode:
        raise OSError(done.returncode, done.stderr.decode())


def trees(layers: Layers) -> None:
    """Directories with something deep inside, of one layer and of two."""
    lower, lowest = layers.lowers
    for place in (lower, lowest):
        build.write(place / "dir1" / "dir2" / "foo", "foo")
        build.write(place / "parent" / "tree" / "a" / "b" / "info", "lower")
        build.write(place / "parent" / "tree" / "a" / "b" / "page", "lower")
    build.write(lowest / "a" / "b" / "c", "c")
    build.write(lowest / "a" / "b" / "d", "d")
    build.write(lowest / "v" / "A" / "deep" / "er", "x")


#: What is to stay deleted, though a directory of the same name is there again.
AGAIN = {
    "#136": "rm -r dir1; mkdir -p dir1/dir2",
    "#138, moby#42662": "rm -r dir1 && mkdir dir1; touch dir1/visible",
    "#324": "rm -rf v; mkdir -p v; ! stat v/A",
    "#271": "cp -r a bak; rm -rf a; mv bak/b/c bak/b/c2; mv bak a",
    "#478": (
        "rm -rf parent/tree; mkdir -p parent/tree/a/b; echo new > parent/tree/a/b/page;"
        " rm parent/tree/a/b/page; rmdir parent/tree/a/b parent/tree/a parent/tree"
    ),
    "#478, by renames": (
        "mkdir aside; cp -r parent/tree aside/tree; rm -rf parent/tree; mv aside/tree parent/tree;"
        " rm parent/tree/a/b/*; rmdir parent/tree/a/b; mkdir parent/tree/a/b;"
        " rmdir parent/tree/a/b parent/tree/a parent/tree"
    ),
    "#425, #444": (
        "rm -r parent; mkdir -p parent/tree/a; touch parent/tree/a/b; rm -r parent;"
        " mkdir -p parent/tree/a/b/c"
    ),
    "#189, #279": "mkdir new; rm -r a; mv new a; touch a/x; mkdir a/b; ls a/b",
    "#69": "rm a/b/c; mv a/b/d a/b/c; rm a/b/c; touch a/b/c a/b/d",
}


@pytest.mark.parametrize("report", AGAIN)
def test_what_was_deleted_stays_deleted(pair: Callable[..., Pair], report: str) -> None:
    both = pair(trees)
    outcome = both.same(lambda root: sh(root, AGAIN[report]))
    assert outcome.error is None
    both.same_everywhere()


@pytest.mark.parametrize("report", AGAIN)
def test_no_whiteout_is_left_where_nothing_shows_below(
    layers: Layers, union: Mount, kernel: Mount, report: str
) -> None:
    """#306: the kernel lists a whiteout that nothing is below of, and cannot look at it."""
    trees(layers)
    mounted = union()
    sh(mounted.root, AGAIN[report])
    sh(
        mounted.root,
        """
        rm -rf a dir1; mkdir -p a/b; touch a/b/x a/b/y; rm a/b/x; mv a/b/y a/y; mv a/b b
        mkdir -p dir1/dir2 new/newer; mv dir1/dir2 c; touch new/newer/z; rm new/newer/z
        """,
    )
    expected = sorted(mounted.root.rglob("*"))
    mounted.unmount()
    found = sorted(kernel().root.rglob("*"))
    assert found == expected
    for path in found:
        path.lstat()


def test_a_name_is_hidden_in_its_own_directory_only(layers: Layers, union: Mount) -> None:
    """#151, #327: `.wh.test` in the root hid every `test`."""
    build.write(layers.lowers[1] / "test", "x")
    build.write(layers.lowers[1] / "root" / "test", "x")
    build.write(layers.lowers[0] / ".wh.test")
    mounted = union()
    for _ in range(2):
        assert not (mounted.root / "test").exists()
        assert (mounted.root / "root" / "test").read_text() == "x"
        mounted.unmount()
        mounted = union()
    (mounted.root / "root" / "new").mkdir()
    (mounted.root / "root" / "new" / "test").touch()
    mounted.unmount()
    assert (union().root / "root" / "new" / "test").exists()


def linked(layers: Layers) -> None:
    (layers.lowers[0] / "deep" / "dir").mkdir(parents=True)
    first = build.write(layers.lowers[0] / "first", "x")
    os.link(first, layers.lowers[0] / "deep" / "second")
    os.link(first, layers.lowers[0] / "deep" / "dir" / "third")
    build.write(layers.lowers[0] / "single", "x")


def links_at(name: str) -> Callable[[Path], int]:
    return lambda root: (root / name).stat().st_nlink


def test_links_are_counted_whichever_name_is_looked_at(pair: Callable[..., Pair]) -> None:
    """#435: one, two, three, by how many names had been seen. #192: three after the second."""
    both = pair(linked)
    for name in ("deep/second", "first", "deep/dir/third", "deep/second"):
        assert both.same(links_at(name)).value == 3
    both.same(lambda root: os.link(root / "single", root / "another"))
    for name in ("single", "another"):
        assert both.same(links_at(name)).value == 2
    both.same(lambda root: (root / "new").touch())
    both.same(lambda root: os.link(root / "new", root / "new2"))
    assert both.same(links_at("new")).value == 2
    both.same_everywhere()


def test_a_file_does_not_change_the_links_of_its_directory(layers: Layers, union: Mount) -> None:
    """#262, podman#8320: seven became six when a file came."""
    for name in ("a", "b", "c"):
        (layers.lowers[0] / "dir" / name).mkdir(parents=True)
    assert layers.upper is not None
    (layers.upper / "own" / "sub").mkdir(parents=True)
    root = union().root
    before = (root / "own").stat().st_nlink
    (root / "own" / "file").touch()
    assert (root / "own").stat().st_nlink == before == 3


@pytest.mark.parametrize("options", ["", "fast_ino=1"])
def test_directories_of_one_number_are_two(layers: Layers, union: Mount, options: str) -> None:
    """#359: of a directory and a bind mount of it one was missing. #376: `fast_ino` mixed them."""
    build.write(layers.lowers[0] / "a" / "b" / "inside", "x")
    (layers.lowers[0] / "b").mkdir()
    system.mount(layers.lowers[0] / "a" / "b", layers.lowers[0] / "b", None, system.MS_BIND)
    build.write(layers.lowers[1] / "a" / "b" / "lowest", "x")
    root = union(options).root
    assert sorted(os.listdir(root)) == ["a", "b"]
    assert sorted(os.listdir(root / "a")) == ["b"]
    assert sorted(os.listdir(root / "a" / "b")) == ["inside", "lowest"]
    assert (root / "a" / "b").stat().st_ino != (root / "b").stat().st_ino


def test_the_numbers_of_a_plain_listing_are_those_of_stat(layers: Layers, union: Mount) -> None:
    """#391: for names that READDIR told, without attributes, the number was another."""
    for index in range(300):
        build.write(layers.lowers[index % 2] / "many" / f"f{index}", "x")
    mounted = union()
    root = mounted.root
    for _ in range(2):
        listing = system.Listing(root / "many")
        found = {name: number for name, number, _ in listing.rest()}
        listing.close()
        for index in range(300):
            name = f"f{index}"
            assert found[name.encode()] == (root / "many" / name).stat().st_ino
        for index in range(0, 300, 7):
            (root / "many" / f"f{index}").write_text("copied up")


MODES = range(0, 0o10000, 37)


def of_every_mode(layers: Layers) -> None:
    for mode in MODES:
        place = layers.lowers[mode % 2]
        (place / f"d{mode:o}" / "sub").mkdir(parents=True)
        (place / f"d{mode:o}").chmod(mode)
        build.write(place / f"f{mode:o}", "x").chmod(mode)


@pytest.mark.any_session
def test_copies_have_the_modes_of_the_originals(pair: Callable[..., Pair]) -> None:
    """#470: directories of mode 0700 were copied up as 0755. #127, #414: others could not be."""
    both = pair(of_every_mode)

    def change(root: Path) -> None:
        os.umask(0)
        for mode in MODES:
            (root / f"d{mode:o}" / "sub" / "new").touch()
            os.utime(root / f"f{mode:o}", ns=(10**18, 10**18))
            (root / f"made{mode:o}").mkdir(mode)
            os.close(os.open(root / f"opened{mode:o}", os.O_CREAT | os.O_WRONLY, mode))

    assert both.same(change).error is None
    os.umask(0o022)
    both.same_everywhere()


def _closed_directory(root: Path) -> None:
    (root / "test").mkdir()
    (root / "test").chmod(0o111)
    os.listxattr(root / "test")
    (root / "test").rmdir()
    assert not (root / "test").exists()


READ_ONLY: dict[str, Callable[[Path], Any]] = {
    "#307: unlink": lambda root: (root / "file").unlink(),
    "#307: chmod": lambda root: (root / "file").chmod(0o644),
    "#377: rename": lambda root: (root / "file").rename(root / "moved"),
    "#377: replace": lambda root: (root / "other").rename(root / "file"),
    "#414: mkdir 0555": lambda root: (root / "new").mkdir(0o555),
    "#135: remove a directory without permissions": _closed_directory,
    "#265: sed -i": lambda root: sh(root, "sed -i s/x/y/ file"),
    "rm -rf": lambda root: shutil.rmtree(root / "dir"),
}


@pytest.mark.parametrize("report", READ_ONLY)
def test_what_may_not_be_written_can_be_replaced(
    layers: Layers, rootless: Callable[..., Any], report: str
) -> None:
    """By an ordinary user, whose daemon is bound by the modes of its own files."""
    build.write(layers.lowers[0] / "file", "x", 0o444)
    build.write(layers.lowers[0] / "other", "other", 0o400)
    build.write(layers.lowers[0] / "dir" / "inner", "x", 0o444)
    root = rootless().root
    as_user(lambda: READ_ONLY[report](root))


@pytest.mark.parametrize("over", ["the first lower", "the last lower", "upper"])
def test_a_union_can_hide_one_of_its_own_layers(layers: Layers, union: Mount, over: str) -> None:
    """#344, #364, #393: it served itself, or hung; layers are open before the mount is there."""
    build.write(layers.lowers[0] / "a.txt", "first")
    build.write(layers.lowers[0] / "c.txt", "first")
    build.write(layers.lowers[1] / "a.txt", "last")
    build.write(layers.lowers[1] / "d" / "b.txt", "last")
    assert layers.upper is not None
    places = {
        "the first lower": layers.lowers[0],
        "the last lower": layers.lowers[1],
        "upper": layers.upper,
    }
    layers.merged = places[over]
    mounted = union()
    root = mounted.root
    assert sorted(os.listdir(root)) == ["a.txt", "c.txt", "d"]
    assert (root / "a.txt").read_text() == "first"
    (root / "d" / "b.txt").write_text("changed")
    (root / "a.txt").unlink()
    (root / "new").touch()
    assert sorted(os.listdir(root)) == ["c.txt", "d", "new"]
    mounted.unmount()
    assert (layers.upper / "d" / "b.txt").read_text() == "changed"
    assert (layers.upper / "new").exists()


PAGE = 4096
PAGES = 2048


def content(number: int, version: int) -> bytes:
    return (b"page %d version %d " % (number, version)).ljust(PAGE, b".")


def test_a_database_is_whole_after_its_first_writes(layers: Layers, union: Mount) -> None:
    """#475, #333, #108, runner-images#14597: pages of an inherited rpmdb stood at wrong offsets.

    Several write at once, some by mappings that are older than the copy, while others read;
    then every page must be what its writer wrote last.
    """
    for index in range(4):
        with (layers.lowers[index % 2] / f"db{index}").open("wb") as file:
            for page in range(PAGES):
                file.write(content(page, 0))
    root = union().root
    dice = random.Random(5)
    for index in range(4):
        path = root / f"db{index}"
        expected = {page: content(page, 0) for page in range(PAGES)}
        pages = list(range(PAGES))
        dice.shuffle(pages)
        shares = [pages[number::6][:120] for number in range(6)]
        wrong: list[str] = []
        start = threading.Barrier(8)
        threads = [
            *(threading.Thread(target=_pwrite, args=(path, share, start)) for share in shares[:3]),
            *(threading.Thread(target=_by_map, args=(path, share, start)) for share in shares[3:]),
            *(threading.Thread(target=_read, args=(path, wrong, start)) for _ in range(2)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for page in (page for share in shares for page in share):
            expected[page] = content(page, 3)
        assert wrong == []
        data = path.read_bytes()
        assert len(data) == PAGES * PAGE
        bad = [page for page, wanted in expected.items() if data[page * PAGE :][:PAGE] != wanted]
        assert bad == []


def _pwrite(path: Path, pages: list[int], start: threading.Barrier) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        start.wait(30)
        for version in (1, 2, 3):
            for page in pages:
                os.pwrite(fd, content(page, version), page * PAGE)
            os.fsync(fd)
    finally:
        os.close(fd)


def _by_map(path: Path, pages: list[int], start: threading.Barrier) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[0:4] == b"page"  # it is there before the copy
        start.wait(30)
        for version in (1, 2, 3):
            for page in pages:
                mapped[page * PAGE : (page + 1) * PAGE] = content(page, version)
            mapped.flush()


def _read(path: Path, wrong: list[str], start: threading.Barrier) -> None:
    with path.open("rb") as file:
        start.wait(30)
        for _ in range(3):
            for page in range(0, PAGES, 5):
                found = os.pread(file.fileno(), PAGE, page * PAGE)
                if not found.startswith(b"page %d version " % page):
                    wrong.append(f"page {page}: {found[:30]!r}")
