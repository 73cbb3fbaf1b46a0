"""What Podman sees when the daemon of a union is killed or its layers are broken."""

from __future__ import annotations

import os
import stat

import pytest

from tests.container.runner import wait_for
from tests.engines.ours import daemon
from tests.engines.podman import Podman

pytestmark = pytest.mark.needs_root


def test_a_killed_daemon_is_the_loss_of_its_own_container_only(podman: Podman) -> None:
    script = """
        echo whole >/written; rm /etc/words; mkdir /data/dir; echo ready; exec sh -c '
        while true; do echo x >>/data/growing; sleep 0.01; done'
    """
    podman("run", "-d", "--name", "bystander", "base", "sh", "-c", "echo alive >/it; sleep 99")
    podman("run", "-d", "--init", "--name", "struck", "base", "sh", "-c", script)
    upper = podman.layer("struck")["UpperDir"]
    wait_for(lambda: os.path.exists(f"{upper}/data/growing"))
    podman.ground.run("kill", "-KILL", daemon(podman.ground, upper))

    podman("exec", "struck", "cat", "/written", status=None)
    assert "not connected" in podman.said
    assert podman("exec", "bystander", "cat", "/it", "/data/old") == "alive\nold"
    podman("run", "--rm", "base", "true")
    assert "struck" in podman("ps", "--all")

    with open(f"{upper}/written") as file:
        assert file.read() == "whole\n"
    assert stat.S_ISCHR(os.lstat(f"{upper}/etc/words").st_mode)
    podman("rm", "--force", "--time", "0", "struck")
    assert not os.path.exists(upper)
    assert upper not in (fields[-1] for fields in podman.ground.mountinfo())


def test_a_container_starts_again_after_its_daemon_was_killed(podman: Podman) -> None:
    script = "test -e /written && cat /written /data/old; echo whole >/written; sleep 99"
    podman("run", "-d", "--name", "struck", "base", "sh", "-c", script)
    upper = podman.layer("struck")["UpperDir"]
    wait_for(lambda: os.path.exists(f"{upper}/written"))
    podman.ground.run("kill", "-KILL", daemon(podman.ground, upper))
    podman("stop", "--time", "0", "struck")
    podman("start", "struck")
    wait_for(lambda: "whole" in podman("logs", "struck"))
    assert podman("logs", "struck") == "whole\nold"
    assert set(podman("diff", "struck").splitlines()) == {"A /written", "C /etc"}


def test_a_missing_layer_is_named(podman: Podman) -> None:
    """The engine puts what we say on standard error into its own message."""
    podman("create", "--name", "broken", "base", "true")
    data = podman.layer("broken")
    os.rename(data["LowerDir"], f"{data['LowerDir']}-away")
    try:
        podman("start", "broken", status=125)
        assert "using mount program" in podman.said
        assert "No such file or directory" in podman.said
        assert "exit status" in podman.said
    finally:
        os.rename(f"{data['LowerDir']}-away", data["LowerDir"])
    podman("start", "broken")
