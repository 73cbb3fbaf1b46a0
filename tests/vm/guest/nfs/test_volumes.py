"""Volumes of ``type=nfs``: directories of the kernel's server, mounted by mount(8)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import build
from tests.vm.guest.nfs.server import Nfsd, run

pytestmark = pytest.mark.needs_root

VERSIONS = pytest.mark.parametrize("version", ["3", "4.2"])


@pytest.fixture
def store(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of this test's own."""
    monkeypatch.setenv("UNIONFS_ROOT", str(scratch / "store"))
    return scratch / "store"


def create(name: str, path: Path, options: str) -> None:
    """Make the volume *name* of the server's directory *path*."""
    kind = ("--opt", "type=nfs", "--opt", f"o=addr=127.0.0.1,{options}")
    run("unionfs", "volume", "create", *kind, "--opt", f"device=:{path}", name)


@VERSIONS
def test_a_volume_of_the_server(nfsd: Nfsd, store: Path, scratch: Path, version: str) -> None:
    """Made, used at two places at once, removed; what is in it stays the server's."""
    exported = scratch / "exported"
    build.write(exported / "file", "of the server")
    nfsd.export(exported, "rw,no_subtree_check")
    one, two = scratch / "one", scratch / "two"
    one.mkdir()
    two.mkdir()
    create("data", exported, f"nfsvers={version}")
    run("unionfs", "volume", "mount", "data", one)
    run("unionfs", "volume", "mount", "data", two)
    assert (one / "file").read_text() == "of the server"
    (one / "new").write_text("of the volume")
    assert (two / "new").read_text() == "of the volume"
    for place in (one, two):
        run("unionfs", "volume", "umount", place)
        assert os.listdir(place) == []
    run("unionfs", "volume", "rm", "data")
    assert (exported / "new").read_text() == "of the volume"
    assert run("unionfs", "volume", "ls", "-q") == ""


def test_a_volume_that_the_server_does_not_export(nfsd: Nfsd, store: Path, scratch: Path) -> None:
    """What the server says is told; the volume is not in use, and can be removed."""
    place = scratch / "place"
    place.mkdir()
    create("data", scratch / "nothing", "nfsvers=3")
    with pytest.raises(AssertionError, match=r"data: .*(denied|No such file)"):
        run("unionfs", "volume", "mount", "data", place)
    run("unionfs", "volume", "rm", "data")
