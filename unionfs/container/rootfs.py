"""The root file system of a command: what is mounted in it, and how it becomes the root.

The new root takes the old one's place first, and everything is mounted afterwards: so paths
are followed as the command would follow them, and no symlink of an image leads out. What comes
from outside is opened before, through descriptors. The old root is let go last: the kernel
mounts a /proc for a user namespace only where one is visible.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from unionfs.container.spec import Tmpfs
from unionfs.errors import MountError
from unionfs.layer import syscalls
from unionfs.layer.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY

#: Devices that are the host's own; all else in /dev is the container's.
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS: Final = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
    "/dev/ptmx": "pts/ptmx",
}
#: Parts of /proc that change the machine: a slip of the command should not.
_PROC_READ_ONLY: Final = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_SHM_SIZE: Final = 64 << 20


class Grafted(NamedTuple):
    """A mount made outside, by its descriptor, and where it is to be seen."""

    mount_fd: int
    target: str
    is_directory: bool


def clone(source: str, *, read_only: bool) -> int:
    """Return a copy of the mounts at and below *source*, as a descriptor. Raises ``OSError``."""
    path = os.fsencode(source)
    mount_fd = syscalls.open_tree_clone(syscalls.AT_FDCWD, path, recursive=True)
    if read_only:
        try:
            syscalls.mount_setattr(mount_fd, syscalls.MOUNT_ATTR_RDONLY, recursive=True)
        except OSError:
            os.close(mount_fd)
            raise
    return mount_fd


def enter(root: str, places: Sequence[Grafted | Tmpfs], *, terminal: bool) -> None:
    """Make the directory *root*, a mount of this namespace, the root with all that belongs in it.

    The caller is the first process of its PID namespace, with mounts of its own. *terminal*
    leaves room for /dev/console. Raises ``OSError`` with the path that it is about, and
    `MountError` where a file meets a directory.
    """
    devices = {name: clone(f"/dev/{name}", read_only=False) for name in _existing(_DEVICES)}
    kernel = clone("/sys", read_only=True)
    old_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(root)
    # One directory for both: the old root comes to lie over the new one, and on top.
    syscalls.pivot_root(b".", b".")
    os.chdir("/")
    _mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "")
    _protect_proc()
    _graft(Grafted(kernel, "/sys", is_directory=True))
    _make_dev(devices, terminal=terminal)
    for place in sorted(places, key=lambda one: one.target.count("/")):
        if isinstance(place, Tmpfs):
            _mount_tmpfs(place)
        else:
            _graft(place)
    os.fchdir(old_root)
    os.close(old_root)
    syscalls.umount(b".", syscalls.MNT_DETACH)
    os.chdir("/")


def make_read_only() -> None:
    """Let nobody write to the root itself any more; what is mounted in it stays as it is."""
    opened = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        syscalls.mount_setattr(opened, syscalls.MOUNT_ATTR_RDONLY)
    finally:
        os.close(opened)


def bind_console(terminal: str) -> None:
    """Make *terminal*, a name in /dev/pts, the console."""
    mount_fd = clone(terminal, read_only=False)
    _graft(Grafted(mount_fd, "/dev/console", is_directory=False))


def _existing(names: Sequence[str]) -> list[str]:
    return [name for name in names if os.path.exists(f"/dev/{name}")]


def _protect_proc() -> None:
    for name in _PROC_READ_ONLY:
        path = f"/proc/{name}"
        if os.path.exists(path):
            mount_fd = clone(path, read_only=True)
            _graft(Grafted(mount_fd, path, is_directory=os.path.isdir(path)))


def _make_dev(devices: dict[str, int], *, terminal: bool) -> None:
    _mount("tmpfs", "/dev", MS_NOSUID, "mode=755,size=64k")
    for name, mount_fd in devices.items():
        _graft(Grafted(mount_fd, f"/dev/{name}", is_directory=False))
    flags = MS_NOSUID | MS_NOEXEC
    # 5 is the group tty, everywhere: grantpt(3) wants it to be the terminals'.
    _mount("devpts", "/dev/pts", flags, "newinstance,ptmxmode=0666,mode=0620,gid=5")
    _mount("tmpfs", "/dev/shm", flags | MS_NODEV, f"mode=1777,size={_SHM_SIZE}")  # noqa: S108
    with contextlib.suppress(OSError):  # not every kernel has message queues
        _mount("mqueue", "/dev/mqueue", flags | MS_NODEV, "")
    for link, target in _LINKS.items():
        os.symlink(target, link)
    if terminal:
        _make_file("/dev/console")


def _mount_tmpfs(place: Tmpfs) -> None:
    words = [f"mode={place.mode:o}"]
    if place.size is not None:
        words.append(f"size={place.size}")
    flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if place.read_only else 0)
    _mount("tmpfs", place.target, flags, ",".join(words))


def _mount(kind: str, target: str, flags: int, data: str) -> None:
    real = os.path.realpath(target)
    os.makedirs(real, 0o755, exist_ok=True)
    syscalls.mount(kind.encode(), os.fsencode(real), kind.encode(), flags, data.encode())


def _graft(place: Grafted) -> None:
    """Attach a mount, on a directory or file that is made where there is none."""
    real = os.path.realpath(place.target)
    if os.path.exists(real) and os.path.isdir(real) != place.is_directory:
        source, there = ("directory", "file") if place.is_directory else ("file", "directory")
        raise MountError(
            f"{place.target}: a {there} in the image, and a {source} is to be mounted there"
        )
    if place.is_directory:
        os.makedirs(real, 0o755, exist_ok=True)
    elif not os.path.exists(real):
        os.makedirs(os.path.dirname(real), 0o755, exist_ok=True)
        _make_file(real)
    syscalls.move_mount(place.mount_fd, os.fsencode(real))
    os.close(place.mount_fd)


def _make_file(path: str) -> None:
    # Nothing that is there is opened: that of a FIFO would wait for ever.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
