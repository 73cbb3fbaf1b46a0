"""A whole Debian as an image: in, used, out again, with other programs as witnesses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests import tree
from tests.real import debian
from tests.store.bundles import digest
from tests.store.test_images import Ground

pytestmark = [pytest.mark.slow, pytest.mark.needs_root]


@pytest.mark.parametrize("options", [["--format=pax", "--xattrs", "--acls"], ["--format=gnu"]])
def test_debian_comes_out_as_it_came_in(scratch: Path, options: list[str]) -> None:
    root = debian.root()
    path = scratch / "debian.tar"
    subprocess.run(["tar", *options, "-C", str(root), "-cf", str(path), "."], check=True)
    ground = Ground(scratch, "overlay", {})
    with closing(ground.store):
        image = ground.add(path, "debian")
        assert image.layers == (digest(path.read_bytes()),)
        with ground.seen("debian", commit="changed") as mounted:
            ignored = ["directory.nlink", *(["mtime"] if "--format=gnu" in options else [])]
            tree.assert_same(tree.snapshot(root), tree.snapshot(mounted), ignore=ignored)
            done = subprocess.run(
                ["chroot", str(mounted), "dpkg", "--verify"], capture_output=True, check=False
            )
            assert (done.returncode, done.stdout) == (0, b"")
            shutil.rmtree(mounted / "usr/share/doc")
        out = ground.tar("out.tar", ground.export("changed", compression="none"))
        usage = ground.store.driver.usage("changed")
        assert usage.size < 1 << 20
    if shutil.which("skopeo"):
        told = subprocess.run(
            ["skopeo", "inspect", "--config", f"oci-archive:{out}"], capture_output=True, check=True
        )
        diff_ids = json.loads(told.stdout)["rootfs"]["diff_ids"]
        assert diff_ids[0] == image.layers[0]
        assert len(diff_ids) == 2
    assert os.path.getsize(out) < path.stat().st_size + (8 << 20)
