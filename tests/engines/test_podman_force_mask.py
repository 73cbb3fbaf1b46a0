"""Podman with `force_mask`: owners and modes are kept in an attribute, devices are plain files.

It is what Podman does by itself for homes on NFS. The mount program is called with
`xattr_permissions=2`, and layers that the engine has applied have the attribute.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.engines.conftest import need
from tests.engines.ground import Ground
from tests.engines.images import busybox_tar
from tests.engines.ours import ASK_ROOT, assert_ours, linked
from tests.engines.podman import Podman

pytestmark = pytest.mark.needs_root

OVERRIDE = "user.containers.override_stat"

CHANGE = """
    set -e
    echo more >>/etc/words; touch /new; chown 5:7 /new; chmod 640 /new; mkdir /dir; chmod 700 /dir
    chown 8:9 /data/old; ln -s new /link; chmod 755 /etc/words
"""
LOOK = "stat -c '%u:%g %a %F' /new /dir /data/old /etc/words /home/user"
SEEN = [
    "5:7 640 regular empty file",
    "0:0 700 directory",
    "8:9 644 regular file",
    "0:0 755 regular file",
    "1000:1001 755 directory",
]


@pytest.fixture(scope="module", params=[False, True], ids=["root", "user"])
def masked(request: pytest.FixtureRequest) -> Iterator[Podman]:
    """Podman whose files on the disk all belong to who runs it, with mode 0700."""
    need("podman", "runc", "tini", "busybox", "newuidmap", "catatonit", "slirp4netns")
    with closing(Ground()) as ground:
        podman = Podman(ground, linked(ground), user=request.param)
        with (podman.home / "storage.conf").open("a") as file:
            file.write('force_mask = "0700"\n')
        podman("import", str(busybox_tar(ground.base)), "base")
        yield podman


def test_a_container_sees_what_is_kept(masked: Podman) -> None:
    assert_ours(masked("run", "--rm", "base", "sh", "-c", ASK_ROOT))
    masked("run", "--name", "changed", "base", "sh", "-c", CHANGE)
    try:
        masked("commit", "--quiet", "changed", "kept")
        upper = masked.layer("changed")["UpperDir"]
        changes = masked("diff", "changed").splitlines()
        assert {"A /new", "C /data/old", "C /etc/words"} <= set(changes)
    finally:
        masked.clear()
    shown = masked("run", "--rm", "kept", "sh", "-c", LOOK).splitlines()
    assert shown == SEEN, "of the committed layer, which the engine has applied"
    assert not os.path.exists(upper), "and removed, although nobody but its owner may look in"


def test_what_is_on_the_disk(masked: Podman) -> None:
    # Podman 4.3 cannot commit these: it gives a fifo the attribute, and forgets the highest bits.
    script = f"{CHANGE}\nmkfifo /pipe; chmod 4640 /new; chmod 1700 /dir; stat -c %F /pipe"
    assert masked("run", "--name", "changed", "base", "sh", "-c", script) == "fifo"
    try:
        upper = masked.layer("changed")["UpperDir"]
        owner = os.lstat(upper).st_uid
        for name, kept in {
            "new": "5:7:4640:file",
            "dir": "0:0:1700:dir",
            "pipe": "0:0:0644:pipe",
            "data/old": "8:9:0644:file",
        }.items():
            path = f"{upper}/{name}"
            assert os.getxattr(path, OVERRIDE).decode() == kept
            status = os.lstat(path)
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (owner, 0o700)
        assert stat.S_ISREG(os.lstat(f"{upper}/pipe").st_mode)
    finally:
        masked.clear()
