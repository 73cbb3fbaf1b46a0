"""Buildah on unions of ours: its containers are mounts that others may write to."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.engines.conftest import need
from tests.engines.ours import ASK_ROOT, FUSE, assert_ours, assert_ours_at
from tests.engines.podman import Podman

pytestmark = pytest.mark.needs_root


class Buildah:
    """``buildah`` on the storage of *podman*."""

    def __init__(self, podman: Podman) -> None:
        self.podman = podman

    def __call__(self, *arguments: str, status: int = 0) -> str:
        return self.podman(*arguments, program="buildah", status=status)

    def run(self, container: str, script: str) -> str:
        """Run *script* in a container: without a network, which none of these needs."""
        options = ("--network", "none") if not self.podman.user else ("--isolation", "chroot")
        return self("run", *options, container, "--", "sh", "-c", script)


@pytest.fixture
def buildah(podman: Podman) -> Iterator[Buildah]:
    need("buildah")
    made = Buildah(podman)
    yield made
    made("rm", "--all")
    podman("rmi", "--force", "--ignore", "made", "again")


@pytest.fixture
def rootless_buildah(rootless: Podman) -> Iterator[Buildah]:
    need("buildah")
    made = Buildah(rootless)
    yield made
    made("rm", "--all")
    rootless("rmi", "--force", "--ignore", "made")


def test_from_run_commit(buildah: Buildah) -> None:
    working = buildah("from", "base")
    assert_ours(buildah.run(working, ASK_ROOT))
    buildah.run(working, "rm /etc/words; echo made >/made; chown 5:7 /made; mv /home/user /home/u")
    buildah("config", "--env", "X=y", "--cmd", "cat /made", working)
    buildah("commit", "--quiet", working, "made")
    assert buildah.podman("run", "--rm", "made") == "made"
    script = "stat -c %u:%g /made /home/u; echo $X; ls /home"
    shown = buildah.podman("run", "--rm", "made", "sh", "-c", script).split()
    assert shown == ["5:7", "1000:1001", "y", "u"]


def test_a_commit_reads_what_is_mounted(buildah: Buildah) -> None:
    working = buildah("from", "base")
    target = buildah("mount", working)
    assert_ours_at(buildah.podman.ground, target)
    buildah.podman("-c", f"echo first >{target}/made; rm {target}/data/old", program="sh")
    buildah("commit", "--quiet", working, "made")
    buildah.podman("-c", f"echo second >{target}/made", program="sh")
    buildah("commit", "--quiet", working, "again")
    buildah("umount", working)
    for image, content in (("made", "first"), ("again", "second")):
        script = "cat /made; ls /data"
        assert buildah.podman("run", "--rm", image, "sh", "-c", script) == content


def test_copy_and_mounts_of_others(buildah: Buildah) -> None:
    base = buildah.podman.ground.base
    (base / "copied").write_text("copied\n")
    first, second = buildah("from", "base"), buildah("from", "base")
    buildah("copy", "--chown", "user:user", first, str(base / "copied"), "/home/user/")
    buildah("copy", "--from", first, second, "/home/user/copied", "/data/")
    assert buildah.run(second, "cat /data/copied; stat -c %U /data/copied") == "copied\nroot"
    volume = ("--volume", f"{base / 'tree'}:/tree:O", "--network", "none")
    script = "stat -f -c %t /tree; rm /tree/etc/words; ls /tree/etc"
    shown = buildah("run", *volume, first, "--", "sh", "-c", script).split()
    assert shown == [FUSE, "group", "passwd"]
    assert (base / "tree/etc/words").exists()


def test_without_root(rootless_buildah: Buildah) -> None:
    buildah = rootless_buildah
    working = buildah("from", "base")
    buildah.run(working, "rm /etc/words; echo made >/made; chown 5:7 /made")
    buildah("commit", "--quiet", working, "made")
    found = json.loads(buildah("inspect", "--type", "image", "made"))
    assert found["FromImage"] == "localhost/made:latest"
    script = f"{ASK_ROOT}; stat -c %u:%g /made; ls /etc"
    shown = buildah.podman("run", "--rm", "made", "sh", "-c", script)
    assert_ours(shown)
    assert "5:7" in shown.split()
    assert "words" not in shown.split()
