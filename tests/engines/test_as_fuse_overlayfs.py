"""The same containers on fuse-overlayfs and on overlayfs: the engine makes the same of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest

from tests.engines.conftest import need
from tests.engines.ground import Ground
from tests.engines.images import busybox_tar
from tests.engines.ours import linked
from tests.engines.podman import Podman

pytestmark = pytest.mark.needs_root

FUSE_OVERLAYFS = Path("/usr/bin/fuse-overlayfs")

STEPS = {
    "files": """
        echo new >/new; echo more >>/data/old; rm /etc/words; chmod 4755 /bin/busybox
        chown 5:7 /tmp; truncate -s 1000000 /sparse; touch -d '2001-02-03 04:05:06' /etc/group
    """,
    "directories": """
        mkdir -p /deep/er/est; rm -r /home/user; mkdir /home/user; echo his >/home/user/his
        rm -r /data; chmod 700 /etc
    """,
    "kinds": """
        ln -s new /link; mkfifo /pipe; mknod /device c 1 3; mknod /block b 7 0
        echo 1 >/one; ln /one /two; ln /bin/busybox /bin/another; rm /bin/ls
    """,
    "nothing": "cat /etc/words /data/old; touch /etc/words; chmod 1777 /tmp; mkdir /x; rmdir /x",
    "renames": """
        rm -r /home/user; mkdir /home/user; echo his >/home/user/his; mv /home/user /home/renamed
        mkdir /one; mv /one /two; mv /data/old /data/moved; mv /etc/words /etc/group
    """,
}


def _podman_on(program: Path | None) -> Iterator[Podman]:
    need("podman", "runc", "tini", "busybox", "fuse-overlayfs")
    with closing(Ground()) as ground:
        podman = Podman(ground, None if program is None else linked(ground, program))
        podman("import", str(busybox_tar(ground.base)), "base")
        yield podman


@pytest.fixture(scope="module")
def fuse_overlayfs() -> Iterator[Podman]:
    """Podman on fuse-overlayfs."""
    yield from _podman_on(FUSE_OVERLAYFS)


@pytest.fixture(scope="module")
def overlayfs() -> Iterator[Podman]:
    """Podman on the kernel's overlayfs."""
    yield from _podman_on(None)


#: Of a member of an archive all but its time and, where it has several names, which is the first.
Facts = tuple[object, ...]


def members(archive: IO[bytes]) -> dict[str, Facts]:
    with tarfile.open(fileobj=archive) as tar:
        return {header.name.strip("./"): _facts(header) for header in tar}


def _facts(header: tarfile.TarInfo) -> Facts:
    kind = tarfile.REGTYPE if header.islnk() else header.type
    size = header.size if header.isreg() and header.name not in ("one", "two") else 0
    target = header.linkname if header.issym() else ""
    device = (header.devmajor, header.devminor) if header.isdev() else ()
    xattrs = {key: value for key, value in header.pax_headers.items() if "xattr" in key}
    return kind, oct(header.mode), header.uid, header.gid, size, target, device, xattrs


def exported(podman: Podman, container: str) -> dict[str, Facts]:
    """All that a container shows; of busybox, which has several names, no size."""
    path = podman.ground.base / "exported.tar"
    podman("export", "--output", str(path), container)
    with path.open("rb") as file:
        found = members(file)
    path.unlink()
    return {name: facts for name, facts in found.items() if not name.startswith("bin/")}


def top_layer(podman: Podman, image: str) -> dict[str, Facts]:
    """What the topmost layer of an image holds."""
    path = podman.ground.base / "saved.tar"
    podman("save", "--output", str(path), image)
    with tarfile.open(path) as tar:
        file = tar.extractfile("manifest.json")
        assert file is not None
        (manifest,) = json.load(file)
        layer = tar.extractfile(manifest["Layers"][-1])
        assert layer is not None
        found = members(io.BytesIO(layer.read()))
    path.unlink()
    return found


@pytest.mark.parametrize("steps", [name for name in STEPS if name != "renames"])
def test_the_engine_finds_the_same_changes(
    podman: Podman, fuse_overlayfs: Podman, steps: str
) -> None:
    """What it finds by comparing two mounts, and what it makes a layer of.

    Not of renames: there fuse-overlayfs 1.10 brings a directory back that was removed.
    """
    found = []
    for engine in (podman, fuse_overlayfs):
        engine("run", "--name", "made", "base", "sh", "-ec", STEPS[steps])
        changes = sorted(engine("diff", "made").splitlines())
        engine("commit", "--quiet", "made", "kept")
        depth = engine("image", "tree", "kept").count("── ID: ")
        found.append((changes, depth, top_layer(engine, "kept")))
        engine("rm", "made")
        engine("rmi", "kept")
    assert found[0] == found[1]


@pytest.mark.parametrize("steps", STEPS)
def test_the_tree_is_the_kernels(podman: Podman, overlayfs: Podman, steps: str) -> None:
    found = []
    for engine in (podman, overlayfs):
        engine("run", "--name", "made", "base", "sh", "-ec", STEPS[steps])
        found.append(exported(engine, "made"))
        engine("rm", "made")
    assert found[0] == found[1]
