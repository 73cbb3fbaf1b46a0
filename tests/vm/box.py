"""The command `vagrant/build-box`: a box for Vagrant, of Debian's packages alone."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.mounts import REPOSITORY
from tests.vm import cache, stock, wheels
from tests.vm.errors import CannotError

NAME = "unionfs/debian"
DIRECTORY = REPOSITORY / "vagrant"

#: What Vagrant is told of a box for libvirt, with the size of its disk in GB.
METADATA = {"provider": "libvirt", "format": "qcow2", "virtual_size": stock.SIZE >> 30}


def write(path: Path) -> None:
    """Write the box *path*. Raises `CannotError`."""
    disk = stock.find()
    size = disk.stat().st_size
    cache.require_room(path.parent, size + (1 << 20))
    # Others may write to the directory: no name that they could have made a link of.
    fd, name = tempfile.mkstemp(prefix=".", suffix=".box", dir=path.parent)
    unfinished = Path(name)
    try:
        with open(fd, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
            _add(tar, "metadata.json", json.dumps(METADATA).encode())
            _add(tar, "Vagrantfile", b'Vagrant.configure("2") { }\n')
            tar.add(disk, "box.img")
        unfinished.chmod(0o644)
        _belongs_to_its_directory(unfinished)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def bring_wheels(directory: Path) -> None:
    """Copy what unionfs is installed with to *directory*, for machines without a network."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(wheels.find(), directory)
    _belongs_to_its_directory(directory)


def _belongs_to_its_directory(path: Path) -> None:
    """Leave nothing that only root can remove to whoever used sudo."""
    owner = path.parent.stat()
    for made in (path, *path.rglob("*")):
        os.lchown(made, owner.st_uid, owner.st_gid)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="vagrant/build-box",
        description="Make a box for Vagrant with libvirt: a Debian of the release that runs here,"
        " of Debian's packages alone, with all that the Vagrantfile beside it installs, so that"
        " machines of it need no network. `vagrant box add` it, and `vagrant up` takes it."
        " README.md tells how VirtualBox gets the same disk.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=DIRECTORY / "unionfs.box",
        metavar="FILE",
        help="(default vagrant/unionfs.box)",
    )
    path = parser.parse_args().output.absolute()
    if not path.parent.is_dir():
        parser.error(f"{path.parent}: no such directory")
    try:
        bring_wheels(DIRECTORY / "wheels")
        write(path)
    except CannotError as error:
        sys.stderr.write(f"vagrant/build-box: {error}\n")
        return 1
    cache.say(f"{path}: {path.stat().st_size >> 20} MB; now: vagrant box add --name {NAME} {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
