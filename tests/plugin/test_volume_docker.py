"""What Docker alone has: an id for each container, a daemon that restarts, crashes, or does not."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.container.runner import wait_for
from tests.engines.docker import Docker
from tests.plugin.in_ground import Engine

pytestmark = pytest.mark.needs_root


def daemon(docker: Engine) -> Docker:
    assert isinstance(docker.engine, Docker)
    return docker.engine


def test_an_id_for_each_container(docker: Engine) -> None:
    docker.create("data")
    docker.begin("one", "data:/v")
    docker.begin("two", "data:/v")
    users = docker.plugin.users("data")
    assert all(re.fullmatch("[0-9a-f]{64}", user) for user in users)
    assert len(set(users)) == 2
    docker.plugin.restart("KILL")
    docker.end("one")
    assert docker.plugin.users("data") == users[1:]
    docker("stop", "--time", "0", "two")
    assert docker.plugin.users("data") == []
    docker("start", "two")
    assert len(docker.plugin.users("data")) == 1


def test_copies_of_containers_that_run(docker: Engine) -> None:
    """Mount comes once more, and so does Unmount."""
    docker.create("cache", type="tmpfs")
    docker.begin("one", "cache:/v")
    docker("exec", "one", "sh", "-c", "echo inside >/v/file")
    users = docker.plugin.users("cache")
    copy = docker.base / "copy"
    docker("cp", "one:/v/file", str(copy))
    assert copy.read_text() == "inside\n"
    copy.write_text("outside\n")
    docker("cp", str(copy), "one:/v/file")
    assert docker("exec", "one", "cat", "/v/file") == "outside"
    assert docker.plugin.users("cache") == users


def test_prune(docker: Engine) -> None:
    """Docker's takes its own volumes alone; ours takes those that no container uses."""
    docker.create("used")
    docker.create("unused")
    docker.begin("user", "used:/v")
    assert "unused" not in docker("volume", "prune", "--force")
    assert docker.plugin.names() == ["unused", "used"]
    assert "unused" in docker.plugin.unionfs("volume", "prune", "--force")
    assert docker.plugin.names() == ["used"]
    # It is Docker's no more either.
    assert docker("volume", "ls", "--quiet").split() == ["used"]


def test_made_by_our_own_command(docker: Engine) -> None:
    docker.plugin.unionfs("volume", "create", "ours", "--opt", "type=tmpfs")
    assert docker("volume", "ls", "--quiet") == "ours"
    docker("run", "--rm", "--volume-driver=unionfs", "-v", "ours:/v", "base", "touch", "/v/file")
    docker("run", "--rm", "--mount", "src=new,dst=/v,volume-driver=unionfs", "base", "true")
    assert docker.plugin.names() == ["new", "ours"]


def test_one_without_a_name(docker: Engine) -> None:
    """It goes with its container."""
    docker("run", "--rm", "--volume-driver=unionfs", "-v", "/v", "base", "touch", "/v/file")
    assert docker.plugin.names() == []


def test_dockerd_restarts(docker: Engine) -> None:
    docker.create("data")
    docker.create("cache", type="tmpfs")
    docker.begin("one", "data:/v", "echo kept >/v/file; sleep 600")
    docker.begin("two", "cache:/v")
    wait_for(lambda: docker("exec", "one", "ls", "/v") == "file")
    daemon(docker).stop()
    assert docker.plugin.users("data") == docker.plugin.users("cache") == []
    assert docker.plugin.mounted() == []
    daemon(docker).start()
    assert docker.sh("data:/v", "cat /v/file") == "kept"
    docker("start", "one")
    assert len(docker.plugin.users("data")) == 1


@pytest.fixture
def live_restore(docker: Engine) -> Iterator[Engine]:
    """A dockerd whose containers live on without it."""
    daemon(docker).stop()
    daemon(docker).start("--live-restore")
    yield docker
    docker.engine.clear()
    daemon(docker).stop()
    daemon(docker).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_dockerd_and_plugin_restart_under_containers(
    live_restore: Engine, number: signal.Signals
) -> None:
    """Nothing is mounted anew, and the end of a container is counted."""
    docker = live_restore
    docker.create("cache", type="tmpfs")
    docker.begin("one", "cache:/v")
    docker("exec", "one", "sh", "-c", "echo here >/v/file")
    users = docker.plugin.users("cache")
    assert len(users) == 1
    daemon(docker).stop(number)
    docker.plugin.restart("KILL")
    daemon(docker).start("--live-restore")
    assert docker.plugin.users("cache") == users
    assert docker("exec", "one", "cat", "/v/file") == "here"
    assert docker.sh("cache:/v", "cat /v/file") == "here"
    docker.end("one")
    assert docker.plugin.users("cache") == []
    assert docker.plugin.mounted() == []


def test_dockerd_crashes(docker: Engine) -> None:
    """What it had mounted it never unmounts; the volume can be used on, and removed."""
    docker.create("data")
    docker.begin("one", "data:/v", "echo kept >/v/file; sleep 600")
    wait_for(lambda: docker("exec", "one", "ls", "/v") == "file")
    (lost,) = docker.plugin.users("data")
    daemon(docker).stop(signal.SIGKILL)
    daemon(docker).start()
    assert docker.sh("data:/v", "cat /v/file") == "kept"
    docker.end("one")
    assert docker.plugin.users("data") == [lost]
    docker("volume", "rm", "data")
    assert docker.plugin.names() == []


@pytest.mark.slow
def test_the_plugin_does_not_answer(docker: Engine) -> None:
    """Docker tries for a while, and then says so; containers that have no such volume run."""
    docker.create("data")
    docker.plugin.stop()
    try:
        assert docker("run", "--rm", "base", "echo", "fine") == "fine"
        waiting = docker.engine.ground.start(
            *(Docker.CLIENT, f"--host=unix://{daemon(docker).socket}"),
            *("run", "--rm", "-v", "data:/v", "base", "true"),
        )
        said = waiting.communicate(timeout=90)[1]
        assert waiting.returncode != 0
        assert "plugins/unionfs.sock: connect: no such file" in said
    finally:
        docker.plugin.start()
    docker.sh("data:/v", "true")


def test_the_plugin_comes_back_while_docker_tries(docker: Engine) -> None:
    docker.create("data")
    docker.plugin.stop()
    waiting: subprocess.Popen[str] = docker.engine.ground.start(
        *(Docker.CLIENT, f"--host=unix://{daemon(docker).socket}"),
        *("run", "--rm", "-v", "data:/v", "base", "sh", "-c", "touch /v/file; ls /v"),
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
    finally:
        docker.plugin.start()
    assert waiting.communicate(timeout=40)[0] == "file\n"
    assert waiting.returncode == 0
