"""What Docker and Podman have in common: containers with volumes of the plugin's."""

from __future__ import annotations

import pytest

from tests.plugin.in_ground import Engine

pytestmark = pytest.mark.needs_root


def test_a_writer_and_a_reader(engine: Engine) -> None:
    engine.create("data")
    engine.sh("data:/v", "echo kept >/v/file; chown 5:7 /v/file")
    assert engine.sh("data:/w:ro", "cat /w/file; stat -c %u:%g /w/file") == "kept\n5:7"
    engine.sh("data:/w:ro", "touch /w/no || ! test -e /w/no")
    assert "Read-only file system" in engine.said
    assert engine.plugin.users("data") == []


def test_two_at_once(engine: Engine) -> None:
    """They see one tree, in memory too, from the first use to the last."""
    engine.create("cache", type="tmpfs", o="size=1m")
    engine.begin("one", "cache:/v")
    engine.begin("two", "cache:/w")
    engine("exec", "one", "sh", "-c", "echo shared >/v/file")
    assert engine("exec", "two", "cat", "/w/file") == "shared"
    engine.end("one")
    assert engine("exec", "two", "cat", "/w/file") == "shared"
    assert engine.sh("cache:/v", "cat /v/file") == "shared"
    assert engine.plugin.mounted() == ["volumes/cache/_data"]
    engine.end("two")
    assert engine.plugin.users("cache") == []
    assert engine.plugin.mounted() == []
    assert engine.sh("cache:/v", "ls /v") == ""


def test_the_verbs(engine: Engine) -> None:
    engine.create("one")
    engine.create("two")
    assert engine("volume", "ls", "--quiet").split() == ["one", "two"]
    assert "unionfs" in engine("volume", "ls", "--filter", "driver=unionfs")
    found = engine.engine.inspect("volume", "one")
    assert (found["Name"], found["Driver"], found["Scope"]) == ("one", "unionfs", "local")
    assert found["Status"] == {"Driver": "overlay", "Options": {}, "Users": []}
    engine("create", "--name", "user", "-v", "one:/v", "base", "true")
    engine("volume", "rm", "one", status=None)
    assert "use" in engine.said
    assert engine.plugin.names() == ["one", "two"]
    engine("rm", "user")
    engine("volume", "rm", "one")
    assert engine.plugin.names() == ["two"]


def test_a_new_volume_is_filled_from_the_image(engine: Engine) -> None:
    engine.create("filled")
    assert engine.sh("filled:/home", "stat -c %U:%G /home/user; touch /home/new") == "user:user"
    assert engine.sh("filled:/elsewhere", "ls /elsewhere").split() == ["new", "user"]


def test_backup_and_restore_by_a_container(engine: Engine) -> None:
    engine.create("data")
    engine.sh("data:/data", "echo precious >/data/file; chmod 640 /data/file")
    backup = engine.base / "backup"
    backup.mkdir(exist_ok=True)
    both = ("-v", "data:/data", "-v", f"{backup}:/backup")
    engine("run", "--rm", *both, "base", "tar", "czf", "/backup/data.tar.gz", "-C", "/data", ".")
    engine("volume", "rm", "data")
    engine.create("restored")
    both = ("-v", "restored:/data", "-v", f"{backup}:/backup:ro")
    engine("run", "--rm", *both, "base", "tar", "xzf", "/backup/data.tar.gz", "-C", "/data")
    assert engine.sh("restored:/d", "stat -c %a /d/file; cat /d/file").split() == [
        "640",
        "precious",
    ]


FILL = "dd if=/dev/zero of=/v/big bs=1M count={} 2>&1 || true; stat -c %s /v/big"


def test_in_memory(engine: Engine) -> None:
    """As Docker's own driver takes the options."""
    engine.create("cache", type="tmpfs", device="tmpfs", o="size=8m,uid=1000,mode=750")
    shown = engine.sh("cache:/v", f"stat -c %u:%a /v; {FILL.format(12)}")
    assert shown.splitlines()[0] == "1000:750"
    assert "No space left on device" in shown
    assert shown.splitlines()[-1] == str(8 << 20)


def test_a_size(engine: Engine) -> None:
    """The driver block keeps it, as it keeps what is written."""
    engine.create("small", driver="block", size="24m")
    shown = engine.sh("small:/v", FILL.format(32))
    assert "No space left on device" in shown
    assert 8 << 20 < int(shown.splitlines()[-1]) <= 24 << 20
    engine.sh("small:/v", "rm /v/big; echo kept >/v/file")
    assert engine.sh("small:/v", "cat /v/file") == "kept"
    assert engine.plugin.mounted() == []


def test_a_size_that_nobody_keeps(engine: Engine) -> None:
    engine("volume", "create", "--driver=unionfs", "--opt=size=1m", "small", status=None)
    assert "the driver overlay cannot limit a volume; use --driver" in engine.said
    assert engine.plugin.names() == []


def test_a_view_of_a_directory(engine: Engine) -> None:
    """What containers change stays in the volume."""
    host = engine.base / "origin"
    host.mkdir(exist_ok=True)
    (host / "file").write_text("of the host\n")
    engine.create("view", **{"from": str(host)})
    assert engine.sh("view:/v", "cat /v/file; echo changed >/v/file; touch /v/new") == "of the host"
    assert engine.sh("view:/v", "cat /v/file; ls /v") == "changed\nfile\nnew"
    assert [path.name for path in host.iterdir()] == ["file"]
    assert (host / "file").read_text() == "of the host\n"


def test_a_view_of_a_volume(engine: Engine) -> None:
    """Both go on from there, each by itself."""
    engine.create("data")
    engine.sh("data:/v", "echo one >/v/file")
    engine.create("copy", **{"from": "data"})
    assert engine.sh("copy:/v", "cat /v/file; echo two >/v/file") == "one"
    assert engine.sh("data:/v", "cat /v/file; echo three >/v/file") == "one"
    assert engine.sh("copy:/v", "cat /v/file") == "two"


def test_a_directory_of_the_host(engine: Engine) -> None:
    host = engine.base / "bound"
    host.mkdir(exist_ok=True)
    engine.create("bound", type="none", o="bind", device=str(host))
    engine.sh("bound:/v", "echo inside >/v/file")
    assert (host / "file").read_text() == "inside\n"
    engine("volume", "rm", "bound")
    assert (host / "file").read_text() == "inside\n"


# The plugin comes and goes


@pytest.mark.parametrize("number", ["TERM", "KILL"])
def test_the_plugin_ends_under_containers(engine: Engine, number: str) -> None:
    """They go on with what is mounted, a union too, and the next plugin counts on."""
    host = engine.base / f"under-{number}"
    host.mkdir(exist_ok=True)
    engine.create("view", **{"from": str(host)})
    engine.create("plain")
    script = "while sleep 0.05; do echo x >>/v/turns; done"
    engine.begin("one", "view:/v", script)
    engine.begin("plain", "plain:/v", script)
    users = engine.plugin.users("view")
    engine.plugin.stop(number)
    before = engine("exec", "one", "wc", "-l", "/v/turns"), engine("exec", "plain", "ls", "/v")
    engine("exec", "one", "sh", "-c", "echo while it is away >/v/file; sleep 0.2")
    engine.plugin.start()
    after = engine("exec", "one", "wc", "-l", "/v/turns"), engine("exec", "plain", "ls", "/v")
    assert int(after[0].split()[0]) > int(before[0].split()[0])
    assert engine.plugin.users("view") == users
    engine.begin("two", "view:/v")
    assert engine("exec", "two", "cat", "/v/file") == "while it is away"
    engine.end("one", "two")
    assert engine.plugin.users("view") == []
    assert engine.plugin.mounted() == []
    assert engine.sh("view:/v", "cat /v/file") == "while it is away"
    assert list(host.iterdir()) == []


def test_the_plugin_is_in_another_mount_namespace(engine: Engine) -> None:
    """No container starts that would write to nowhere."""
    engine.create("cache", type="tmpfs")
    engine.create("plain")
    engine.plugin.stop()
    engine.plugin.start("unshare", "-m")
    try:
        engine.sh("cache:/v", "true", status=None)
        assert "does not see it, being in another mount namespace" in engine.said
        assert engine.plugin.users("cache") == []
        assert engine.sh("plain:/v", "touch /v/file; ls /v") == "file"
    finally:
        engine.plugin.restart()
