"""The first root of a guest: busybox, the modules to reach the disks, and ``guest/init``."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.vm.errors import CannotError
from tests.vm.kernel import Kernel

#: What must be there before the root file system is, with what it depends on.
MODULES = (*("crc32c_generic", "virtio_pci", "virtio_blk", "virtio_console", "virtio-rng", "ext4"),)
_INIT = Path(__file__).parent / "guest/init"


def archive(kernel: Kernel) -> bytes:
    """Return a cpio archive of the "new" format (Documentation/driver-api/early-userspace)."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise CannotError("busybox is not installed: install the package busybox-static")
    members = [
        *((name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "proc", "sys", "root")),
        ("bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes()),
        ("init", stat.S_IFREG | 0o755, _INIT.read_bytes()),
        ("modules", stat.S_IFDIR | 0o755, b""),
    ]
    for number, module in enumerate(_in_order(kernel)):
        # Numbered, so that a shell's * has them in the order of loading.
        members.append((f"modules/{number:02}-{module.name}", 0o100644, module.read_bytes()))
    members.append(("TRAILER!!!", 0, b""))
    return b"".join(_member(number, *member) for number, member in enumerate(members))


def _member(number: int, name: str, mode: int, data: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _in_order(kernel: Kernel) -> Iterator[Path]:
    """Yield the modules, each after those that it needs."""
    needs = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        name, _, below = line.partition(":")
        needs[name] = below.split()
    by_name = {Path(name).stem.replace("-", "_"): name for name in needs}
    seen: set[str] = set()
    for wanted in MODULES:
        found = by_name.get(wanted.replace("-", "_"))
        if found is None:
            continue  # built into this kernel
        for name in (*reversed(needs[found]), found):
            if name not in seen:
                seen.add(name)
                yield kernel.modules / name
