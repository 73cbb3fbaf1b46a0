"""What this kernel has of what the union and its oracle can use, asked and not assumed.

Run as a program, as root, it prints one JSON object; `tests/vm/test_kernels.py` runs it on each.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from tests import system
from unionfs.fuse.protocol import Init, parse_init

#: struct fuse_in_header.
_HEADER = 40
#: Mounts of FUSE that may be idmapped (FUSE_ALLOW_IDMAP, Linux 6.12).
_ALLOW_IDMAP = 1 << 40


def fuse(place: Path) -> dict[str, object]:
    """What INIT offers."""
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
        system.mount("offers", place, "fuse", 0, options)
        try:
            offered = parse_init(memoryview(os.read(device, 1 << 17))[_HEADER:])
        finally:
            system.umount(place, system.MNT_DETACH)
    finally:
        os.close(device)
    return {
        "fuse": f"{offered.major}.{offered.minor}",
        "passthrough": bool(offered.flags & Init.PASSTHROUGH),
        "no open": bool(offered.flags & Init.NO_OPEN_SUPPORT),
        "no opendir": bool(offered.flags & Init.NO_OPENDIR_SUPPORT),
        "idmapped mounts": bool(offered.flags & _ALLOW_IDMAP),
    }


def xattr_whiteouts(place: Path) -> bool:
    """Whether overlayfs takes a file with an xattr for a whiteout."""
    top, below, merged = (place / name for name in ("top", "below", "merged"))
    for directory in (top, below, merged):
        directory.mkdir()
    (top / "name").touch()
    (below / "name").touch()
    os.setxattr(top, "trusted.overlay.opaque", b"x")
    os.setxattr(top / "name", "trusted.overlay.whiteout", b"")
    system.mount("overlay", merged, "overlay", 0, f"lowerdir={top}:{below}")
    try:
        return not (merged / "name").exists()
    finally:
        system.umount(merged)


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        (Path(place) / "fuse").mkdir()
        told = fuse(Path(place) / "fuse")
        told["xattr whiteouts"] = xattr_whiteouts(Path(place))
    print(json.dumps({"release": os.uname().release, **told}))  # noqa: T201


if __name__ == "__main__":
    main()
