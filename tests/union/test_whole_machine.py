"""`lowerdir=/` with the target inside it: what is mounted in a layer is no part of the layer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import system
from tests.mounts import REPOSITORY
from tests.system import in_child
from tests.watchdog import abort

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("ours_only")]

#: What a program needs of the machine; bound into the small root, so mounts within the layer.
NEEDED = ("usr", "lib", "lib64", "bin", "sbin", "etc", "dev", "proc", "sys")


def _prefixes() -> Iterator[Path]:
    """Directories of this Python and of the tests that are not among `NEEDED`."""
    for path in {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)}:
        if path.parts[1] not in NEEDED:
            yield path


def _small_root(root: Path) -> None:
    """A root directory of its own, with the machine's directories mounted in it."""
    system.private_mount_namespace()
    system.mount(root, root, None, system.MS_BIND)
    for name in NEEDED:
        source = Path("/", name)
        if source.is_symlink():
            (root / name).symlink_to(os.readlink(source))
        elif source.exists():
            (root / name).mkdir()
            system.mount(source, root / name, None, system.MS_BIND | system.MS_REC)
    for prefix in _prefixes():
        inside = root / prefix.relative_to("/")
        inside.mkdir(parents=True, exist_ok=True)
        system.mount(prefix, inside, None, system.MS_BIND | system.MS_REC)
    for name in ("tmp", "run", "srv/data/deep", "upper", "work", "mnt", "srv/shm"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "srv/data/deep/file").write_text("file")
    system.mount("tmpfs", root / "srv/shm", "tmpfs")
    (root / "srv/shm/mounted").touch()


def _walk_it(root: Path) -> tuple[list[str], str, int]:
    _small_root(root)
    os.chroot(root)
    os.chdir("/")
    options = "lowerdir=/,upperdir=/upper,workdir=/work"
    command = [sys.executable, "-m", "unionfs", "mount", "-f", "-o", options, "/mnt"]
    with open("/tmp/log", "w+") as log:
        daemon = subprocess.Popen(
            command,
            stderr=log,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
            preexec_fn=system.die_with_parent,  # noqa: PLW1509 - this process has no threads
        )
        while os.stat("/mnt").st_dev == os.stat("/").st_dev:
            assert daemon.poll() is None, Path("/tmp/log").read_text()
            time.sleep(0.01)
        minor = os.minor(os.stat("/mnt").st_dev)
        try:
            found = subprocess.run(
                ["find", "/mnt"], check=True, capture_output=True, text=True, timeout=60
            )
            Path("/mnt/srv/data/deep/new").write_text("new")
            Path("/mnt/srv/shm").rmdir()
        except BaseException:
            abort(minor)
            raise
        system.umount("/mnt")
        code = daemon.wait(10)
        log.seek(0)
        return found.stdout.splitlines(), log.read(), code


def test_root_as_the_lower(scratch: Path) -> None:
    root = scratch / "root"
    root.mkdir()
    found, log, code = in_child(lambda: _walk_it(root), timeout=80.0)
    assert log == ""
    assert code == 0
    assert "/mnt/srv/data/deep/file" in found
    assert "/mnt/mnt" in found, "the target itself is a directory of the layer"
    assert "/mnt/srv/shm" in found
    for mounted in ("proc", "sys", "usr", "mnt", "srv/shm"):
        inside = [name for name in found if name.startswith(f"/mnt/{mounted}/")]
        assert inside == [], f"what is mounted on /{mounted} shows"
    assert (root / "upper/srv/data/deep/new").read_text() == "new"
