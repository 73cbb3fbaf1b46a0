"""`podman system service`, asked by Docker's client."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.container.runner import wait_for
from tests.engines.conftest import need
from tests.engines.docker import Docker
from tests.engines.ours import ASK_ROOT, assert_ours
from tests.engines.podman import Podman

pytestmark = pytest.mark.needs_root

Client = Callable[..., str]


@pytest.fixture
def client(podman: Podman) -> Iterator[Client]:
    """Runs Docker's client on Podman's service."""
    need(Docker.CLIENT)
    socket = podman.ground.base / "podman.sock"
    socket.unlink(missing_ok=True)
    service = podman.ground.start(
        *("podman", "system", "service", "--time", "0", f"unix://{socket}"),
        environment=podman.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def docker(*arguments: str, status: int = 0) -> str:
        command = (Docker.CLIENT, f"--host=unix://{socket}", *arguments)
        settings = {"HOME": str(podman.home), "DOCKER_BUILDKIT": "0"}
        return podman.ground.run(*command, environment=settings, status=status).rstrip("\n")

    try:
        wait_for(socket.exists)
        yield docker
        podman.clear()
        podman("rmi", "--ignore", "--force", "kept", "app")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(service.pid, signal.SIGKILL)
        service.wait()


def test_containers(client: Client, podman: Podman) -> None:
    assert "Podman Engine" in client("version")
    assert_ours(client("run", "--rm", "base", "sh", "-c", ASK_ROOT))
    client("run", "--detach", "--name", "awake", "base", "sh", "-c", "rm /etc/words; sleep 99")
    wait_for(lambda: "D /etc/words" in client("diff", "awake"))
    assert client("exec", "awake", "ls", "/data") == "old"
    assert client("ps", "--quiet") == podman("ps", "--quiet")
    sent = podman.ground.base / "sent-by-docker"
    sent.write_text("sent\n")
    client("cp", str(sent), "awake:/data/sent")
    assert client("exec", "awake", "cat", "/data/sent") == "sent"
    client("commit", "awake", "kept")
    client("rm", "--force", "awake")
    assert client("run", "--rm", "kept", "ls", "/data").split() == ["old", "sent"]


def test_build_and_volumes(client: Client, podman: Podman) -> None:
    context = podman.ground.base / "service-context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM base\nCOPY file /file\nRUN cat /file >/copy\n")
    (context / "file").write_text("built\n")
    client("build", "--network", "none", "--tag", "app", str(context))
    assert client("run", "--rm", "app", "cat", "/copy") == "built"
    client("run", "--rm", "-v", "vol:/v", "base", "cp", "/data/old", "/v/")
    assert client("run", "--rm", "-v", "vol:/v", "base", "ls", "/v") == "old"
    client("volume", "rm", "vol")
