"""Kernels to boot: Debian's, taken apart so that QEMU starts them at once.

A directory has ``vmlinux``, the ELF file that is compressed inside bzImage (QEMU enters it by
PVH, and nothing is unpacked in the guest), ``modules``, the tree below /lib/modules of what a
guest has use for, and ``modules.img``, a file system of that.
"""

from __future__ import annotations

import io
import lzma
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.vm import cache, debian
from tests.vm.errors import CannotError
from unionfs.layer.compression import Unpacked

#: By version: the suite of Debian whose linux-image it is.
SUITES = {"6.1": "bookworm", "6.12": "bookworm-backports"}
DEFAULT = "6.1"

#: What of the modules is kept; the rest drives hardware that no guest of ours has.
_KEPT = (
    *("arch", "block", "crypto", "fs", "lib", "mm", "net"),
    *(f"drivers/{name}" for name in ("block", "char", "dax", "md", "nvdimm", "virtio")),
    *(f"drivers/net/{name}" for name in ("vxlan", "ipvlan")),
    *(f"drivers/net/{name}.ko*" for name in ("veth", "dummy", "tun", "tap", "virtio_net")),
    *(f"drivers/net/{name}.ko*" for name in ("net_failover", "macvlan")),
)


class Kernel(NamedTuple):
    """One that can be booted."""

    version: str
    vmlinux: Path
    modules: Path
    modules_image: Path


def find(name: str) -> Kernel:
    """Return the kernel *name*: a version of `SUITES`, or the path of a linux-image package.

    Raises `CannotError`.
    """
    if name in SUITES:
        directory = cache.made(
            f"kernel-{name}", f"{SUITES[name]} {_KEPT}", lambda path: _get(name, path)
        )
    else:
        package = Path(name).absolute()
        if package.suffix != ".deb" or not package.is_file():
            known = " or ".join(SUITES)
            raise CannotError(f"{name}: a kernel is {known}, or a linux-image package (.deb)")
        about = package.stat()
        of = f"{package} {about.st_size} {about.st_mtime_ns} {_KEPT}"
        directory = cache.made("kernel-own", of, lambda path: _take_apart(package, path))
    (modules,) = (directory / "modules/lib/modules").iterdir()
    return Kernel(modules.name, directory / "vmlinux", modules, directory / "modules.img")


def _get(name: str, into: Path) -> None:
    cache.say(f"fetching Debian's Linux {name}")
    with tempfile.TemporaryDirectory(dir=into) as work:
        _take_apart(debian.fetch("linux-image-amd64", SUITES[name], Path(work)), into)


def _take_apart(package: Path, into: Path) -> None:
    cache.say(f"taking {package.name} apart")
    with tempfile.TemporaryDirectory(dir=into) as work:
        debian.run(["dpkg-deb", "--extract", str(package), work])
        images = list(Path(work).glob("boot/vmlinuz-*"))
        trees = [*Path(work).glob("lib/modules/*"), *Path(work).glob("usr/lib/modules/*")]
        if not images or not trees:
            raise CannotError(f"{package}: has no boot/vmlinuz-* or no lib/modules")
        (into / "vmlinux").write_bytes(vmlinux(images[0].read_bytes()))
        _keep(trees[0], into / "modules/lib/modules" / trees[0].name)
    debian.run(["depmod", "-b", str(into / "modules"), trees[0].name])
    tree = into / "modules/lib/modules"
    # A file system that is read only needs no room and no journal.
    size = sum(path.stat().st_size + 4096 for path in tree.rglob("*")) // 1024 * 11 // 10 + 8192
    image = str(into / "modules.img")
    flags = ("-q", "-F", "-m", "0", "-O", "^has_journal")
    debian.run(["mkfs.ext4", *flags, "-d", str(tree), image, f"{size}k"])


def _keep(tree: Path, kept: Path) -> None:
    """Copy what is kept of the modules *tree*, uncompressed: the guest is slow at that."""
    for pattern in _KEPT:
        for found in (tree / "kernel").glob(pattern):
            copy = kept / found.relative_to(tree)
            copy.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if found.is_dir() else shutil.copy)(found, copy)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(tree / name, kept)
    for module in kept.rglob("*.ko.xz"):
        module.with_suffix("").write_bytes(lzma.decompress(module.read_bytes()))
        module.unlink()


def vmlinux(bzimage: bytes) -> bytes:
    """Return the ELF file in a bzImage (Documentation/arch/x86/boot.rst has the offsets)."""
    if bzimage[0x202:0x206] != b"HdrS":
        raise CannotError("the kernel is no bzImage")
    start = (bzimage[0x1F1] + 1) * 512 + int.from_bytes(bzimage[0x248:0x24C], "little")
    length = int.from_bytes(bzimage[0x24C:0x250], "little")
    # Its size follows what is compressed.
    payload = bzimage[start : start + length - 4]
    unpacked = Unpacked(io.BytesIO(payload))
    found = b"".join(iter(lambda: unpacked.read(1 << 20), b""))
    if not found.startswith(b"\x7fELF"):
        raise CannotError(f"the kernel is compressed by what begins with {payload[:4].hex()}")
    return found
