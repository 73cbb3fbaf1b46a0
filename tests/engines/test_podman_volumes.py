"""Volumes of root's Podman, under containers on unions of ours."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.ours import assert_ours_at
from tests.engines.podman import Podman

pytestmark = pytest.mark.needs_root


@pytest.fixture
def volumes(podman: Podman) -> Iterator[Podman]:
    """Podman, whose volumes are removed after the test."""
    yield podman
    podman.clear()
    podman("volume", "rm", "--all", "--force")


def sh(podman: Podman, volume: str, script: str) -> str:
    return podman("run", "--rm", "-v", volume, "base", "sh", "-c", script)


def test_a_writer_and_a_reader(volumes: Podman) -> None:
    volumes("volume", "create", "--label", "kind=data", "kept")
    sh(volumes, "kept:/v", "echo kept >/v/file; chown 5:7 /v/file")
    assert sh(volumes, "kept:/w:ro", "cat /w/file; stat -c %u:%g /w/file") == "kept\n5:7"
    sh(volumes, "kept:/w:ro", "touch /w/no || ! test -e /w/no")
    assert "Read-only file system" in volumes.said


def test_a_new_volume_is_filled_from_the_union(volumes: Podman) -> None:
    assert sh(volumes, "filled:/home", "stat -c %U:%G /home/user; touch /home/new") == "user:user"
    place = Path(volumes.inspect("volume", "filled")["Mountpoint"])
    assert sorted(os.listdir(place)) == ["new", "user"]
    assert sh(volumes, "filled:/elsewhere", "ls /elsewhere").split() == ["new", "user"]


def test_the_verbs(volumes: Podman) -> None:
    volumes("volume", "create", "one")
    volumes("volume", "create", "two")
    volumes("volume", "create", "one", status=125)
    assert "already exists" in volumes.said
    assert volumes("volume", "ls", "--quiet").split() == ["one", "two"]
    volumes("volume", "exists", "one")
    volumes("volume", "exists", "none", status=1)
    sh(volumes, "one:/v", "mkdir /v/dir; echo here >/v/dir/file; ln -s dir /v/link")
    target = volumes("volume", "mount", "one")
    assert (Path(target) / "dir/file").read_text() == "here\n"
    volumes("volume", "unmount", "one")
    archive = volumes.ground.base / "one.tar"
    volumes("volume", "export", "one", "--output", str(archive))
    with tarfile.open(archive) as tar:
        assert {"dir/file", "link"} <= {name.removeprefix("./") for name in tar.getnames()}
    volumes("volume", "import", "two", str(archive))
    assert sh(volumes, "two:/v", "cat /v/link/file") == "here"
    volumes("run", "--name", "user", "-v", "two:/v", "base", "true")
    volumes("volume", "rm", "two", status=2)
    assert "being used" in volumes.said
    assert volumes("volume", "prune", "--force") == "one"
    volumes("volume", "rm", "--force", "two")
    assert volumes("volume", "ls", "--quiet") == ""


def test_backup_and_restore_by_a_container(volumes: Podman) -> None:
    sh(volumes, "data:/data", "echo precious >/data/file; chmod 640 /data/file")
    backup = volumes.ground.base / "backup"
    backup.mkdir()
    both = ("-v", "data:/data", "-v", f"{backup}:/backup")
    volumes("run", "--rm", *both, "base", "tar", "czf", "/backup/data.tar.gz", "-C", "/data", ".")
    volumes("volume", "rm", "data")
    volumes("run", "--rm", *both, "base", "tar", "xzf", "/backup/data.tar.gz", "-C", "/data")
    shown = sh(volumes, "data:/data", "stat -c %a /data/file; tail -n 1 /data/file")
    assert shown.split() == ["640", "precious"]


def test_bind_mounts_go_both_ways(volumes: Podman) -> None:
    shared = volumes.ground.base / "shared"
    shared.mkdir()
    (shared / "outside").write_text("out\n")
    assert sh(volumes, f"{shared}:/s", "cat /s/outside; echo in >/s/inside") == "out"
    assert (shared / "inside").read_text() == "in\n"
    volumes("run", "--rm", "-v", f"{shared}:/s:ro", "base", "rm", "/s/inside", status=1)
    assert "Read-only file system" in volumes.said


def test_an_overlay_of_a_volume(volumes: Podman) -> None:
    sh(volumes, "vol:/v", "echo kept >/v/file")
    assert sh(volumes, "vol:/v:O", "rm /v/file; touch /v/new; ls /v") == "new"
    assert sh(volumes, "vol:/v", "ls /v") == "file"


def test_a_volume_that_is_a_union(volumes: Podman) -> None:
    """A local volume of type ``fuse.unionfs`` is mounted by mount(8), thus by our helper."""
    base = volumes.ground.base
    lower, upper, work = (base / "volume" / name for name in ("lower", "upper", "work"))
    for directory in (lower, upper, work):
        directory.mkdir(parents=True)
    (lower / "file").write_text("of the lower\n")
    # Where mount.fuse3 looks: it resets PATH.
    volumes.ground.run("mount", "-t", "tmpfs", "none", "/usr/local/bin")
    unionfs = (base / "bin" / "fuse-overlayfs").resolve()
    volumes.ground.run("ln", "-s", str(unionfs), "/usr/local/bin/unionfs")
    try:
        layers = f"o=lowerdir={lower},upperdir={upper},workdir={work}"
        kind = ("--opt", "type=fuse.unionfs", "--opt", "device=union", "--opt", layers)
        volumes("volume", "create", *kind, "union")
        script = "cat /u/file; echo changed >/u/file; sleep 99"
        volumes("run", "-d", "--name", "held", "-v", "union:/u", "base", "sh", "-c", script)
        assert_ours_at(volumes.ground, volumes.inspect("volume", "union")["Mountpoint"])
        assert sh(volumes, "union:/u", "while test -s /u/file; do cat /u/file; break; done")
        volumes.clear()
        assert (upper / "file").read_text() == "changed\n"
        assert (lower / "file").read_text() == "of the lower\n"
    finally:
        volumes.ground.run("umount", "/usr/local/bin")
