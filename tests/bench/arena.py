"""Where the layers lie: file systems of our own in a mount namespace of our own.

Everything is below one directory; the namespace ends with the benchmark, and with it all mounts
and the loop devices. What a crash leaves is the directory with its images, which the next run
removes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import system
from tests.bench.model import Scale, Scenario
from tests.mounts import REPOSITORY, mounted_below
from tests.ordinary import USER
from tests.watchdog import CONNECTIONS

PREFIX = "unionfs-bench-"

#: For the rows about a disk.
DISK = Path("/var/tmp")

#: Of the sparse images. Inodes are many: a tree of 100,000 files is one of the rows.
IMAGE_GIB = {"memory": 12, "xfs": 8}

#: The same place on a file system whose files can share extents.
SHARING = {"memory": "xfs"}
INODES = 500_000


class Missing(Exception):  # noqa: N818 - it is no error: the row is left out
    """The machine lacks what a scenario needs."""


@dataclass
class Ground:
    """One file system with the lowers (`f`), what is no layer (`s`), and the union (`r`)."""

    root: Path
    fixture: tuple[object, Scale, bool] | None = None
    lowers: tuple[str, ...] = ()

    def build(self, scenario: Scenario, scale: Scale, *, user: bool) -> None:
        """Make the lowers of *scenario*, unless they are there."""
        wanted = (scenario.build, scale, user)
        if self.fixture == wanted:
            return
        self.clear()
        base, aside = self.root / "f", self.root / "s"
        for directory in (base, aside):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
        self.lowers = tuple(scenario.build(base, aside, scale))
        if user:
            run("chown", "-hR", f"{USER}:{USER}", str(base), str(aside))
        os.sync() if self.root.name == "disk" else run("sync", "-f", str(self.root))
        self.fixture = wanted

    def clear(self) -> None:
        """Remove the lowers, and give their memory back."""
        self.fixture = None
        for name in ("f", "s", "r"):
            remove_tree(self.root / name)
        if self.root.name != "disk":
            subprocess.run(["fstrim", str(self.root)], check=False, capture_output=True)


def run(*command: str, seconds: float = 300.0) -> None:
    """Run *command*, silently; an error shows what it said."""
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise OSError(f"{' '.join(command)[:200]}: {done.stderr.strip() or done.stdout.strip()}")


def remove_tree(path: Path) -> None:
    """Remove *path* with all that is mounted there."""
    for target in reversed(mounted_below(path)):
        with contextlib.suppress(OSError):
            system.umount(target, system.MNT_DETACH)
    if path.exists():
        run("rm", "-rf", "--one-file-system", str(path))


class Arena:
    """All grounds, made when they are first asked for."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._grounds: dict[str, Ground] = {}

    def ground(self, place: str) -> Ground:
        """The file system called *place*. Raises `Missing`."""
        if place not in self._grounds:
            root = self._on_disk() if place == "disk" else self._image(place)
            root.chmod(0o755)
            self._grounds[place] = Ground(root)
        return self._grounds[place]

    def _on_disk(self) -> Path:
        root = _own_directory(DISK) / "disk"
        root.mkdir()
        return root

    def _image(self, place: str) -> Path:
        make = {
            "memory": ["mkfs.ext4", "-q", "-F", "-N", str(INODES), "-E", "lazy_itable_init=0"],
            "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
        }[place]
        if shutil.which(make[0]) is None:
            raise Missing(f"{make[0]} is not installed")
        image = self.base / f"{place}.img"
        with image.open("wb") as file:
            file.truncate(IMAGE_GIB[place] << 30)
        run(*make, str(image))
        root = self.base / place
        root.mkdir()
        try:
            run("mount", "-o", "loop,noatime", str(image), str(root))
        except OSError as error:
            raise Missing(f"no loop mount: {error}") from error
        return root

    def require_room(self, gib: int) -> None:
        """Raise `Missing` unless the images may grow by so much."""
        found = os.statvfs(self.base)
        grown = sum(image.stat().st_blocks * 512 for image in self.base.glob("*.img"))
        if grown + found.f_bavail * found.f_frsize < gib << 30:
            raise Missing(f"needs {gib} GiB in {self.base.parent}")

    def clear(self) -> None:
        """Unmount and remove everything."""
        for ground in self._grounds.values():
            if ground.root.name == "disk":
                remove_tree(ground.root.parent)
        remove_tree(self.base)


def _memory() -> Path:
    """A directory in memory with room for the images."""
    shared = Path("/dev/shm")
    if shared.is_dir() and os.statvfs(shared).f_frsize * os.statvfs(shared).f_bavail > 6 << 30:
        return shared
    return DISK


def _own_directory(parent: Path) -> Path:
    """A new directory with our number in its name: a later run knows whether we live."""
    made = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
    made.chmod(0o755)
    return made


def _remove_old() -> None:
    for parent in {_memory(), DISK}:
        for old in parent.glob(f"{PREFIX}*"):
            pid = old.name.removeprefix(PREFIX).partition("-")[0]
            alive = pid.isdigit() and Path(f"/proc/{pid}").exists()
            if not alive and old.stat().st_uid == os.geteuid():
                shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def arena() -> Iterator[Arena]:
    """Our own mount namespace with an empty arena, which is gone afterwards."""
    system.private_mount_namespace()
    if not any(CONNECTIONS.iterdir()) and not os.path.ismount(CONNECTIONS):
        system.mount("none", CONNECTIONS, "fusectl")
    _remove_old()
    made = Arena(_own_directory(_memory()))
    try:
        yield made
    finally:
        os.chdir("/")
        made.clear()


@contextlib.contextmanager
def open_to_users(base: Path) -> Iterator[dict[str, str]]:
    """Let every user mount, and reach this Python and the project; the environment for it."""
    mode = os.stat("/dev/fuse").st_mode & 0o777
    places = {
        "python": Path(sys.base_prefix),
        "packages": Path(sysconfig.get_path("purelib")),
        "project": REPOSITORY,
    }
    for name, place in places.items():
        (base / name).mkdir()
        system.mount(place, base / name, None, system.MS_BIND)
    inside = Path(sys.executable).resolve().relative_to(Path(sys.base_prefix).resolve())
    os.chmod("/dev/fuse", 0o666)
    try:
        yield {
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHON": str(base / "python" / inside),
            "PYTHONPATH": f"{base / 'project'}:{base / 'packages'}",
            "LD_LIBRARY_PATH": str(base / "python" / "lib"),
            "XDG_RUNTIME_DIR": str(base),
        }
    finally:
        os.chmod("/dev/fuse", mode)
