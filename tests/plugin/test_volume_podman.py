"""What Podman alone has: one id for all containers, prune and reload, users without root."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.engines.ground import USER
from tests.engines.podman import Podman
from tests.plugin.in_ground import Engine

pytestmark = pytest.mark.needs_root

#: What Podman calls itself, whichever container it is for.
ID = "2f73349cfc4630255319c6c8dfc1b46a8996ace9d14d8e07563b165915918ec2"


def test_one_id_for_all_containers(podman: Engine) -> None:
    podman.create("data")
    podman.begin("one", "data:/v")
    podman.begin("two", "data:/v")
    assert podman.plugin.users("data") == [ID]
    podman.plugin.restart("KILL")
    podman.end("one")
    assert podman.plugin.users("data") == [ID]
    podman("volume", "rm", "data", status=2)
    assert "volume is being used" in podman.said
    podman.end("two")
    assert podman.plugin.users("data") == []


def test_prune(podman: Engine) -> None:
    """It takes the plugin's volumes too, those without a container."""
    podman.create("used")
    podman.create("unused")
    podman("create", "--name", "user", "-v", "used:/v", "base", "true")
    assert podman("volume", "prune", "--force") == "unused"
    assert podman.plugin.names() == ["used"]


def test_reload(podman: Engine) -> None:
    """Volumes that come and go by our own command."""
    podman.plugin.unionfs("volume", "create", "ours")
    assert podman("volume", "reload").split() == ["Added:", "ours"]
    assert podman.sh("ours:/v", "touch /v/file; ls /v") == "file"
    podman.plugin.unionfs("volume", "rm", "ours")
    assert podman("volume", "reload").split() == ["Removed:", "ours"]
    assert podman("volume", "ls", "--quiet") == ""


def test_a_volume_of_containers_that_have_no_name_for_it(podman: Engine) -> None:
    """The volume of a name that is not there is Podman's own."""
    podman.sh("not-there:/v", "true")
    assert podman.engine.inspect("volume", "not-there")["Driver"] == "local"
    assert podman.plugin.names() == []


def test_mounted_and_carried_away(podman: Engine) -> None:
    """Podman's own verbs for the files of a volume."""
    podman.create("one", type="tmpfs")
    podman.create("two")
    podman("volume", "mount", "one")
    assert podman.plugin.users("one") == [ID]
    assert podman.sh("one:/v", "echo here >/v/file; cat /v/file") == "here"
    archive = podman.base / "one.tar"
    podman("volume", "export", "one", "--output", str(archive))
    podman("volume", "mount", "two")  # it asks for that itself, of other drivers' volumes
    podman("volume", "import", "two", str(archive))
    podman("volume", "unmount", "two")
    assert podman.sh("two:/v", "cat /v/file") == "here"
    podman("volume", "unmount", "one")
    assert podman.plugin.users("one") == []
    assert podman.plugin.mounted() == []


def test_there_is_no_plugin(podman: Engine) -> None:
    """Podman says so; containers that have no such volume run."""
    podman.create("data")
    podman.plugin.stop()
    try:
        podman.sh("data:/v", "true", status=126)
        assert "volume plugin unionfs (needed by volume data) missing" in podman.said
        assert podman("run", "--rm", "base", "echo", "fine") == "fine"
    finally:
        podman.plugin.start()
    podman.sh("data:/v", "true")


def test_podman_is_killed(podman: Engine) -> None:
    """Its container is gone with it; what it had counted, it counts anew."""
    podman.create("cache", type="tmpfs")
    podman.begin("one", "cache:/v")
    pid = podman("inspect", "--format", "{{.ConmonPidFile}}", "one")
    monitor = podman.engine.ground.run("cat", pid)
    podman.engine.ground.run("kill", "-9", monitor.strip())
    podman.engine.ground.run("kill", "-9", podman("inspect", "--format", "{{.State.Pid}}", "one"))
    podman.end("one")
    assert podman.sh("cache:/v", "ls /v") == ""
    assert podman.plugin.users("cache") == []


def test_without_root(rootless: Engine) -> None:
    """A plugin of the user's own, on a store of his."""
    rootless.create("data")
    rootless.sh("data:/v", "echo kept >/v/file")
    rootless.begin("one", "data:/v")
    assert rootless("exec", "one", "cat", "/v/file") == "kept"
    rootless.plugin.restart("KILL")
    assert rootless.plugin.users("data") == [ID]
    rootless.end("one")
    # Files of users that he has besides; the end of the test removes them.
    rootless.sh("data:/v", "mkdir /v/dir; touch /v/dir/file; chown -R 1000:1001 /v/dir")
    path = rootless.plugin.root / "volumes/data/_data/file"
    assert path.read_text() == "kept\n"
    assert path.stat().st_uid == rootless.plugin.root.stat().st_uid


def users_directory(rootless: Engine) -> Path:
    """A directory of the user's, to be shown."""
    path = rootless.plugin.home / "shown"
    path.mkdir(exist_ok=True)
    shutil.chown(path, USER, USER)
    return path


def test_a_view_without_root(rootless: Engine) -> None:
    """Podman is in a mount namespace of its own, which is told rather than found out."""
    shown = users_directory(rootless)
    rootless.create("view", **{"from": str(shown)})
    rootless.sh("view:/v", "true", status=126)
    assert "does not see it, being in another mount namespace" in rootless.said
    assert rootless.plugin.users("view") == []


def test_in_the_namespaces_of_podman_without_root(rootless: Engine) -> None:
    """There the plugin mounts what root's does."""
    podman = rootless.engine
    assert isinstance(podman, Podman)
    rootless.plugin.stop()
    rootless.plugin.start("podman", "unshare", environment=podman.environment())
    try:
        rootless.create("cache", type="tmpfs", o="size=1m")
        rootless.begin("one", "cache:/v", "echo shared >/v/file; sleep 600")
        assert rootless.sh("cache:/v", "cat /v/file; df -m /v | tail -n 1").split()[:3] == [
            *("shared", "tmpfs", "1")
        ]
        shown = users_directory(rootless)
        (shown / "file").write_text("of the host\n")
        rootless.create("view", **{"from": str(shown)})
        rootless.begin("two", "view:/v", "echo changed >/v/file; sleep 600")
        rootless.plugin.stop("KILL")
        rootless.plugin.start("podman", "unshare", environment=podman.environment())
        assert rootless.sh("view:/v", "cat /v/file") == "changed"
        assert (shown / "file").read_text() == "of the host\n"
        rootless.end("one", "two")
        assert rootless.plugin.users("cache") == rootless.plugin.users("view") == []
    finally:
        rootless.clear()
        rootless.plugin.stop()
        rootless.plugin.start()
