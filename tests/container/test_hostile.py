"""Images that mean harm to the one who starts a command in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.container.runner import Runner, fill
from unionfs.store.store import Store

pytestmark = pytest.mark.needs_root


def spoil(runner: Runner, script: str) -> None:
    """Commit the image ``hostile``: ``base`` after *script*, which runs in its root."""
    runner.run("--name", "making", "base", "sh", "-c", script)
    runner.unionfs("snapshot", "commit", "hostile", "making")


def replace(runner: Runner, path: str, target: str) -> None:
    """Commit the image ``hostile``: *path* is a link to *target*, without one a FIFO."""
    store = Store.open(str(runner.root), "overlay", {})
    store.driver.prepare("making", "")
    (mount,) = store.driver.mounts("making")
    tree = Path(mount.source)
    fill(tree)
    (tree / path).unlink(missing_ok=True)
    if target:
        (tree / path).symlink_to(target)
    else:
        os.mkfifo(tree / path)
    store.driver.commit("hostile", "making")
    store.close()


@pytest.mark.parametrize(
    "target", ["", "/proc/kmsg", "/sys/kernel/uevent_seqnum", "/dev/zero", "."]
)
@pytest.mark.parametrize("path", ["etc/passwd", "etc/group"])
def test_users_are_read_from_files_only(runner: Runner, path: str, target: str) -> None:
    replace(runner, path, target)
    said = runner.refuse("--rm", "hostile", "true")
    assert said == f"/{path}: not a regular file of the image"


def test_links_to_files_of_the_image_are_followed_inside(runner: Runner) -> None:
    spoil(runner, "mv /etc/passwd /data/users; ln -s /../../data/users /etc/passwd")
    assert runner.run("--rm", "-u", "user", "hostile", "id", "-u") == "1000\n"


@pytest.mark.parametrize("name", ["hostname", "hosts", "resolv.conf"])
@pytest.mark.parametrize("target", ["", "/nosuch/file", "/tmp/pipe"])
def test_nothing_in_the_way_of_a_containers_file_is_opened(
    runner: Runner, name: str, target: str
) -> None:
    replace(runner, f"etc/{name}", target)
    script = f"test -f /etc/{name} && echo file"
    assert runner.run("--rm", "hostile", "sh", "-c", script) == "file\n"
