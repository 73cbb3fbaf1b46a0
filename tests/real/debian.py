"""A Debian root for tests, unpacked once and kept; changed only through unions over it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

#: Debootstrap takes half a minute, and the result serves every run on this machine.
CACHE = Path(os.environ.get("UNIONFS_TEST_CACHE", "/var/cache/unionfs-tests"))

#: What a chroot needs of the host to reach the package registries as the host does.
APT_FILES = (
    "etc/apt/sources.list",
    "etc/apt/sources.list.d",
    "etc/apt/apt.conf.d",
    "etc/apt/auth.conf.d",
    "etc/apt/trusted.gpg.d",
    "etc/resolv.conf",
    "etc/ssl",
    "usr/local/share/ca-certificates",
)


def root() -> Path:
    """Return the directory of a minimal Debian of the host's release."""
    release = _codename()
    path = CACHE / f"debian-{release}"
    if not path.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = CACHE / f"debian-{release}.{os.getpid()}"
        command = ["debootstrap", "--variant=minbase", release, str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, f"debootstrap failed:\n{done.stdout[-2000:]}{done.stderr}"
        unfinished.rename(path)
    return path


def _codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    raise AssertionError("/etc/os-release names no VERSION_CODENAME")


def share_apt_settings(target: Path) -> None:
    """Give the Debian in *target* this machine's way to the package registries."""
    for name in APT_FILES:
        source, copy = Path("/") / name, target / name
        if source.is_dir():
            shutil.copytree(source, copy, symlinks=True, dirs_exist_ok=True)
        elif source.exists():
            copy.unlink(missing_ok=True)
            shutil.copyfile(source, copy)
