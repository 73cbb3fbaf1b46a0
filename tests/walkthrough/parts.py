"""The parts of the course, in their order, and what each needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.walkthrough import (
    backup,
    bindmount,
    ephemeral,
    layers,
    network_bridge,
    network_host,
    network_macvlan,
    network_overlay,
    network_ports,
    nfs,
    nfs_database,
    storage_drivers,
    tmpfs,
    volume_plugin,
    volumes,
)
from tests.walkthrough.lesson import Lesson

ENGINES: Final = ("podman", "docker")

#: What every part needs beside its engine's, each program with Debian's package.
_GROUND: Final = {
    "busybox": "busybox-static",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "runc": "runc",
    "tini": "tini",
}
_CURL: Final = {"curl": "curl"}
_QEMU: Final = {"qemu-storage-daemon": "qemu-system-common", "qemu-img": "qemu-utils"}
_NFS: Final = {
    "ganesha.nfsd": "nfs-ganesha",
    "/usr/lib/x86_64-linux-gnu/ganesha/libfsalvfs.so": "nfs-ganesha-vfs",
    "nfs-cp": "libnfs-utils",
    "rpcbind": "rpcbind",
}
_ENGINE: Final = {
    "podman": {
        "podman": "podman",
        "/usr/lib/podman/netavark": "netavark",
        "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    },
    "docker": {"dockerd": "docker.io", "/usr/bin/docker": "docker.io"},
}


@dataclass(frozen=True)
class Part:
    """One part: *title* is what it shows."""

    name: str
    title: str
    run: Callable[[Lesson], None]
    #: Those that have it, the one it is shown with first.
    engines: tuple[str, ...] = ENGINES
    #: Programs that it needs besides, each with its package.
    programs: Mapping[str, str] = field(default_factory=dict)

    def missing(self, engine: str) -> str:
        """Why it cannot run here with *engine*; "" if it can."""
        try:
            os.close(os.open("/dev/fuse", os.O_RDWR))
        except OSError as error:
            return f"/dev/fuse: {error.strerror}"
        for program, package in (_GROUND | _ENGINE[engine] | dict(self.programs)).items():
            if not (os.path.exists(program) if "/" in program else shutil.which(program)):
                return f"{program} is not installed (package {package})"
        return ""


PARTS: Final = (
    Part("layers", "read-only layers, stored once, and a writable one for each", layers.run),
    Part("ephemeral", "what is written is gone with the container, or committed", ephemeral.run),
    Part("volumes", "files that outlive containers, and that several share", volumes.run),
    Part("bind-mount", "a directory of the host, in both directions, or read-only", bindmount.run),
    Part("tmpfs", "files in memory, with a limit", tmpfs.run),
    Part("backup", "a volume's files out to the host, and into a new volume", backup.run),
    Part(
        "storage-drivers",
        "one image and one test on three of them",
        storage_drivers.run,
        programs=_QEMU,
    ),
    Part("nfs", "a volume of a server with three clients", nfs.run, programs=_NFS),
    Part("nfs-database", "three clients take from one stock", nfs_database.run, programs=_NFS),
    Part("nfs-volume", "a volume that is on a server", nfs.run_volume, programs=_NFS),
    Part("bridge", "networks of containers, and their names", network_bridge.run),
    Part("host", "the host's network, and none", network_host.run, programs=_CURL),
    Part("macvlan", "a container is a device of its own", network_macvlan.run),
    Part("ports", "a port of the host leads into a container", network_ports.run, programs=_CURL),
    Part(
        "volume-plugin",
        "what Docker asks of our volumes",
        volume_plugin.run,
        engines=("docker",),
        programs=_QEMU,
    ),
    Part("overlay-network", "one network over two hosts", network_overlay.run, ("docker",)),
)
