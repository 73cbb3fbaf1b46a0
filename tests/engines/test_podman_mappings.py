"""User namespaces of root's Podman: owners are shown mapped, and once."""

from __future__ import annotations

import os

import pytest

from tests.engines.ours import ASK_ROOT, assert_ours
from tests.engines.podman import Podman

pytestmark = pytest.mark.needs_root

MAPPED = ("--uidmap", "0:20000:5000", "--gidmap", "0:30000:5000")
AUTO = ("--userns", "auto:size=4096")

#: Owners as the container sees them, of what is below, of what is copied up, of what is new.
OWNERS = """
    stat -c %u:%g / /bin /etc/words /home/user; id -u
    echo more >>/etc/words; touch /new; chown 5:7 /new; chown 8:9 /data/old
    stat -c %u:%g /etc/words /new /data/old
"""
SEEN = ["0:0", "0:0", "0:0", "1000:1001", "0", "0:0", "5:7", "8:9"]


@pytest.mark.parametrize("options", [MAPPED, AUTO], ids=["uidmap", "auto"])
def test_owners_are_mapped(podman: Podman, options: tuple[str, ...]) -> None:
    assert podman("run", *options, "base", "sh", "-c", OWNERS).split() == SEEN


def test_a_commit_holds_what_the_upper_holds(podman: Podman) -> None:
    """Podman 4.3 commits the ids of the host, on the kernel's overlayfs too."""
    podman("run", "--name", "mapped", *MAPPED, "base", "sh", "-c", OWNERS)
    podman("commit", "--quiet", "mapped", "committed")
    try:
        script = "stat -c %u:%g /home/user /etc/words /new /data/old"
        shown = podman("run", "--rm", "committed", "sh", "-c", script)
        assert shown.split() == ["1000:1001", "20000:30000", "20005:30007", "20008:30009"]
    finally:
        podman.clear()
        podman("rmi", "committed")


@pytest.mark.parametrize("options", [MAPPED, AUTO], ids=["uidmap", "auto"])
def test_the_root_is_ours(podman: Podman, options: tuple[str, ...]) -> None:
    assert_ours(podman("run", "--rm", *options, "base", "sh", "-c", ASK_ROOT))


def test_what_is_new_belongs_on_the_disk_to_the_mapped(podman: Podman) -> None:
    podman("run", "--name", "mapped", *MAPPED, "base", "sh", "-c", OWNERS)
    upper = podman.layer("mapped")["UpperDir"]
    found = {name: os.lstat(f"{upper}/{name}") for name in ("new", "data/old", "etc/words")}
    owners = {name: (status.st_uid, status.st_gid) for name, status in found.items()}
    # With idmapped lowers the upper is not: it holds the ids of the host.
    assert owners == {
        "new": (20005, 30007),
        "data/old": (20008, 30009),
        "etc/words": (20000, 30000),
    }


def test_two_ranges_see_one_image(podman: Podman) -> None:
    script = "stat -c %u:%g /home/user; cat /proc/self/uid_map"
    first, second = (
        podman("run", *options, "base", "sh", "-c", script).split()
        for options in (MAPPED, ("--uidmap", "0:50000:5000"))
    )
    assert first == ["1000:1001", "0", "20000", "5000"]
    assert second == ["1000:1001", "0", "50000", "5000"]


def test_a_user_without_a_mapping_is_nobody(podman: Podman) -> None:
    options = ("--uidmap", "0:20000:500", "--gidmap", "0:30000:500")
    script = "stat -c %u:%g /home/user; touch /home/user/no; chown 600 /etc/words"
    assert podman("run", "--rm", *options, "base", "sh", "-c", script, status=1) == "65534:65534"
    assert podman.said.count("touch: ") == 1
    assert podman.said.count("chown: ") == 1
