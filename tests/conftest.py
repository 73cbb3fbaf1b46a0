"""Fixtures: layers on a real disk, mounts that cannot hang, checks after every test.

Mounts are made in a mount namespace of this pytest process: whatever happens to it, its daemons
die with it and nothing stays mounted on the host.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import system
from tests.mounts import (
    KERNEL_OPTIONS,
    REPOSITORY,
    FuseOverlayfsMount,
    KernelMount,
    Layers,
    Mounted,
    UnionMount,
    mounted_below,
)
from tests.oracle import Builder, Pair, Subject
from tests.watchdog import CONNECTIONS, Watchdog

if TYPE_CHECKING:
    from types import FrameType

#: Seconds for a test to end by itself.
LIMIT, SLOW_LIMIT = 90, 600
#: For machines that end by themselves when their time is up.
VM_LIMIT = 5 * 3600

#: Without passthrough the device session is the openless one.
_OPENS = pytest.mark.since(*system.PASSTHROUGH, "passthrough, for which files are opened")

Mount = Callable[..., Any]

_SESSION_OPTIONS = {
    "device": "session=device",
    "openless": "session=device,passthrough=off",
    "pyfuse3": "session=pyfuse3",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which file system is tested: the kernel's overlayfs proves the expectations."""
    parser.addoption(
        "--subject",
        action="append",
        choices=("device", "openless", "pyfuse3", "kernel"),
        help="our sessions (the default: all, one after the other; openless is the direct one"
        " without passthrough) or the kernel's overlayfs",
    )

    parser.addoption(
        "--thorough",
        action="store_true",
        help="an hour more: every driver 128 deep, killed at three times as many points",
    )

    parser.addoption(
        "--vm", action="store_true", help="what takes long in virtual machines, too: an hour more"
    )


def _subjects(config: pytest.Config) -> list[str]:
    return config.getoption("--subject") or ["device", "openless", "pyfuse3"]


def pytest_configure(config: pytest.Config) -> None:
    """Leave the host's mounts alone from here on."""
    # A shell ignores it for what runs in the background; commands under test are to hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.geteuid() == 0:
        system.private_mount_namespace()
        if not any(CONNECTIONS.iterdir()) and not os.path.ismount(CONNECTIONS):
            system.mount("none", CONNECTIONS, "fusectl")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give what mounts a union every subject in turn."""
    if "subject" not in metafunc.fixturenames:
        return
    subjects = _subjects(metafunc.config)
    marks: dict[str, list[pytest.MarkDecorator]] = {}
    if not metafunc.config.getoption("--subject") and not hasattr(metafunc.module, "OPENLESS_TOO"):
        subjects.remove("openless")  # how files are opened does not matter everywhere
    if metafunc.definition.get_closest_marker("any_session"):
        subjects = subjects[:1]
    if metafunc.definition.get_closest_marker("device_session"):
        subjects = [name for name in subjects if name != "pyfuse3"]
    if metafunc.definition.get_closest_marker("pyfuse3_session"):
        subjects = [name for name in subjects if name == "pyfuse3"]
    if metafunc.definition.get_closest_marker("opens"):
        subjects = [name for name in subjects if name != "openless"]
        marks = {"device": [_OPENS]}
    params = [pytest.param(name, marks=marks.get(name, ())) for name in subjects]
    metafunc.parametrize("subject", params, indirect=True, scope="session")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs root where there is none, and what is only run when it is asked for."""
    if item.get_closest_marker("needs_root") and os.geteuid() != 0:
        pytest.skip("needs root")
    for mark in item.iter_markers("since"):
        major, minor, what = mark.args
        if system.release() < (major, minor):
            pytest.skip(f"new in Linux {major}.{minor}: {what}")
    both = item.get_closest_marker("vm") and item.get_closest_marker("slow")
    if both and not item.config.getoption("--vm"):
        pytest.skip("takes long in a virtual machine: scripts/test --vm runs it")


@pytest.fixture(autouse=True)
def limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Interrupt a test that waits for what never comes."""
    default = SLOW_LIMIT if request.node.get_closest_marker("slow") else LIMIT
    if request.node.get_closest_marker("vm"):
        default = VM_LIMIT
    seconds = int(os.environ.get("UNIONFS_TEST_LIMIT", default))

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the test took longer than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def watchdog() -> Iterator[Watchdog]:
    """The process that aborts mounts whose time is up."""
    dog = Watchdog()
    yield dog
    dog.close()


def _scratch() -> Path:
    """A new directory on a disk: overlayfs wants no overlayfs below and xattrs."""
    base = os.environ.get("UNIONFS_TEST_DIR", "/var/tmp")
    path = Path(tempfile.mkdtemp(prefix="unionfs-test-", dir=base))
    path.chmod(0o755)
    return path


def _remove(path: Path) -> None:
    """Remove a scratch directory, with what is still mounted there and immutable files."""
    while below := mounted_below(path):
        for target in reversed(below):
            system.umount(target, system.MNT_DETACH)
    try:
        shutil.rmtree(path)
    except OSError:
        subprocess.run(["chattr", "-R", "-f", "-i", "-a", str(path)], check=False)
        shutil.rmtree(path)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory on a disk for one test."""
    path = _scratch()
    yield path
    _remove(path)


@pytest.fixture(scope="module")
def module_scratch() -> Iterator[Path]:
    """A directory on a disk for the tests of one file."""
    path = _scratch()
    yield path
    _remove(path)


@pytest.fixture
def layers(scratch: Path) -> Layers:
    """Two lowers, an upper and a workdir, all empty and nothing mounted."""
    return Layers(scratch)


class _Mounts:
    """All that one test mounted; ended in reverse order with every check."""

    def __init__(self) -> None:
        self._all: list[Any] = []

    def add(self, mounted: Any) -> Any:
        self._all.append(mounted)
        return mounted

    def end(self) -> None:
        errors: list[BaseException] = []
        while self._all:
            mounted = self._all.pop()
            try:
                mounted.unmount()
            except (AssertionError, OSError) as error:
                errors.append(error)
        if errors:
            raise errors[0]


@pytest.fixture
def mounts() -> Iterator[_Mounts]:
    """Keeps what the test mounts."""
    all_mounts = _Mounts()
    yield all_mounts
    all_mounts.end()


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, watchdog: Watchdog) -> Subject:
    """Mounts what is under test: subject(layers, "option,option", ...)."""

    name: str = request.param

    def ours(layers: Layers, options: str = "", **arguments: Any) -> Mounted:
        chosen = f"{_SESSION_OPTIONS[name]},{options}".rstrip(",")
        return UnionMount(layers, watchdog, chosen, **arguments)

    def kernels(layers: Layers, options: str = "", **_arguments: Any) -> Mounted:
        if options not in ("", "volatile"):
            pytest.skip(f"overlayfs has no {options}")
        return KernelMount(layers, f"{KERNEL_OPTIONS},{options}".rstrip(","))

    return kernels if name == "kernel" else ours


@pytest.fixture
def ours_only(request: pytest.FixtureRequest) -> None:
    """For tests of what only our daemon has."""
    if _subjects(request.config) == ["kernel"]:
        pytest.skip("not of the kernel's overlayfs")


@pytest.fixture
def union(layers: Layers, mounts: _Mounts, subject: Subject) -> Mount:
    """Mounts our union over `layers` (or others): union("option,option", layers=..., ...)."""

    def mount(options: str = "", *, layers: Layers = layers, **arguments: Any) -> Any:
        return mounts.add(subject(layers, options, **arguments))

    return mount


@pytest.fixture
def kernel(layers: Layers, mounts: _Mounts) -> Callable[..., KernelMount]:
    """Mounts the kernel's overlayfs over `layers` (or others)."""

    def mount(*, layers: Layers = layers, **arguments: Any) -> KernelMount:
        mounted: KernelMount = mounts.add(KernelMount(layers, **arguments))
        return mounted

    return mount


@pytest.fixture
def fuse_overlayfs(
    layers: Layers, mounts: _Mounts, watchdog: Watchdog
) -> Callable[..., FuseOverlayfsMount]:
    """Mounts the peer over `layers` (or others)."""
    if shutil.which("fuse-overlayfs") is None:
        pytest.skip("fuse-overlayfs is not installed")

    def mount(*, layers: Layers = layers, **arguments: Any) -> FuseOverlayfsMount:
        mounted: FuseOverlayfsMount = mounts.add(FuseOverlayfsMount(layers, watchdog, **arguments))
        return mounted

    return mount


@pytest.fixture
def pair(scratch: Path, mounts: _Mounts, subject: Subject) -> Callable[..., Pair]:
    """Makes a `Pair` from a function that fills `Layers`."""

    def make(build: Builder, **arguments: Any) -> Pair:
        made: Pair = mounts.add(Pair(scratch / "pair", subject, build, **arguments))
        return made

    return make


@pytest.fixture(scope="module")
def arena(request: pytest.FixtureRequest, module_scratch: Path, subject: Subject) -> Iterator[Pair]:
    """One `Pair` for all cases of a file, each in a directory of its own, made by its `build`."""
    made = Pair(module_scratch / "pair", subject, request.module.build, seconds=300.0)
    yield made
    made.unmount()


@pytest.fixture
def device() -> Iterator[None]:
    """/dev/fuse open to everyone, as distributions have it."""
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    mode = os.stat("/dev/fuse").st_mode & 0o777
    os.chmod("/dev/fuse", 0o666)
    yield
    os.chmod("/dev/fuse", mode)


@pytest.fixture
def python(scratch: Path) -> dict[str, str]:
    """This Python and the project where every user can reach them.

    They may stand in somebody's home; bind mounts in our own mount namespace bring them here.
    """
    places = {
        "python": Path(sys.base_prefix),
        "packages": Path(sysconfig.get_path("purelib")),
        "project": REPOSITORY,
    }
    for name, place in places.items():
        (scratch / name).mkdir()
        system.mount(place, scratch / name, None, system.MS_BIND)
    inside = Path(sys.executable).resolve().relative_to(Path(sys.base_prefix).resolve())
    return {
        "PATH": f"{scratch / 'python' / inside.parent}:/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHON": str(scratch / "python" / inside),
        "PYTHONPATH": f"{scratch / 'project'}:{scratch / 'packages'}",
        "LD_LIBRARY_PATH": str(scratch / "python" / "lib"),
        "XDG_RUNTIME_DIR": str(scratch),
    }
