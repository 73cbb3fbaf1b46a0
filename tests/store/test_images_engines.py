"""Images between this store and Podman and Skopeo, both ways."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.archives import archive, directory, member
from tests.store import bundles
from tests.store.bundles import BASE, CHANGE, digest
from tests.store.test_images import Ground

pytestmark = pytest.mark.needs_root

FORMS = ("oci-archive", "docker-archive")


@pytest.fixture
def ground(scratch: Path) -> Iterator[Ground]:
    base = scratch / "ground"
    base.mkdir()
    made = Ground(base, "overlay", {})
    with closing(made.store):
        yield made


class Podman:
    """Podman with a storage of its own, without a network or cgroups to set up."""

    def __init__(self, base: Path) -> None:
        self._base = base
        (base / "containers.conf").write_text(
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )

    def __call__(self, *arguments: str) -> str:
        storage = ["--root", str(self._base / "root"), "--runroot", str(self._base / "run")]
        done = subprocess.run(
            ["podman", *storage, "--storage-driver", "vfs", *arguments],
            env={**os.environ, "CONTAINERS_CONF": str(self._base / "containers.conf")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def inspect(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self("image", "inspect", name))
        assert isinstance(found, dict)
        return found


@pytest.fixture
def podman(scratch: Path) -> Podman:
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    base = scratch / "podman"
    base.mkdir()
    return Podman(base)


def skopeo(*arguments: str) -> dict[str, Any]:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout) if arguments[0] == "inspect" else {}
    assert isinstance(found, dict)
    return found


def export(ground: Ground, name: str, form: str) -> Path:
    return ground.tar(f"{form}.tar", ground.export(name, form))


@pytest.mark.parametrize("form", FORMS)
def test_podman_loads_what_we_export(ground: Ground, podman: Podman, form: str) -> None:
    image = ground.add(ground.tar("plain", BASE), "app")
    said = podman("load", "-i", str(export(ground, "app", form)))
    assert "localhost/app:latest" in said
    found = podman.inspect("app")
    assert found["Id"] == image.id.removeprefix("sha256:")
    assert found["RootFS"]["Layers"] == [digest(BASE)]
    assert found["RepoTags"] == ["localhost/app:latest"]


@pytest.mark.parametrize("form", [*FORMS, "oci-dir"])
def test_we_import_what_podman_saves(ground: Ground, podman: Podman, form: str) -> None:
    """An image of two layers, the second with whiteouts, of Podman's own making."""
    ground.add(ground.tar("plain", BASE), "base")
    podman("load", "-i", str(export(ground, "base", "oci-archive")))
    podman("create", "--name", "changing", "base", "/bin/tool")
    root = Path(podman("mount", "changing").strip())
    (root / "etc/config").unlink()
    (root / "var/old").unlink()
    (root / "var/new").write_text("new")
    podman("commit", "--change", "ENV=X=y", "changing", "derived")
    podman("umount", "changing")
    theirs = podman.inspect("derived")
    path = ground.base / "saved"
    podman("save", "--format", form, "-o", str(path), "derived")
    ours = ground.add(path, "localhost/derived")
    assert ours.id == f"sha256:{theirs['Id']}"
    assert ours.settings()["rootfs"]["diff_ids"] == theirs["RootFS"]["Layers"]
    assert "X=y" in ours.settings()["config"]["Env"]
    with ground.seen("localhost/derived") as shown:
        assert os.listdir(shown / "etc") == []
        assert os.listdir(shown / "var") == ["new"]
    # And back: the same image.
    podman("rm", "changing")
    podman("rmi", "derived")
    podman("load", "-i", str(export(ground, "localhost/derived", "oci-archive")))
    assert podman.inspect("derived")["Id"] == theirs["Id"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_skopeo_reads_what_we_export(ground: Ground, form: str, compression: str) -> None:
    ground.add(bundles.write_tar(ground.base / "in", bundles.layout("app:1").all()))
    path = ground.tar("out.tar", ground.export("app:1", form, compression))
    found = skopeo("inspect", "--config", f"{form}:{path}")
    assert found["rootfs"]["diff_ids"] == [digest(BASE), digest(CHANGE)]
    assert found["config"]["Entrypoint"] == ["/bin/tool"]
    # It verifies every digest on the way.
    copy = ground.base / "copy"
    skopeo("copy", "--quiet", f"{form}:{path}", f"oci:{copy}:app:1")
    again = ground.add(copy, "again")
    assert again.settings()["rootfs"] == found["rootfs"]


def test_skopeo_reads_a_committed_snapshot(ground: Ground) -> None:
    data = archive(directory("dir"), member("dir/file", data=b"1"), member("gone"))
    ground.add(ground.tar("plain", data), "app")
    with ground.seen("app", commit="mine") as root:
        (root / "gone").unlink()
        (root / "new").write_text("new")
    path = export(ground, "mine", "docker-archive")
    found = skopeo("inspect", "--config", f"docker-archive:{path}")
    assert found["rootfs"]["diff_ids"][0] == digest(data)
    with tarfile.open(path) as tar:
        layer = tar.extractfile(f"{found['rootfs']['diff_ids'][1].removeprefix('sha256:')}.tar")
        assert layer is not None
        with tarfile.open(fileobj=layer) as inner:
            assert inner.getnames() == [".", ".wh.gone", "new"]
