"""Podman and Buildah, as root or as an ordinary user, with a union of ours as their storage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.engines.client import Client
from tests.engines.ground import USER, Ground

#: The default of nofile is more than some virtual machines let root ask for, cgroups may have no
#: systemd, and crun takes none of both versions at once.
CONTAINERS_CONF: Final = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "{base}/networks"
"""

STORAGE_CONF: Final = """\
[storage]
driver = "overlay"
graphroot = "{root}"
runroot = "{runroot}"
[storage.options]
additionalimagestores = [{stores}]
[storage.options.overlay]
mount_program = "{program}"
mountopt = "{mountopt}"
"""


class Podman(Client):
    """``podman`` with storage and settings of its own, in *ground*.

    *program* is what mounts its layers, None for the kernel's overlayfs, *mountopt* what it is
    told for each. *stores* are those of others whose images are to be seen.
    """

    def __init__(
        self,
        ground: Ground,
        program: Path | None,
        *,
        user: bool = False,
        stores: Sequence[Path] = (),
        mountopt: str = "",
    ) -> None:
        super().__init__(ground)
        self.user = user
        made = ground.base / ("rootless" if user else "root")
        made.mkdir()
        #: Its home directory and settings; Podman keeps an ordinary user's storage in it.
        self.home = made
        self.root = made / (".local/share/containers/storage" if user else "storage")
        storage = STORAGE_CONF.format(
            root=self.root,
            runroot=f"/run/user/{USER}/containers" if user else "/run/storage",
            stores=", ".join(f'"{store}"' for store in stores),
            program=program,
            mountopt=mountopt,
        )
        if program is None:
            storage = storage.rpartition("[storage.options.overlay]")[0]
        (made / "storage.conf").write_text(storage)
        (made / "containers.conf").write_text(CONTAINERS_CONF.format(base=made))
        if user:
            ground.run("chown", "-R", f"{USER}:{USER}", str(made))

    def environment(self) -> dict[str, str]:
        """Where Podman and Buildah find all that is theirs."""
        return {
            "HOME": str(self.home),
            "TMPDIR": str(self.ground.base / "tmp"),
            "XDG_RUNTIME_DIR": f"/run/user/{USER}" if self.user else "/run",
            "CONTAINERS_CONF": str(self.home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.home / "storage.conf"),
        }

    def __call__(
        self,
        *arguments: str,
        program: str = "podman",
        **options: Any,
    ) -> str:
        """Run ``podman ARGUMENTS``; what it wrote, without the last end of line.

        *options* are those of `Ground.run`.
        """
        out = self.ground.run(
            program,
            *arguments,
            user=self.user,
            environment=self.environment(),
            **options,
        )
        return out.removesuffix("\n")

    def image_ids(self, name: str) -> list[str]:
        """The ids of the images called *name*."""
        return self("images", "--quiet", "--no-trunc", name).split()

    def layer(self, container: str) -> dict[str, str]:
        """The directories of a container: LowerDir, UpperDir, WorkDir, and if mounted MergedDir."""
        found = self.inspect("container", container)["GraphDriver"]["Data"]
        assert isinstance(found, dict)
        return found

    def clear(self) -> None:
        """Remove all containers and pods, and their mounts; images stay."""
        self("pod", "rm", "--all", "--force", "--time", "0")
        # Containers that have just ended may still be cleaned up: then their shm is busy.
        self("rm", "--all", "--force", "--time", "0", status=None)
        self("rm", "--all", "--force", "--time", "0")
