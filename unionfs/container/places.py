"""What is shown in a container from outside: files of its own, binds, volumes of the store."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from typing import Final

from unionfs.container import rootfs
from unionfs.container.records import Record
from unionfs.container.rootfs import Grafted
from unionfs.container.spec import Bind, NamedVolume, Spec, Tmpfs
from unionfs.errors import MountError, UnionError
from unionfs.layer import syscalls
from unionfs.store.store import Store
from unionfs.store.volumes import Volumes

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY


def own_files(record: Record, spec: Spec) -> Iterator[Bind]:
    """Yield the files in /etc that every container has of its own, unless *spec* has others."""
    taken = {place.target for place in spec.places}
    files = {
        "hostname": f"{spec.hostname}\n",
        "hosts": f"{_text('/etc/hosts')}127.0.1.1\t{spec.hostname}\n",
        "resolv.conf": _text("/etc/resolv.conf"),
    }
    for name, text in files.items():
        if f"/etc/{name}" not in taken:
            yield Bind(record.write(name, text), f"/etc/{name}")


def _text(path: str) -> str:
    """Return the text of the host's file *path*, ending with a whole line; empty without one."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except OSError:
        return ""
    return text if text.endswith("\n") or not text else f"{text}\n"


@contextlib.contextmanager
def held(store: Store, place: NamedVolume, holder: str) -> Iterator[str]:
    """Use the volume of *place*, made if there is none; give the directory with its files.

    The use ends with the block, or with this process. Raises what `Volumes.hold` raises.
    """
    volumes = Volumes(store)
    volumes.obtain(place.name)
    found = volumes.hold(place.name, holder, os.getpid())
    try:
        yield found.path
    finally:
        volumes.release(found.id)


def settle(store: Store, name: str) -> None:
    """Unmount what a user of the volume *name* has left that was killed, if he was the last."""
    with contextlib.suppress(UnionError):  # its driver may not be to be had now
        Volumes(store).settle(name)


def fill_new(store: Store, place: NamedVolume, directory: str, root: str) -> None:
    """Copy what the image has at *place* to its volume in *directory*, as long as that is empty.

    *root* is the mounted root file system. Raises `MountError` with what cp(1) says.
    """
    root_fd = os.open(root, _OPEN_DIRECTORY | os.O_CLOEXEC)
    try:
        source = syscalls.openat2(
            root_fd, os.fsencode(place.target), _OPEN_DIRECTORY, syscalls.RESOLVE_IN_ROOT
        )
    except OSError:
        return  # nothing there, or no directory
    finally:
        os.close(root_fd)
    try:
        with Volumes(store).alone(place.name):
            if not os.listdir(directory):
                _copy(source, directory)
    finally:
        os.close(source)


def _copy(source: int, directory: str) -> None:
    command = ["cp", "-a", "--", f"/proc/self/fd/{source}/.", directory]
    done = subprocess.run(
        command, pass_fds=[source], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise MountError(f"{directory}: what the image has there was not copied: {said[-1]}")


def opened(place: Bind | Tmpfs, descriptors: contextlib.ExitStack) -> Grafted | Tmpfs:
    """Return *place* as the first process takes it; *descriptors* are closed by the caller.

    Raises ``OSError`` for what is not there.
    """
    if isinstance(place, Tmpfs):
        return place
    if place.create and not os.path.lexists(place.source):
        os.makedirs(place.source)
    mount_fd = rootfs.clone(place.source, read_only=place.read_only)
    descriptors.callback(os.close, mount_fd)
    return Grafted(mount_fd, place.target, os.path.isdir(place.source))
