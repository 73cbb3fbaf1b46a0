"""Mounts as containerd makes them of what a snapshotter tells (its package core/mount, for Linux).

Nothing of ours helps: binds and overlays are mount(2)'s, unions are mounted by ``mount.fuse3``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import system
from tests.mounts import device_minor, unmount_patiently
from tests.watchdog import Watchdog
from unionfs.driver.api import Mount

#: ``unionfs`` is found by this, as it was installed beside this Python.
PATH = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
#: Options of more bytes than a page are made shorter by going to what the layers' paths begin with.
PAGE = 4096
_FLAGS = {"bind": system.MS_BIND, "rbind": system.MS_BIND | system.MS_REC, "ro": system.MS_RDONLY}


def mount_all(mounts: Sequence[Mount], target: Path) -> None:
    """Mount *mounts* on *target*, in their order."""
    for one in mounts:
        helper, _, kind = one.type.rpartition(".")
        if helper in ("fuse", "fuse3"):
            _run_helper(f"mount.{helper}", kind, one, target)
        else:
            _mount(one, target)


def _run_helper(helper: str, kind: str, one: Mount, target: Path) -> None:
    options = [word for option in one.options for word in ("-o", option)]
    done = subprocess.run(
        [helper, one.source, str(target), *options, "-t", kind],
        env={**os.environ, "PATH": PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def _mount(one: Mount, target: Path) -> None:
    flags, data = 0, []
    for option in one.options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option != "rw":
            data.append(option)
    place, text = "/", ",".join(data)
    if len(text) > PAGE:
        place, data = _shorter(data)
        text = ",".join(data)

    def make() -> None:
        os.chdir(place)
        system.mount(one.source, target, one.type, flags & ~system.MS_RDONLY or flags, text)
        if flags & system.MS_BIND and flags & system.MS_RDONLY:
            remount = system.MS_REMOUNT | system.MS_BIND | system.MS_RDONLY
            system.mount(None, target, None, remount)

    system.in_child(make)


def _shorter(options: Sequence[str]) -> tuple[str, list[str]]:
    """A directory, and *options* with the paths of lower layers from there."""
    key = "lowerdir="
    lowers = next(one for one in options if one.startswith(key)).removeprefix(key).split(":")
    place = os.path.commonpath(lowers)
    below = ":".join(os.path.relpath(lower, place) for lower in lowers)
    return place, [key + below, *(one for one in options if not one.startswith(key))]


@contextlib.contextmanager
def mounted(mounts: Sequence[Mount], target: Path, watchdog: Watchdog) -> Iterator[Path]:
    """*mounts* on *target*, which is made, for the block."""
    target.mkdir(exist_ok=True)
    mount_all(mounts, target)
    minor = device_minor(target) or -1  # only a daemon's mount can hang
    watchdog.arm(minor, 120)
    try:
        yield target
    finally:
        watchdog.disarm(minor)
        for _ in mounts:
            unmount_patiently(target)
