"""Containers of an ordinary user: root of a user namespace, with the subordinate ids of his."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import system
from tests.container.runner import Runner, fill, wait_for
from tests.ordinary import USER, become_user

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("device")]

#: The subordinate ids of the user, first and number.
FIRST, COUNT = 200_000, 65_536


@pytest.fixture
def subids(scratch: Path) -> Iterator[Path]:
    """/etc/subuid and /etc/subgid in our own mount namespace: one file for both."""
    path = scratch / "subids"
    path.write_text(f"other:100000:65536\nnobody:{FIRST}:{COUNT}\n")
    path.chmod(0o644)
    places = [Path("/etc/subuid"), Path("/etc/subgid")]
    missing = [place for place in places if not place.exists()]
    for place in missing:
        place.touch()
    for place in places:
        system.mount(path, place, None, system.MS_BIND)
    yield path
    for place in places:
        system.umount(place)
    for place in missing:
        place.unlink()


@pytest.fixture
def rootless(scratch: Path, python: dict[str, str], subids: Path) -> Iterator[Runner]:
    """Runs commands as an ordinary user, over an image that he brought in himself."""
    fill(scratch / "tree")
    home = scratch / "home"
    home.mkdir()
    os.chown(home, USER, USER)
    subprocess.run(["chown", "-hR", f"{USER}:{USER}", str(scratch / "tree")], check=True)
    made = Runner(home, {**python, "HOME": str(home)}, become_user)
    made.unionfs("image", "import", str(scratch / "tree"), "base")
    try:
        yield made
        made.wait_until_gone()
    finally:
        made.end()


def test_a_user_is_root_of_his_own(rootless: Runner) -> None:
    script = """
        id -u; touch /mine; chown 5:7 /mine; stat -c %u:%g /mine /etc/words
        cat /proc/self/uid_map; ps -o args | wc -l; hostname; echo x >/dev/null
        mount -t tmpfs none /data; ls /data; echo y >/tmp/file; cat /tmp/file
    """
    shown = rootless.run("--rm", "--name", "its-name", "base", "sh", "-c", script).split()
    assert shown == [
        *("0", "5:7", "0:0"),
        *("0", str(USER), "1", "1", str(FIRST), str(COUNT)),
        *("5", "its-name", "y"),
    ]


def test_his_other_users_are_his_subordinate_ids(rootless: Runner, scratch: Path) -> None:
    shared = scratch / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    options = ["--rm", "-u", "user", "-v", f"{shared}:/s"]
    assert rootless.run(*options, "base", "sh", "-c", "touch /s/file; id -un") == "user\n"
    status = (shared / "file").stat()
    assert (status.st_uid, status.st_gid) == (FIRST + 1000 - 1, FIRST + 1001 - 1)


def test_a_kept_layer_of_many_users_can_be_committed_and_removed(rootless: Runner) -> None:
    script = "mkdir /d; echo deep >/d/file; chown -R 5:7 /d; chmod 700 /d"
    rootless.run("--name", "kept", "base", "sh", "-c", script)
    rootless.run("--name", "again", "base", "sh", "-c", script)
    rootless.unionfs("snapshot", "commit", "image", "kept")
    assert rootless.run("--rm", "image", "cat", "/d/file") == "deep\n"
    rootless.unionfs("snapshot", "rm", "again", "image")
    assert not {"again", "image", "kept"} & set(rootless.snapshots())


def test_a_terminal_and_a_limit(rootless: Runner) -> None:
    options = ["--rm", "-t", "--read-only", "--tmpfs", "/t:size=64k"]
    script = (
        "tty; touch /no 2>/dev/null || echo refused; head -c 100000 /dev/zero >/t/f || echo full"
    )
    shown = rootless.run(*options, "base", "sh", "-c", script)
    assert shown.splitlines()[:2] == ["/dev/pts/0", "refused"]
    assert shown.splitlines()[-1] == "full"


def test_status_and_signals(rootless: Runner) -> None:
    rootless.run("--rm", "base", "sh", "-c", "exit 9", status=9)
    rootless.refuse("base", "nosuch", status=127)
    process = rootless.start("--rm", "base", "sh", "-c", "echo on; exec sleep 100")
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM


def test_killed(rootless: Runner) -> None:
    script = "echo whole >/file; touch /data/ready; exec sleep 100"
    rootless.run("-d", "--name", "victim", "base", "sh", "-c", script)
    wait_for(lambda: "/data/ready" in rootless.unionfs("snapshot", "diff", "victim"))
    os.kill(rootless.supervisor("victim"), signal.SIGKILL)
    rootless.wait_until_gone()
    rootless.unionfs("snapshot", "commit", "whole", "victim")
    assert rootless.run("--rm", "whole", "cat", "/file") == "whole\n"


def test_root_without_privilege_is_told(runner: Runner) -> None:
    command = ["setpriv", "--bounding-set", "-sys_admin", *runner.command_line()]
    done = subprocess.run(
        [*command, "run", "base", "true"],
        env=runner.surroundings(),
        capture_output=True,
        text=True,
        check=False,
    )
    said = "unionfs: a mount namespace of its own: Operation not permitted\n"
    assert (done.returncode, done.stderr) == (125, said)
    assert runner.snapshots() == ["base"]


def test_without_subordinate_ids(rootless: Runner, subids: Path) -> None:
    subids.write_text("other:100000:65536\n")
    said = rootless.refuse("base", "true")
    assert said == (
        "/etc/subuid: no subordinate ids for nobody: run as root, or let root run"
        " usermod --add-subuids 100000-165535 --add-subgids 100000-165535 nobody"
    )


def test_without_the_programs_that_map(rootless: Runner) -> None:
    said = rootless.refuse("base", "true", env={"PATH": "/nosuch"})
    assert said == "newuidmap is not in PATH: run as root, or install the package uidmap"


def test_ids_that_are_refused(rootless: Runner, subids: Path) -> None:
    """What newuidmap says is told; it looks at the same file, and finds too little there."""
    subids.write_text(f"nobody:{FIRST}:{COUNT}\nnobody:4294967290:100\n")
    said = rootless.refuse("base", "true")
    assert said.startswith("no user namespace with more than one user: newuidmap: ")


def test_volumes(rootless: Runner) -> None:
    """Shared between containers; files of other users can be backed up and removed."""
    script = "mkdir /v/d; echo deep >/v/d/file; chown -R 5:7 /v/d; chmod 700 /v/d"
    rootless.run("--rm", "-v", "vol:/v", "base", "sh", "-c", script)
    assert rootless.run("--rm", "-v", "vol:/v:ro", "base", "cat", "/v/d/file") == "deep\n"
    rootless.unionfs("volume", "backup", "-q", "vol", "b.tar.gz")
    rootless.unionfs("volume", "rm", "vol")
    rootless.unionfs("volume", "restore", "-q", "b.tar.gz", "other")
    script = "stat -c %u:%g /v/d/file; cat /v/d/file"
    assert rootless.run("--rm", "-v", "other:/v", "base", "sh", "-c", script) == "5:7\ndeep\n"
