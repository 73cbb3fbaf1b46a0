"""An ordinary user's Podman: unions of ours that are mounted in his user namespace."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.engines.ground import USER
from tests.engines.ours import ASK_ROOT, FUSE, assert_ours
from tests.engines.podman import Podman

pytestmark = pytest.mark.needs_root

#: The first of his subordinate ids: 1 in his namespace.
FIRST = 100000

KINDS = {
    "default": (),
    "keep-id": ("--userns", "keep-id"),
    "uidmap": ("--uidmap", "0:1:5000", "--gidmap", "0:1:5000"),
}
#: Owners of what is below, of what is copied up, and of what is new.
OWNERS = """
    stat -c %u:%g / /etc/words /home/user
    echo more >>/etc/words; touch /new; chown 5:7 /new; chown 8:9 /data/old
    stat -c %u:%g /etc/words /new /data/old
"""
SEEN = ["0:0", "0:0", "1000:1001", "0:0", "5:7", "8:9"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_root_is_ours(rootless: Podman, kind: str) -> None:
    assert_ours(rootless("run", "--rm", *KINDS[kind], "base", "sh", "-c", ASK_ROOT))


@pytest.mark.parametrize("kind", KINDS)
def test_owners(rootless: Podman, kind: str) -> None:
    options = (*KINDS[kind], "--user", "0")
    shown = rootless("run", "--name", "owning", *options, "base", "sh", "-c", OWNERS)
    assert shown.split() == SEEN
    rootless("commit", "--quiet", "owning", "owned")
    try:
        script = "stat -c %u:%g / /etc/words /home/user; stat -c %u:%g /etc/words /new /data/old"
        assert rootless("run", "--rm", "owned", "sh", "-c", script).split() == SEEN
    finally:
        rootless.clear()
        rootless("rmi", "owned")


def test_what_he_writes_is_his_on_the_disk(rootless: Podman) -> None:
    rootless("run", "--name", "writing", "base", "sh", "-c", OWNERS)
    upper = rootless.layer("writing")["UpperDir"]
    assert os.lstat(f"{upper}/etc/words").st_uid == USER
    assert os.lstat(f"{upper}/new").st_uid == FIRST + 5 - 1


def test_keep_id_is_himself(rootless: Podman) -> None:
    home = rootless.ground.base / "home"
    script = f"id -u; stat -c %u {home}; touch {home}/made; stat -c %u {home}/made; touch /tmp/in"
    options = ("--userns", "keep-id", "-v", f"{home}:{home}")
    shown = rootless("run", "--name", "himself", *options, "base", "sh", "-c", script)
    assert shown.split() == [str(USER)] * 3
    assert (home / "made").stat().st_uid == USER
    (home / "made").unlink()
    # On the disk all is as without a mapping, where his number belongs to another of his ids.
    upper = rootless.layer("himself")["UpperDir"]
    assert os.lstat(f"{upper}/tmp/in").st_uid == FIRST + USER - 1


def test_changes_are_in_the_upper_and_in_diff(rootless: Podman) -> None:
    script = "rm /etc/words; mkdir /etc/words; rm /data/old; mv /home/user /home/moved; touch /new"
    rootless("run", "--name", "changing", "base", "sh", "-c", script)
    changes = set(rootless("diff", "changing").splitlines())
    assert changes == {
        *("C /etc", "C /etc/words", "C /data", "D /data/old", "C /home", "D /home/user"),
        *("A /home/moved", "A /new"),
    }
    upper = rootless.layer("changing")["UpperDir"]
    assert stat.S_ISCHR(os.lstat(f"{upper}/data/old").st_mode)
    assert os.getxattr(f"{upper}/etc/words", "user.overlay.opaque") == b"y"


def test_exec_restart_and_cp(rootless: Podman) -> None:
    rootless("run", "--detach", "--init", "--name", "lasting", "base", "sleep", "99")
    rootless("exec", "--user", "user", "lasting", "touch", "/home/user/his")
    rootless("restart", "--time", "0", "lasting")
    rootless("cp", "lasting:/home/user/his", f"{rootless.ground.base}/home/his")
    rootless("cp", f"{rootless.ground.base}/home/his", "lasting:/home/user/copy")
    shown = rootless("exec", "lasting", "stat", "-c", "%U", "/home/user/his", "/home/user/copy")
    assert shown.split() == ["user", "root"]


def test_build(rootless: Podman) -> None:
    context = rootless.ground.base / "home/context"
    rootless("-p", str(context), program="mkdir")
    (context / "file").write_text("file\n")
    (context / "Containerfile").write_text("""
        FROM base
        COPY --chown=user file /home/user/
        RUN chown 5:7 /data/old; rm /etc/words; mv /home/user/file /home/user/moved
        USER user
        RUN echo his >>/home/user/moved
    """)
    rootless("build", "--network", "none", "--tag", "app", str(context), seconds=80)
    try:
        script = "stat -c %u:%g /data/old /home/user/moved; cat /home/user/moved; ls /etc"
        shown = rootless("run", "--rm", "app", "sh", "-c", script).split()
        assert shown[:4] == ["5:7", "1000:1001", "file", "his"]
        assert "words" not in shown
    finally:
        rootless("rmi", "--force", "app")


def test_volumes_and_overlays(rootless: Podman) -> None:
    mounts = ("-v", "data:/v")
    rootless("run", "--rm", *mounts, "base", "sh", "-c", "echo kept >/v/file; chown 5:7 /v/file")
    assert rootless("run", "--rm", *mounts, "base", "stat", "-c", "%u:%g", "/v/file") == "5:7"
    source = rootless.ground.base / "home/source"
    rootless("-p", str(source), program="mkdir")
    (source / "file").write_text("of the host\n")
    os.chown(source / "file", USER, USER)
    script = "stat -f -c %t /s; echo changed >/s/file; cat /s/file"
    shown = rootless("run", "--rm", "-v", f"{source}:/s:O", "base", "sh", "-c", script)
    assert shown.split() == [FUSE, "changed"]
    assert (source / "file").read_text() == "of the host\n"
    rootless("volume", "rm", "data")


def test_mount(rootless: Podman) -> None:
    """Only inside of his namespaces, which `podman unshare` enters."""
    rootless("create", "--name", "still", "base", "cat", "/data/new")
    script = "root=$(podman mount still); stat -f -c %t $root; echo out >$root/data/new; ls $root"
    shown = rootless("unshare", "sh", "-c", f"{script}; podman unmount still").split()
    assert shown[0] == FUSE
    assert {"bin", "data", "etc"} <= set(shown)
    assert rootless("start", "--attach", "still") == "out"


def test_save_and_load(rootless: Podman) -> None:
    rootless("run", "--name", "changed", "base", "sh", "-c", f"{OWNERS} rm -r /home/user")
    rootless("commit", "--quiet", "changed", "kept")
    rootless("rm", "changed")
    path = Path(rootless.ground.base / "home/kept.tar")
    rootless("save", "--output", str(path), "kept")
    rootless("rmi", "kept")
    rootless("load", "--input", str(path))
    path.unlink()
    script = "stat -c %u:%g /etc/words /new /data/old; ls /home"
    assert rootless("run", "--rm", "kept", "sh", "-c", script).split() == ["0:0", "5:7", "8:9"]
    rootless("rmi", "kept")
