"""Root's Podman: containers whose root file system is a union of ours."""

from __future__ import annotations

import json
import os
import stat

import pytest

from tests.engines.ours import ASK_ROOT, assert_ours, assert_ours_at
from tests.engines.podman import Podman
from unionfs import __version__

pytestmark = pytest.mark.needs_root

#: Each kind of change once; what `podman diff` says of them.
CHANGES = """
    set -e
    echo new >/new; echo more >>/data/old; rm /etc/words; chmod 4755 /bin/busybox
    mv /home/user /home/renamed; mkdir -p /deep/er; ln -s new /link; ln /new /same
    chown 5:7 /tmp; rm -r /home/renamed; mknod /pipe p; mkdir /etc/words
"""
DIFF = """
    A /deep  A /deep/er  A /link  A /new  A /pipe  A /same  C /bin  C /bin/busybox  C /data
    C /data/old  C /etc  C /etc/words  C /home  C /tmp  D /home/user
"""


def pairs(text: str) -> list[str]:
    """Lines and columns of pairs alike, sorted."""
    words = text.split()
    return sorted(f"{kind} {name}" for kind, name in zip(words[::2], words[1::2], strict=True))


def test_the_root_of_a_container_is_ours(podman: Podman) -> None:
    assert_ours(podman("run", "--rm", "base", "sh", "-c", ASK_ROOT))


def test_info_shows_our_version(podman: Podman) -> None:
    store = json.loads(podman("info", "--format", "json"))["store"]
    assert store["graphDriverName"] == "overlay"
    shown = store["graphOptions"]["overlay.mount_program"]
    assert shown["Executable"].endswith("/fuse-overlayfs")
    assert __version__ in shown["Version"]


def test_changes_are_in_the_upper_and_in_diff(podman: Podman) -> None:
    podman("run", "--name", "changing", "base", "sh", "-c", CHANGES)
    assert pairs(podman("diff", "changing")) == pairs(DIFF)
    upper = podman.layer("changing")["UpperDir"]
    assert sorted(os.listdir(upper)) == sorted(
        ["bin", "data", "deep", "etc", "home", "link", "new", "pipe", "run", "same", "tmp"]
    )
    assert stat.S_ISCHR(os.lstat(f"{upper}/home/user").st_mode)
    assert os.getxattr(f"{upper}/etc/words", "trusted.overlay.opaque") == b"y"
    status = os.lstat(f"{upper}/tmp")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (5, 7, 0o1777)
    assert stat.S_IMODE(os.lstat(f"{upper}/bin/busybox").st_mode) == 0o4755
    assert os.lstat(f"{upper}/new").st_nlink == 2


def test_siblings_share_the_image_and_nothing_else(podman: Podman) -> None:
    for name in ("first", "second"):
        script = f"echo {name} >/etc/words; rm /data/old; sleep 99"
        podman("run", "--detach", "--name", name, "base", "sh", "-c", script)
    for name in ("first", "second"):
        script = "while test -e /data/old; do :; done; cat /etc/words"
        assert podman("exec", name, "sh", "-c", script) == name
    assert podman("run", "--rm", "base", "cat", "/etc/words", "/data/old") == "of the image\nold"


def test_exec_and_restart(podman: Podman) -> None:
    podman("run", "--detach", "--init", "--name", "lasting", "base", "sleep", "99")
    assert_ours(podman("exec", "lasting", "sh", "-c", ASK_ROOT))
    assert podman("exec", "-i", "lasting", "tee", "/typed", typed="by hand") == "by hand"
    podman("exec", "--user", "user", "--workdir", "/home/user", "lasting", "touch", "his")
    assert podman("exec", "lasting", "stat", "-c", "%U:%G", "/home/user/his") == "user:user"
    podman("pause", "lasting")
    podman("unpause", "lasting")
    podman("restart", "--time", "0", "lasting")
    assert podman("exec", "lasting", "cat", "/typed", "/etc/words") == "by handof the image"
    podman("stop", "--time", "0", "lasting")
    podman("start", "lasting")
    assert podman("exec", "lasting", "stat", "-c", "%U %a", "/home/user/his") == "user 644"


def test_many_at_once(podman: Podman) -> None:
    script = """
        run() { podman run --rm base sh -c "echo $1 >>/data/old; cat /data/old"; }
        for number in 1 2 3 4 5 6; do run $number & done
        wait
    """
    shown = podman("-c", script, program="sh").split()
    assert sorted(shown) == sorted([*"123456", *["old"] * 6])


def test_a_read_only_root(podman: Podman) -> None:
    script = """
        touch /new /etc/words; rm /data/old; chmod 700 /bin; mkdir /tmp/it && echo made
    """
    said = podman("run", "--name", "frozen", "--read-only", "base", "sh", "-c", script)
    assert said == "made"  # Podman has a tmpfs there
    assert podman.said.count("Read-only file system") == 4
    assert pairs(podman("diff", "frozen")) == ["C /etc"]  # for its own mount points


def test_cp(podman: Podman) -> None:
    base = podman.ground.base
    (base / "sent").mkdir()
    (base / "sent/file").write_text("sent\n")
    (base / "sent/file").chmod(0o640)
    podman("create", "--name", "still", "base", "cat", "/data/sent/file")
    podman("cp", str(base / "sent"), "still:/data/")
    assert podman("start", "--attach", "still") == "sent"
    podman("run", "--detach", "--name", "awake", "base", "sh", "-c", "echo x >/made; sleep 99")
    podman("cp", str(base / "sent"), "awake:/data/")
    assert podman("exec", "awake", "stat", "-c", "%a %u", "/data/sent/file") == "640 0"
    podman("cp", "awake:/made", str(base / "taken"))
    podman("cp", "still:/etc/words", "awake:/etc/from")
    assert (base / "taken").read_text() == "x\n"
    assert podman("exec", "awake", "cat", "/etc/from") == "of the image"


def test_a_pod(podman: Podman) -> None:
    infra = ("--infra-command", "/bin/sleep 99", "--infra-image", "base")
    podman("pod", "create", *infra, "--name", "pod")
    for name in ("left", "right"):
        script = f"echo {name} >/mine; hostname >/dev/shm/host; sleep 99"
        podman("run", "--detach", "--pod", "pod", "--name", name, "base", "sh", "-c", script)
    for name in ("left", "right"):
        assert podman("exec", name, "sh", "-c", "cat /mine; hostname") == f"{name}\npod"
        assert_ours(podman("exec", name, "sh", "-c", ASK_ROOT))
    podman("pod", "stop", "--time", "0", "pod")
    podman("pod", "start", "pod")
    assert podman("exec", "left", "cat", "/mine") == "left"


def test_mount_and_unmount(podman: Podman) -> None:
    podman("create", "--name", "still", "base", "cat", "/data/new")
    target = podman("mount", "still")
    assert_ours_at(podman.ground, target)
    podman("-c", f"echo from outside >{target}/data/new", program="sh")
    assert podman("start", "--attach", "still") == "from outside"
    podman("unmount", "still")
    assert target not in [fields[4] for fields in podman.ground.mountinfo()]
    assert not os.path.exists(target)


def test_tmpfs(podman: Podman) -> None:
    script = "ls /cache; head -c 2000000 /dev/zero >/cache/big; stat -c %s /cache/big"
    tmpfs = ("--tmpfs", "/cache:size=1m")
    shown = podman("run", "--name", "small", *tmpfs, "base", "sh", "-c", script)
    assert shown == str(1 << 20)
    assert podman("start", "--attach", "small", status=0) == str(1 << 20)
    assert "A /cache/big" not in podman("diff", "small").splitlines()


def test_an_overlay_of_a_host_directory(podman: Podman) -> None:
    source = podman.ground.base / "source"
    source.mkdir()
    (source / "file").write_text("of the host\n")
    script = """
        stat -f -c %t /seen; grep -c ' /seen .* - fuse.unionfs ' /proc/self/mountinfo
        cat /seen/file; echo changed >/seen/file; touch /seen/new; cat /seen/file
    """
    shown = podman("run", "--name", "over", "-v", f"{source}:/seen:O", "base", "sh", "-c", script)
    assert shown.splitlines() == ["65735546", "1", "of the host", "changed"]
    assert os.listdir(source) == ["file"]
    assert (source / "file").read_text() == "of the host\n"


def test_an_overlay_of_a_host_directory_that_is_kept(podman: Podman) -> None:
    source, upper, work = (podman.ground.base / "kept" / name for name in ("s", "u", "w"))
    for directory in (source, upper, work):
        directory.mkdir(parents=True)
    (source / "file").write_text("of the host\n")
    volume = f"{source}:/seen:O,upperdir={upper},workdir={work}"
    for _ in range(2):
        podman("run", "--rm", "-v", volume, "base", "sh", "-c", "echo more >>/seen/file")
    assert (source / "file").read_text() == "of the host\n"
    assert (upper / "file").read_text() == "of the host\nmore\nmore\n"


def test_a_root_of_a_host_directory(podman: Podman) -> None:
    tree = podman.ground.base / "tree"
    script = f"{ASK_ROOT}; echo changed >/etc/words; touch /new"
    assert_ours(podman("run", "--rootfs", f"{tree}:O", "sh", "-c", script))
    assert (tree / "etc/words").read_text() == "of the image\n"
    assert not (tree / "new").exists()
