"""Volumes of the store in containers: shared, kept, counted, backed up and restored."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.container.runner import Runner, wait_for
from unionfs.store.store import Store
from unionfs.store.volumes import Volumes

pytestmark = pytest.mark.needs_root


def users(runner: Runner, name: str) -> list[str]:
    """By whom volume *name* is used."""
    store = Store.open(str(runner.root), "overlay", {})
    try:
        volumes = Volumes(store)
        return [use.holder for use in volumes.uses(volumes.find(name))]
    finally:
        store.close()


def test_a_volume_is_made_at_its_first_use_and_outlives_it(runner: Runner) -> None:
    runner.run("--rm", "-v", "data:/v", "base", "sh", "-c", "echo kept >/v/file; chown 5:7 /v/file")
    shown = runner.run(
        "--rm", "-v", "data:/other", "base", "sh", "-c", "cat /other/file; ls -n /other"
    )
    assert shown.startswith("kept\n")
    assert shown.split()[-7:-5] == ["5", "7"] or " 5 " in shown
    assert users(runner, "data") == []


def test_read_only(runner: Runner) -> None:
    runner.run("--rm", "-v", "data:/v", "base", "touch", "/v/file")
    script = "ls /v; touch /v/no 2>/dev/null || echo refused; rm /v/file 2>/dev/null || echo kept"
    shown = runner.run("--rm", "-v", "data:/v:ro", "base", "sh", "-c", script)
    assert shown == "file\nrefused\nkept\n"


def test_a_new_volume_begins_with_what_the_image_has_there(runner: Runner) -> None:
    script = "chown 5:7 /data; chmod 750 /data; ln /data/old /data/link; ln -s old /data/symlink"
    runner.run("--name", "making", "base", "sh", "-c", script)
    runner.unionfs("snapshot", "commit", "owned", "making")
    script = "stat -c '%u:%g %a %h' /data /data/old; readlink /data/symlink; rm /data/old"
    shown = runner.run("--rm", "-v", "fresh:/data", "owned", "sh", "-c", script)
    assert shown == "5:7 750 2\n0:0 644 2\nold\n"
    # Not again: it is not empty any more.
    assert runner.run("--rm", "-v", "fresh:/data", "owned", "ls", "/data") == "link\nsymlink\n"


def test_a_writer_and_a_reader_at_once(runner: Runner) -> None:
    writing = "for i in $(seq 1 100); do echo $i >>/v/log; sleep 0.02; done; echo end >>/v/log"
    reading = "while ! grep -q end /v/log 2>/dev/null; do sleep 0.02; done; wc -l </v/log"
    reader = runner.start("--rm", "-v", "shared:/v:ro", "base", "sh", "-c", reading)
    writer = runner.start("--rm", "-v", "shared:/v", "base", "sh", "-c", writing)
    assert reader.communicate(timeout=60) == ("101\n", "")
    assert writer.communicate(timeout=60) == ("", "")
    assert users(runner, "shared") == []


def test_its_users_are_known_and_forgotten_when_they_are_killed(runner: Runner) -> None:
    script = "echo whole >/v/file; touch /v/ready; exec sleep 1000"
    for name in ("one", "two"):
        runner.run("-d", "--name", f"user-{name}", "-v", "data:/v", "base", "sh", "-c", script)
    assert users(runner, "data") == ["container user-one", "container user-two"]
    look = ("--rm", "-v", "data:/v", "base", "ls", "/v")
    wait_for(lambda: "ready" in runner.run(*look))
    os.kill(runner.supervisor("user-one"), signal.SIGKILL)
    wait_for(lambda: users(runner, "data") == ["container user-two"])
    os.kill(runner.supervisor("user-two"), signal.SIGTERM)
    runner.wait_until_gone()
    assert users(runner, "data") == []
    assert runner.run("--rm", "-v", "data:/v", "base", "cat", "/v/file") == "whole\n"


def test_one_in_memory_is_gone_with_its_users_also_when_they_are_killed(runner: Runner) -> None:
    options = ["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m"]
    runner.unionfs("volume", "create", *options, "memory")
    script = "dd if=/dev/zero of=/m/f bs=64k count=32 2>&1 | grep -o 'No space'; exec sleep 1000"
    runner.run("-d", "--name", "victim", "-v", "memory:/m", "base", "sh", "-c", script)
    log = runner.root / "containers/victim/log"
    wait_for(lambda: log.read_text() == "No space\n")
    assert runner.run("--rm", "-v", "memory:/m", "base", "stat", "-c", "%s", "/m/f") == "1048576\n"
    os.kill(runner.supervisor("victim"), signal.SIGKILL)
    wait_for(lambda: not runner.processes())
    assert runner.run("--rm", "base", "true") == ""
    runner.wait_until_gone()
    assert runner.run("--rm", "-v", "memory:/m", "base", "ls", "/m") == ""


def test_a_name_that_is_none(runner: Runner) -> None:
    assert runner.refuse("-v", "x:/v", "base", "true").startswith("x: not a name")
    assert runner.snapshots() == ["base"]


#: As a course on Docker has it, with `unionfs run` in place of `docker run`.
COURSE = r"""
set -e
unionfs run --rm -v VOL:/data IMAGE sh -c 'echo "important" > /data/file.txt'
unionfs run --rm -v VOL:/data IMAGE sh -c 'mkdir /data/sub; echo 2 > /data/sub/two'
unionfs run --rm -v VOL:/data -v $(pwd):/backup IMAGE tar czf /backup/b.tar.gz -C /data .
unionfs run --rm -v VOL:/data IMAGE sh -c 'rm -rf /data/*'
unionfs run --rm -v VOL2:/data -v $(pwd):/backup IMAGE sh -c "cd /data && tar xzf /backup/b.tar.gz"
unionfs run --rm -v VOL2:/data IMAGE ls /data
unionfs run --rm -v VOL2:/data IMAGE cat /data/file.txt /data/sub/two
unionfs run --rm -v $(pwd):/backup IMAGE tar tzf /backup/b.tar.gz
"""


def test_the_backup_of_a_course_word_for_word(
    runner: Runner, scratch: Path, tmp_path: Path
) -> None:
    runner.run("--name", "empty", "base", "rm", "-r", "/data")
    runner.unionfs("snapshot", "commit", "course", "empty")
    (scratch / "bin").mkdir()
    program = scratch / "bin/unionfs"
    command = runner.command_line()
    program.write_text(f'#!/bin/sh\nexec {" ".join(command)} "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", COURSE.replace("IMAGE", "course").replace("VOL", "my_volume")],
        cwd=tmp_path,
        env={**runner.surroundings(), "PATH": f"{scratch}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert shown[:4] == ["file.txt", "sub", "important", "2"]
    assert sorted(shown[4:]) == ["./", "./file.txt", "./sub/", "./sub/two"]
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        assert sorted(archive.getnames()) == [".", "./file.txt", "./sub", "./sub/two"]
