"""Who takes part: this union and its peers, where they are, and how each is mounted."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from unionfs import __version__
from unionfs.fuse import SESSION_NAMES

#: The options of each system, beside the layers and those of a row. All as the defaults are.
OPTIONS = {
    "unionfs": "session=device" if "device" in SESSION_NAMES else "session=auto",
    "unionfs-pyfuse3": "session=pyfuse3",
    "overlay": "redirect_dir=on,index=on,xino=on",
    "fuse-overlayfs": "",
    "fuse-overlayfs-1": "",
    "unionfs-fuse": "cow,default_permissions",
    "mergerfs": "category.create=ff",
    "ext4": "",
}

OURS = ("unionfs", "unionfs-pyfuse3")
ENVIRONMENT = {"fuse-overlayfs": "FUSE_OVERLAYFS", "mergerfs": "MERGERFS"}


@dataclass(frozen=True)
class System:
    """One way to have the tree."""

    name: str
    kind: str = "fuse"
    """`fuse`: a daemon; `kernel`: mount(2); `bind`: the directory itself; `none`.

    Or what keeps snapshots: `driver`, one of ours, and `containerd`, a snapshotter.
    """
    options: str = ""
    program: str = ""
    """The binary; empty for our own."""
    version: str = ""

    @property
    def is_ours(self) -> bool:
        return self.kind == "driver" or self.name.partition("[")[0] in OURS

    @property
    def keeps_snapshots(self) -> bool:
        return self.kind in ("driver", "containerd")

    @property
    def shares_extents(self) -> bool:
        """Whether it works only where files can share extents."""
        return self.name == "driver-reflink"

    @property
    def copies_on_write(self) -> bool:
        return self.name != "mergerfs"

    @property
    def takes_overlay_options(self) -> bool:
        """Whether `lowerdir=` and `volatile` mean something to it."""
        return self.name not in ("unionfs-fuse", "mergerfs", "ext4")

    def layers(self, lowers: list[str], upper: str | None, work: str, extra: str) -> list[str]:
        """The arguments of its program that say what is mounted and how."""
        own = [option for option in (self.options, extra) if option]
        if self.takes_overlay_options:
            parts = [f"lowerdir={':'.join(lowers)}"]
            parts += [f"upperdir={upper}", f"workdir={work}"] if upper else []
            return ["-o", ",".join([*parts, *own])]
        branches = [f"{upper}=RW"] if upper else []
        branches += [f"{lower}=RO" for lower in lowers]
        return ["-o", ",".join(own), ":".join(branches)]


def output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"? ({error})"
    return done.stdout + done.stderr


def _version(program: str, pattern: str) -> str:
    found = re.search(pattern, output(program, "--version"))
    return found[1] if found else "?"


def _digest(program: str) -> str:
    return hashlib.sha256(Path(program).read_bytes()).hexdigest()[:12]


def _fuse_overlayfs(named: str | None) -> dict[str, System]:
    """Both generations, as far as they are there."""
    found: dict[str, System] = {}
    candidates = [named, os.environ.get("FUSE_OVERLAYFS"), shutil.which("fuse-overlayfs")]
    candidates += [str(path) for path in (Path.home() / ".cargo/bin/fuse-overlayfs",)]
    candidates += ["/usr/bin/fuse-overlayfs"]
    for program in candidates:
        if not program or not os.access(program, os.X_OK):
            continue
        version = _version(program, r"fuse-overlayfs: version (\S+)")
        name = "fuse-overlayfs-1" if version.startswith(("0.", "1.")) else "fuse-overlayfs"
        shown = f"{version} (sha256 {_digest(program)}…)"
        found.setdefault(name, System(name, "fuse", OPTIONS[name], program, shown))
    return found


def _other(name: str, named: str | None, pattern: str) -> dict[str, System]:
    program = named or shutil.which(name)
    if not program or not os.access(program, os.X_OK):
        return {}
    shown = f"{_version(program, pattern)} (sha256 {_digest(program)}…)"
    return {name: System(name, "fuse", OPTIONS[name], program, shown)}


def find(named: dict[str, str]) -> tuple[list[System], list[str]]:
    """The systems of this machine, and the names of those that it lacks."""
    session = {name: f"{__version__}, {OPTIONS[name]}" for name in OURS}
    found = {name: System(name, "fuse", OPTIONS[name], "", session[name]) for name in OURS}
    if "overlay" in Path("/proc/filesystems").read_text().split():
        version = f"Linux {os.uname().release}"
        found["overlay"] = System("overlay", "kernel", OPTIONS["overlay"], "", version)
    found |= _fuse_overlayfs(named.get("fuse-overlayfs"))
    found |= _other("unionfs-fuse", named.get("unionfs-fuse"), r"unionfs-fuse version: (\S+)")
    found |= _other("mergerfs", named.get("mergerfs"), r"mergerfs v?(?:ersion: )?(\S+)")
    found["ext4"] = System("ext4", "bind", version=f"Linux {os.uname().release}")
    present = [found[name] for name in OPTIONS if name in found]
    return present, [name for name in OPTIONS if name not in found]
