"""A machine of the course: an engine with its images, containers and volumes on ours."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from typing import Any, Final

from tests.engines.docker import Docker
from tests.engines.ground import Ground
from tests.engines.ours import UNIONFS, linked
from tests.engines.podman import Podman

#: Where commands are typed.
PLACE: Final = "/run/course"

_NAME_SERVER: Final = "nameserver 192.0.2.53\noptions timeout:1 attempts:1\n"
#: Podman finds a plugin only if told where.
_PLUGINS: Final = """
[engine.volume_plugins]
unionfs = "{socket}"
"""


def join(one: Machine, two: Machine, network: str) -> tuple[str, str]:
    """Lay a wire between two machines; their addresses, in *network*, as ``192.0.2``."""
    ends = [f"/proc/{machine.ground.pid}/ns/net" for machine in (one, two)]
    wire = ["ip", "link", "add", "wire", "netns", ends[0]]
    wire += ["type", "veth", "peer", "name", "wire", "netns", ends[1]]
    subprocess.run(wire, check=True, timeout=10)
    addresses = f"{network}.1", f"{network}.2"
    for machine, address in zip((one, two), addresses, strict=True):
        machine.shell(f"ip addr add {address}/24 dev wire && ip link set wire up")
    return addresses


class Machine:
    """Namespaces of its own with the engine *name*, an image ``base``, and our volume plugin.

    *prompt* is printed before what is typed there. Its commands find ``unionfs`` on their PATH,
    with the store of the volumes.
    """

    def __init__(self, name: str, prompt: str = "") -> None:
        # These need our package, which who only lists the parts need not have.
        from tests.engines.images import busybox_tar  # noqa: PLC0415
        from tests.plugin.in_ground import PluginBeside  # noqa: PLC0415

        self.name = name
        self.prompt = prompt
        with ExitStack() as stack:
            self.ground = Ground()
            stack.callback(self.ground.close)
            programs = linked(self.ground).parent
            (programs / "unionfs").symlink_to(UNIONFS)
            (programs / "docker").symlink_to(Docker.CLIENT)
            self.directory = self.ground.base / "course"
            self._prepare()
            self.plugin = PluginBeside(self.ground)
            stack.callback(self.plugin.close)
            self.plugin.start()
            self.environment = {
                "PATH": f"{programs}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
                "UNIONFS_ROOT": str(self.plugin.root),
            }
            self.environment |= self._start(stack)
            self.shell(f"{name} import {busybox_tar(self.ground.base)} base")
            self._to_close = stack.pop_all()

    def _prepare(self) -> None:
        """Make the place of the course; let names that nobody knows be refused at once."""
        self.directory.mkdir()
        self.ground.run("mkdir", PLACE)
        self.ground.run("mount", "--bind", str(self.directory), PLACE)
        resolv_conf = self.ground.base / "resolv.conf"
        resolv_conf.write_text(_NAME_SERVER)
        self.ground.run("mount", "--bind", str(resolv_conf), "/etc/resolv.conf")

    def _start(self, stack: ExitStack) -> dict[str, str]:
        """Start the engine; the variables by which its command finds it."""
        programs = self.ground.base / "bin"
        if self.name == "docker":
            docker = Docker(self.ground, programs)
            stack.callback(docker.close)
            self.storage = docker.home / "data"
            return {"DOCKER_HOST": f"unix://{docker.socket}", "HOME": str(docker.home)}
        podman = Podman(self.ground, programs / "fuse-overlayfs")
        self.storage = podman.root
        with (podman.home / "containers.conf").open("a") as settings:
            settings.write(_PLUGINS.format(socket=self.plugin.socket))
        return podman.environment()

    def shell(self, script: str, **options: Any) -> str:
        """Run *script* there; what it wrote. *options* are those of `Ground.run`."""
        return self.ground.run(
            "env", "-C", PLACE, "sh", "-c", script, environment=self.environment, **options
        )

    def clear(self) -> None:
        """Remove all that a part has made; the image ``base`` stays."""
        self.shell(_CLEAR[self.name].format(place=PLACE))

    def close(self) -> None:
        """End the engine, and remove everything."""
        self._to_close.close()


_COMMON: Final = """
volumes=$($engine volume ls -q)
test -z "$volumes" || $engine volume rm -f $volumes
for network in $($engine network ls --format '{{{{.Name}}}}'); do
    case $network in podman|bridge|host|none|docker_gwbridge|ingress) continue ;; esac
    $engine network rm $network
done
base=$($engine images -q --no-trunc base)
for image in $($engine images -aq --no-trunc | sort -u); do
    test $image = $base || $engine rmi -f $image || ! $engine inspect $image
done
while read -r _ target _; do
    case $target in {place}/*) umount -l $target ;; esac
done </proc/mounts
find {place} -mindepth 1 -delete
"""

_CLEAR: Final = {
    "podman": f"set -e; engine=podman; podman pod rm -af -t 0; podman rm -af -t 0; {_COMMON}",
    "docker": f"""
        set -e; engine=docker
        containers=$(docker ps -aq)
        test -z "$containers" || docker rm -f $containers
        {_COMMON}
    """,
}
