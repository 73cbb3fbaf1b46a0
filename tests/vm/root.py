"""The root file system of guests: a small Debian with this checkout's Python environment.

It knows nothing of a kernel, and the checkout itself is not in it: these come with each boot.
"""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

from tests.mounts import REPOSITORY
from tests.vm import cache, debian
from tests.vm.errors import CannotError

#: What the tests and the demonstrations work with.
PACKAGES = (
    *("acl", "attr", "btrfs-progs", "busybox-static", "dmsetup", "e2fsprogs", "fuse-overlayfs"),
    *("fuse3", "iproute2", "kmod", "less", "libcap2-bin", "netbase", "nfs-common"),
    *("nfs-kernel-server", "openssl", "perl", "procps", "python3", "qemu-utils", "rpcbind"),
    *("strace", "thin-provisioning-tools", "uidmap", "xfsprogs", "zstd"),
)
#: Where the checkout is in a guest.
CHECKOUT = "/unionfs"
#: The file system is this large; what is not written takes nothing.
SIZE = "8G"

#: Of the environment: what checks sources has no use in a guest.
_LEFT_OUT = ("mypy*", "ruff*", "pip*", "*pre_commit*", "virtualenv*", "_editable_impl_*")


def find() -> Path:
    """Return the image of the root file system. Raises `CannotError`."""
    environment = REPOSITORY / ".venv"
    home = (environment / "pyvenv.cfg").read_text().splitlines()[0]
    if home != "home = /usr/bin":
        raise CannotError(f"{environment} is not of Debian's python3 ({home}), which the guest has")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needs = (project["dependencies"], project["optional-dependencies"], project["scripts"])
    of = f"{debian.release()} {PACKAGES} {_LEFT_OUT} {SIZE} {needs}"
    return cache.made("root", of, _make) / "root.img"


def _make(into: Path) -> None:
    cache.say("making a Debian root file system (a minute or two, the first time)")
    with debian.installed(PACKAGES, into) as root:
        _bring_environment(root)
        (root / "etc/hostname").write_text("unionfs-vm\n")
        image = str(into / "root.img")
        cache.say("writing its image")
        debian.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-d", str(root), image, SIZE])


def _bring_environment(root: Path) -> None:
    """Copy the environment to where its programs find it in a guest."""
    source, target = REPOSITORY / ".venv", root / CHECKOUT.lstrip("/") / ".venv"
    left_out = shutil.ignore_patterns(*_LEFT_OUT)
    shutil.copytree(source / "lib", target / "lib", symlinks=True, ignore=left_out)
    (packages,) = target.glob("lib/python*/site-packages")
    (packages / "unionfs.pth").write_text(f"{CHECKOUT}\n")
    (target / "bin").mkdir()
    shutil.copy(source / "pyvenv.cfg", target)
    for program in (source / "bin").iterdir():
        if program.is_symlink():
            (target / "bin" / program.name).symlink_to(program.readlink())
        elif program.read_bytes().startswith(f"#!{source}/".encode()):
            text = program.read_text().replace(f"#!{source}/", f"#!{CHECKOUT}/.venv/", 1)
            (target / "bin" / program.name).write_text(text)
            (target / "bin" / program.name).chmod(0o755)
