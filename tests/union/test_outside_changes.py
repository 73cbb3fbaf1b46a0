"""Layers changed from outside: after `timeout` the union shows what a fresh mount would.

The oracle is the kernel's overlayfs, mounted anew and read-only over the same layers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import build, system
from tests.mounts import Layers
from tests.system import attempt

if TYPE_CHECKING:
    from tests.oracle import Subject

OPENLESS_TOO = True

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.kernel_overlay,
    pytest.mark.usefixtures("ours_only"),
]

NAMES = ["a", "b", "d/a", "d/b", "d"]
#: Seconds; and how long after a change it must show.
TIMEOUTS = {"0": 0.0, "0.05": 0.07}

View = dict[str, tuple[Any, ...]]


class Grounds:
    """Layers that others change, a union over them, and fresh mounts to compare it with."""

    def __init__(self, base: Path, subject: Subject, options: str, patience: float) -> None:
        self.layers = Layers(base)
        self.layers.lower_may_change = True
        self.fresh = base / "fresh"
        self.fresh.mkdir()
        self.patience = patience
        self.held: list[tuple[int, int]] = []
        assert self.layers.upper is not None
        self.holders = [self.layers.upper, *self.layers.lowers]
        mounted: Any = subject(self.layers, options, seconds=500.0)
        self.mounted = mounted
        self.mounted.allow_log("")
        self.root: Path = self.mounted.root

    @contextlib.contextmanager
    def oracle(self) -> Iterator[Path]:
        lowers = ":".join(str(holder) for holder in self.holders)
        system.mount("overlay", self.fresh, "overlay", system.MS_RDONLY, f"lowerdir={lowers}")
        try:
            yield self.fresh
        finally:
            system.umount(self.fresh, system.MNT_DETACH)

    def wait(self) -> None:
        time.sleep(self.patience)

    def hold(self, path: str) -> None:
        """Open the file at *path*, and the object that it should be."""
        with self.oracle() as fresh:
            if not stat.S_ISREG(os.stat(fresh / path, follow_symlinks=False).st_mode):
                return
            theirs = os.open(fresh / path, os.O_RDONLY | os.O_NOFOLLOW)
            self.held.append((os.open(self.root / path, os.O_RDONLY | os.O_NOFOLLOW), theirs))

    def check(self) -> None:
        with self.oracle() as fresh:
            expected = view(fresh, lists_whiteouts=True)
            for _ in range(2):
                assert view(self.root) == expected
        for ours, theirs in self.held:
            assert seen_open(ours) == seen_open(theirs)

    def clear(self) -> None:
        """Begin anew, in the same mount."""
        for ours, theirs in self.held:
            os.close(ours)
            os.close(theirs)
        self.held.clear()
        for holder in self.holders:
            for path in holder.iterdir():
                _remove(path)
        self.wait()


def seen_open(fd: int) -> tuple[Any, ...]:
    status = os.fstat(fd)
    return os.pread(fd, 100, 0), status.st_size, status.st_mtime_ns, stat.S_IMODE(status.st_mode)


def view(root: Path, *, lists_whiteouts: bool = False) -> View:
    """All that a look at a tree tells; numbers only as far as names share them.

    *lists_whiteouts*: so does the kernel's overlayfs where it merges nothing.
    """
    seen: View = {}
    groups: dict[int, str] = {}
    directories = [root]
    while directories:
        directory = directories.pop()
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        for entry in entries:
            path = Path(entry.path)
            name = str(path.relative_to(root))
            if lists_whiteouts and attempt(path.lstat).error == "ENOENT":
                continue
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            assert kind == _listed(entry, status), name
            what: Any = None
            if kind == stat.S_IFREG:
                what = path.read_bytes(), groups.setdefault(status.st_ino, name)
                what = (*what, status.st_size, status.st_mtime_ns)
            elif kind == stat.S_IFLNK:
                what = path.readlink()
            elif kind == stat.S_IFDIR:
                directories.append(path)
            seen[name] = kind, stat.S_IMODE(status.st_mode), status.st_uid, what
        # What is not listed is not there to be found either.
        for name in ("a", "b", "d"):
            if name not in [entry.name for entry in entries]:
                assert attempt((directory / name).lstat).error == "ENOENT", directory / name
    return seen


def _listed(entry: os.DirEntry[str], status: os.stat_result) -> int:
    """The type that the listing told, as far as `os.scandir` lets one know."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFMT(status.st_mode)


# What others do to a layer


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


_serial = iter(range(1 << 30))


def _content() -> str:
    number = next(_serial)
    return f"{number}" * (1 + number % 3)


def _write_in_place(path: Path, _other: Path) -> None:
    if path.is_file():
        path.write_text(_content())


def _write_unnoticed(path: Path, _other: Path) -> None:
    """Other bytes, as many, with the old time: as `cp -p` or `rsync --inplace` leave them."""
    if path.is_file() and not path.is_symlink():
        status = path.stat()
        path.write_text(f"{next(_serial):0{status.st_size}}"[-status.st_size :])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace(path: Path, _other: Path) -> None:
    temporary = path.with_name("temporary")
    temporary.write_text(_content())
    temporary.rename(path)


def _remade(make: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    def change(path: Path, _other: Path) -> None:
        _remove(path)
        make(path)

    return change


def _directory(path: Path) -> None:
    path.mkdir()
    build.write(path / "a", _content())


def _opaque(path: Path, _other: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        os.setxattr(path, "trusted.overlay.opaque", b"y")


def _redirect(path: Path, _other: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        os.setxattr(path, "trusted.overlay.redirect", b"/d")


def _exchange(path: Path, other: Path) -> None:
    system.renameat2(path, other, 2)


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "write": _write_in_place,
    "write unnoticed": _write_unnoticed,
    "replace": _replace,
    "file": _remade(lambda path: path.write_text(_content())),
    "directory": _remade(_directory),
    "link": _remade(lambda path: path.symlink_to(_content())),
    "fifo": _remade(os.mkfifo),
    "whiteout": _remade(build.whiteout),
    "remove": lambda path, _: _remove(path),
    "rename": lambda path, other: path.rename(other),
    "exchange": _exchange,
    "hard link": lambda path, other: os.link(path, other, follow_symlinks=False),
    "chmod": lambda path, _: path.chmod(0o600 if path.stat().st_mode & 0o77 else 0o644),
    "opaque": _opaque,
    "redirect": _redirect,
}

STEPS = st.lists(
    st.tuples(
        st.sampled_from([*CHANGES, "look", "look", "hold"]),
        st.integers(0, 2),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
    ),
    min_size=4,
    max_size=25,
)


@pytest.fixture(scope="module", params=TIMEOUTS)
def grounds(
    request: pytest.FixtureRequest, module_scratch: Path, subject: Subject
) -> Iterator[Grounds]:
    base = module_scratch / str(len(os.listdir(module_scratch)))
    made = Grounds(base, subject, f"timeout={request.param}", TIMEOUTS[request.param])
    yield made
    made.clear()
    made.mounted.end()
    assert ": ERROR: " not in made.mounted.log, made.mounted.log


@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=int(os.environ.get("UNIONFS_OUTSIDE_EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_the_union_shows_what_a_fresh_mount_would(
    grounds: Grounds, steps: list[tuple[str, int, str, str]]
) -> None:
    grounds.clear()
    for holder in grounds.holders[1:]:
        build.write(holder / "a", f"a of {holder.name}")
        build.write(holder / "d" / "a", f"d/a of {holder.name}")
    grounds.wait()
    try:
        for step, where, name, other in steps:
            if step == "look":
                grounds.wait()
                grounds.check()
            elif step == "hold":
                grounds.wait()
                attempt(grounds.hold, name)
            else:
                holder = grounds.holders[where]
                attempt(CHANGES[step], holder / name, holder / other)
        grounds.wait()
        grounds.check()
    finally:
        grounds.clear()


# One change each, told from beginning to end

Union = Callable[..., Any]


@pytest.fixture
def changing(layers: Layers, union: Union) -> Callable[[], Path]:
    """Mounts `layers` for those who change them; its root."""
    layers.lower_may_change = True

    def mount() -> Path:
        mounted = union("timeout=0")
        mounted.allow_log("")
        root: Path = mounted.root
        return root

    return mount


def test_a_lower_part_of_a_directory_replaced(layers: Layers, changing: Callable[[], Path]) -> None:
    first, second = layers.lowers
    build.write(first / "d" / "first")
    build.write(second / "d" / "old")
    root = changing()
    with os.scandir(root / "d") as held:  # somebody is in it
        assert sorted(os.listdir(root / "d")) == ["first", "old"]
        (second / "d").rename(second / "elsewhere")
        assert sorted(os.listdir(root / "d")) == ["first"]
        build.write(second / "d" / "new")
        assert sorted(os.listdir(root / "d")) == ["first", "new"]
        assert attempt((root / "d" / "old").lstat).error == "ENOENT"
        assert (root / "d" / "new").exists()
        held.close()


def test_a_copy_removed_from_the_upper(layers: Layers, changing: Callable[[], Path]) -> None:
    assert layers.upper is not None
    build.write(layers.lowers[0] / "file", "lower")
    root = changing()
    (root / "file").write_text("copied")
    assert (root / "file").read_text() == "copied"
    (layers.upper / "file").unlink()
    assert (root / "file").read_text() == "lower"


def test_one_of_two_names_replaced(layers: Layers, changing: Callable[[], Path]) -> None:
    lower = layers.lowers[0]
    build.write(lower / "one", "both")
    os.link(lower / "one", lower / "two")
    root = changing()
    for name in ("one", "two"):
        assert (root / name).read_text() == "both"
    with (root / "two").open() as held:
        build.write(lower / "new", "another")
        (lower / "new").rename(lower / "one")
        assert (root / "one").read_text() == "another"
        assert (root / "two").read_text() == "both"
        assert (root / "two").stat().st_nlink == 1
        assert os.fstat(held.fileno()).st_nlink == 1


def test_the_number_of_what_was_copied_comes_again(
    layers: Layers, changing: Callable[[], Path]
) -> None:
    assert layers.upper is not None
    lower = layers.lowers[0]
    build.write(lower / "file", "lower")
    root = changing()
    (root / "file").write_text("copied")
    number = (lower / "file").stat().st_ino
    (lower / "file").unlink()
    for index in range(200):
        path = build.write(root / f"new{index}", f"new {index}")
        if (layers.upper / path.name).stat().st_ino == number:
            break
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")  # the kernel forgets, and asks anew
    for found in range(index + 1):
        assert (root / f"new{found}").read_text() == f"new {found}"
    assert (root / "file").read_text() == "copied"


@pytest.mark.parametrize("change", ["replace", "remove", "directory"])
def test_a_write_to_what_was_opened_goes_nowhere_else(
    layers: Layers, changing: Callable[[], Path], change: str
) -> None:
    assert layers.upper is not None
    lower = layers.lowers[0]
    build.write(lower / "file", "what was opened")
    root = changing()
    with (root / "file").open("r+b", buffering=0) as held:
        assert held.read() == b"what was opened"
        CHANGES[change](lower / "file", lower)
        seen = view(root)
        held.seek(0)
        held.write(b"WHAT")
        held.seek(0)
        assert held.read() == b"WHAT was opened"
        os.fchmod(held.fileno(), 0o640)
        assert stat.S_IMODE(os.fstat(held.fileno()).st_mode) == 0o640
        assert view(root) == seen
    assert not (layers.upper / "file").exists()


def test_a_file_reached_by_number_is_no_other(layers: Layers, changing: Callable[[], Path]) -> None:
    lower = layers.lowers[0]
    build.write(lower / "file", "old", mode=0o600)
    root = changing()
    fd = os.open(root / "file", os.O_PATH)
    try:
        build.write(lower / "new", "another", mode=0o644)
        (lower / "new").rename(lower / "file")
        seen = attempt(os.fstat, fd)
        assert seen.error == "ESTALE" or seen.value.st_size == 3
    finally:
        os.close(fd)
    assert (root / "file").read_text() == "another"
