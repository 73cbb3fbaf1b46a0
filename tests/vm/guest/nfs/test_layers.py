"""Layers of a union that are mounts of the kernel's NFS client, versions 3 and 4.2."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import build, tree
from tests.mounts import Layers
from tests.vm.guest.nfs.server import PATIENCE, Nfsd

pytestmark = [pytest.mark.needs_root, pytest.mark.any_session]

Mount = Callable[..., Any]
VERSIONS = pytest.mark.parametrize("version", ["3", "4.2"])
#: A client that gives up instead of waiting for its server, and asks it each time.
IMPATIENT = ("soft", "timeo=5", "retrans=1", "actimeo=0")
#: As a directory of a disk is exported.
PLAIN = "rw,no_subtree_check"


@pytest.fixture
def exported(nfsd: Nfsd, layers: Layers, scratch: Path) -> Path:
    """What the server has; `on_nfs` puts it below a layer of this machine's."""
    place = scratch / "exported"
    for name in ("one", "two", "three"):
        build.write(place / "remote" / name, f"of the server: {name}")
    build.write(place / "both" / "remote", "of the server")
    build.write(place / "hidden", "of the server")
    build.write(layers.lowers[0] / "local" / "file", "of this machine")
    build.write(layers.lowers[0] / "both" / "local", "of this machine")
    build.write(layers.lowers[0] / "hidden", "of this machine")
    nfsd.export(place, PLAIN)
    return place


def on_nfs(nfsd: Nfsd, layers: Layers, exported: Path, version: str) -> Path:
    """Make the lowest layer a mount of *exported*."""
    layers.lowers[1] = nfsd.mount(exported, version, *IMPATIENT)
    layers.lower_may_change = True  # not by us: `exported` is looked at instead
    return layers.lowers[1]


def expect(number: int, do: Callable[[], object]) -> None:
    """Demand that *do* fails with the errno *number*."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
        do()
    assert caught.value.errno == number, caught.value


@VERSIONS
def test_a_lower_on_nfs(
    nfsd: Nfsd, layers: Layers, exported: Path, union: Mount, version: str
) -> None:
    """It is a lower as any other: merged, copied up, covered, and never changed."""
    on_nfs(nfsd, layers, exported, version)
    before = tree.snapshot(exported)
    mounted = union()
    root = mounted.root
    assert sorted(os.listdir(root)) == ["both", "hidden", "local", "remote"]
    assert sorted(os.listdir(root / "both")) == ["local", "remote"]
    assert (root / "hidden").read_text() == "of this machine"
    with (root / "remote/one").open("r+") as file:
        file.write("OF")
    assert (root / "remote/one").read_text() == "OF the server: one"
    (root / "remote/two").unlink()
    (root / "both").rename(root / "moved")
    (root / "remote/three").rename(root / "local/three")
    mounted.unmount()
    tree.assert_same(before, tree.snapshot(exported))
    root = union().root
    assert sorted(os.listdir(root)) == ["hidden", "local", "moved", "remote"]
    assert (root / "moved/remote").read_text() == "of the server"
    assert os.listdir(root / "remote") == ["one"]
    assert (root / "local/three").read_text() == "of the server: three"


@VERSIONS
def test_a_server_that_is_down(
    nfsd: Nfsd, layers: Layers, exported: Path, union: Mount, version: str
) -> None:
    """What only it has is EIO; everything else answers, and its files do when it is back."""
    on_nfs(nfsd, layers, exported, version)
    root = union().root
    assert (root / "local/file").read_text() == "of this machine"
    assert (root / "remote/one").read_text() == "of the server: one"
    nfsd.stop()
    expect(errno.EIO, (root / "remote/two").read_bytes)
    expect(errno.EIO, lambda: (root / "remote/three").write_text("copied up"))
    assert (root / "local/file").read_text() == "of this machine"
    (root / "local/new").write_text("made meanwhile")
    (root / "local/file").rename(root / "local/renamed")
    nfsd.start()
    assert (root / "remote/two").read_text() == "of the server: two"
    (root / "remote/three").write_text("copied up")
    assert sorted(os.listdir(root / "local")) == ["new", "renamed"]
    assert layers.upper is not None
    assert (layers.upper / "remote/three").read_text() == "copied up"
    assert (exported / "remote/three").read_text() == "of the server: three"


@VERSIONS
@pytest.mark.parametrize("told", [errno.ESTALE, errno.EACCES])
def test_an_export_that_is_withdrawn(
    nfsd: Nfsd,
    layers: Layers,
    exported: Path,
    scratch: Path,
    union: Mount,
    version: str,
    told: int,
) -> None:
    """What only it has is ESTALE until it is exported again, or EACCES if nothing else is."""
    on_nfs(nfsd, layers, exported, version)
    if told == errno.ESTALE:
        (scratch / "another").mkdir()
        nfsd.export(scratch / "another", PLAIN)
    root = union().root
    assert (root / "local/file").read_text() == "of this machine"
    nfsd.withdraw(exported)
    expect(told, (root / "remote/two").read_bytes)
    assert (root / "local/file").read_text() == "of this machine"
    (root / "local/new").write_text("made meanwhile")
    nfsd.export(exported, PLAIN)
    assert (root / "remote/two").read_text() == "of the server: two"


@VERSIONS
def test_unmounting_while_the_server_is_down(
    nfsd: Nfsd, layers: Layers, exported: Path, union: Mount, version: str
) -> None:
    target = on_nfs(nfsd, layers, exported, version)
    mounted = union()
    with (mounted.root / "remote/one").open() as file:
        assert file.read() == "of the server: one"
    nfsd.stop()
    mounted.unmount()
    assert not os.path.ismount(mounted.root)
    nfsd.start()
    nfsd.unmount(target)  # nothing of the union's holds it


@VERSIONS
@pytest.mark.parametrize("marks", ["", "userxattr"])
def test_an_upper_on_nfs_is_refused(
    nfsd: Nfsd, layers: Layers, exported: Path, version: str, marks: str
) -> None:
    """Before anything is mounted or changed, as the kernel's overlayfs does."""
    place = nfsd.mount(exported, version, *IMPATIENT)
    layers.upper, layers.work = place / "upper", place / "work"
    layers.upper.mkdir()
    layers.work.mkdir()
    done = subprocess.run(
        ["unionfs", "mount", "-o", layers.options(marks), str(layers.merged)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode != 0
    assert f"upperdir={layers.upper}: its file system cannot exchange two names" in done.stderr
    assert not os.path.ismount(layers.merged)
    assert os.listdir(layers.upper) == os.listdir(layers.work) == []


@VERSIONS
def test_an_upper_on_nfs_is_read(
    nfsd: Nfsd, layers: Layers, exported: Path, union: Mount, version: str
) -> None:
    """With `ro` it is one more lower."""
    layers.upper = nfsd.mount(exported, version, *IMPATIENT)
    layers.lower_may_change = True
    root = union("ro").root
    assert (root / "hidden").read_text() == "of the server"
    assert sorted(os.listdir(root / "both")) == ["local", "remote"]
    expect(errno.EROFS, (root / "new").touch)
