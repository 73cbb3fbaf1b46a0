"""dockerd whose storage driver fuse-overlayfs finds us on its PATH."""

from __future__ import annotations

import os
import signal
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.runner import wait_for
from tests.engines.docker import Docker
from tests.engines.images import deep_image
from tests.engines.ours import ASK_ROOT, assert_ours, assert_ours_at, daemon

pytestmark = pytest.mark.needs_root

NO_NETWORK = ("--network", "none")

CHANGES = """
    set -e
    echo new >/new; ln /new /same; ln -s new /link; mkfifo /pipe; echo more >>/data/old
    rm /etc/words; rm -r /home/user; mkdir /home/user; echo his >/home/user/his
    chown 5:7 /home/user/his; chmod 6755 /bin/busybox; mkdir -p /deep/er; mv /deep /renamed
"""
SHOW = """
    cd /; stat -c '%n %F %a %u:%g %h' new same link pipe data/old home/user/his bin/busybox
    cat new data/old home/user/his; readlink link; ls -a home/user renamed; test ! -e /etc/words
"""
#: What `docker diff` says of `CHANGES`.
DIFF = {
    *("A /new", "A /same", "A /link", "A /pipe", "A /renamed", "A /renamed/er"),
    *("C /data", "C /data/old", "C /etc", "D /etc/words", "C /home", "C /home/user"),
    *("A /home/user/his", "C /bin", "C /bin/busybox"),
}


@pytest.fixture
def images(docker: Docker) -> Iterator[Docker]:
    """Docker, whose images but ``base`` are removed after the test."""
    yield docker
    docker.clear()
    base, *_ = docker("images", "--quiet", "--no-trunc", "base").split()
    for image in docker("images", "--quiet", "--no-trunc").split():
        if image != base:
            docker("rmi", "--force", image, status=None)
    docker("image", "prune", "--force")


def run(docker: Docker, *arguments: str, status: int = 0) -> str:
    return docker("run", *NO_NETWORK, *arguments, status=status)


@pytest.fixture
def changed(images: Docker) -> str:
    """What a container shows after `CHANGES`; the container is called ``changed``."""
    return run(images, "--name", "changed", "base", "sh", "-c", f"{CHANGES}{SHOW}")


def test_the_root_of_a_container_is_ours(docker: Docker) -> None:
    assert docker("info", "--format", "{{.Driver}}") == "fuse-overlayfs"
    assert_ours(run(docker, "--rm", "base", "sh", "-c", ASK_ROOT))


def test_changes_are_in_the_upper_and_in_diff(images: Docker, changed: str) -> None:
    assert set(images("diff", "changed").splitlines()) == DIFF
    upper = images.inspect("container", "changed")["GraphDriver"]["Data"]["UpperDir"]
    assert stat.S_ISCHR(os.lstat(f"{upper}/etc/words").st_mode)
    assert os.getxattr(f"{upper}/home/user", "trusted.overlay.opaque") == b"y"
    assert stat.S_IMODE(os.lstat(f"{upper}/bin/busybox").st_mode) == 0o6755


def test_exec_cp_and_restart_of_a_container(docker: Docker) -> None:
    run(docker, "--detach", "--init", "--name", "lasting", "base", "sleep", "99")
    docker("exec", "--user", "user", "lasting", "touch", "/home/user/his")
    sent = docker.ground.base / "sent"
    sent.write_text("sent\n")
    docker("cp", str(sent), "lasting:/data/sent")
    docker("restart", "--time", "0", "lasting")
    script = "stat -c %U /home/user/his; cat /data/sent"
    assert docker("exec", "lasting", "sh", "-c", script) == "user\nsent"
    merged = docker.inspect("container", "lasting")["GraphDriver"]["Data"]["MergedDir"]
    assert_ours_at(docker.ground, merged)


def test_commit(images: Docker, changed: str) -> None:
    images("commit", "changed", "kept")
    assert run(images, "--rm", "kept", "sh", "-c", SHOW) == changed


def test_a_commit_of_what_runs(images: Docker) -> None:
    script = "echo first >/made; rm /data/old; sleep 99"
    run(images, "--detach", "--name", "running", "base", "sh", "-c", script)
    wait_for(lambda: "D /data/old" in images("diff", "running"))
    images("commit", "--pause=false", "running", "kept")
    images("exec", "running", "sh", "-c", "echo second >/made")
    assert run(images, "--rm", "kept", "sh", "-c", "cat /made; ls /data") == "first"


def test_save_and_load(images: Docker, changed: str) -> None:
    images("commit", "changed", "kept")
    before = images.inspect("image", "kept")
    path = images.ground.base / "saved.tar"
    images("save", "--output", str(path), "kept")
    images("rm", "changed")
    images("rmi", "kept")
    images("load", "--input", str(path))
    path.unlink()
    after = images.inspect("image", "kept")
    assert (after["Id"], after["RootFS"]) == (before["Id"], before["RootFS"])
    assert run(images, "--rm", "kept", "sh", "-c", SHOW) == changed


def test_export(images: Docker, changed: str) -> None:
    path = images.ground.base / "exported.tar"
    images("export", "--output", str(path), "changed")
    with tarfile.open(path) as tar:
        names = {name.removeprefix("./") for name in tar.getnames()}
        assert tar.getmember("home/user/his").uid == 5
    path.unlink()
    assert {"new", "same", "link", "pipe", "renamed/er"} <= names
    assert "etc/words" not in names


CONTAINERFILE = """
FROM base AS making
RUN mkdir /app && echo one >/app/one && mv /home/user /app/home
COPY --chown=5:7 file other /app/
RUN cd /app && rm /etc/words other && cat file one >both && chmod 700 home && chown 8:9 file
FROM base
COPY --from=making /app /app
CMD ["cat", "/app/both"]
"""


@pytest.fixture
def context(images: Docker, request: pytest.FixtureRequest) -> Path:
    """A directory to build from."""
    path: Path = images.ground.base / request.node.name.translate({ord("["): "-", ord("]"): None})
    path.mkdir()
    (path / "Dockerfile").write_text(CONTAINERFILE)
    (path / "file").write_text("file\n")
    (path / "other").write_text("other\n")
    return path


@pytest.mark.parametrize("builder", ["classic", "buildkit"])
def test_build(images: Docker, context: Path, builder: str) -> None:
    settings = {"DOCKER_BUILDKIT": "1" if builder == "buildkit" else "0"}

    def build() -> str:
        command = ("build", *NO_NETWORK, "--tag", "app", str(context))
        said = images(*command, settings=settings, seconds=80)
        return said + images.said

    build()
    first = images("images", "--quiet", "app")
    assert run(images, "--rm", "app") == "file\none"
    script = "stat -c '%u:%g %a' /app/file /app/home; ls /app /etc"
    shown = run(images, "--rm", "app", "sh", "-c", script).split()
    assert shown[:4] == ["8:9", "644", "1000:1001", "700"]
    assert "words" in shown
    assert "other" not in shown
    cached = "CACHED" if builder == "buildkit" else "Using cache"
    assert build().count(cached) >= 4
    assert images("images", "--quiet", "app") == first
    (context / "file").write_text("changed\n")
    build()
    assert run(images, "--rm", "app") == "changed\none"
    if builder == "buildkit":
        images("builder", "prune", "--all", "--force")


def test_prune(images: Docker, changed: str) -> None:
    storage = images.home / "data/fuse-overlayfs"
    images("commit", "changed", "kept")
    images("rm", "changed")
    before = set(os.listdir(storage))
    images("tag", "base", "another")
    images("rmi", "--no-prune", "kept")
    images("run", *NO_NETWORK, "--name", "ended", "base", "touch", "/file")
    images("system", "prune", "--force", "--volumes")
    assert images("ps", "--all", "--quiet") == ""
    assert set(os.listdir(storage)) < before
    images("rmi", "another")
    assert run(images, "--rm", "base", "cat", "/data/old") == "old"


def test_a_volume_is_filled_from_the_union(docker: Docker) -> None:
    volume = ("--rm", "-v", "filled:/home")
    assert run(docker, *volume, "base", "stat", "-c", "%u:%g", "/home/user") == "1000:1001"
    run(docker, *volume, "base", "touch", "/home/new")
    assert run(docker, *volume, "base", "ls", "/home").split() == ["new", "user"]
    docker("volume", "rm", "filled")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_restart_of_dockerd(docker: Docker, how: signal.Signals) -> None:
    """Its containers live on with ``--live-restore``; stopped ones start again."""
    docker.stop()
    docker.start("--live-restore")
    try:
        ticking = "while true; do date >>/ticks; sleep 0.1; done"
        run(docker, "-d", "--init", "--name", "alive", "base", "sh", "-c", ticking)
        run(docker, "--name", "ended", "base", "sh", "-c", "echo once >>/runs; cat /runs")
        upper = docker.inspect("container", "alive")["GraphDriver"]["Data"]["UpperDir"]
        serving = daemon(docker.ground, upper)
        docker.stop(how)
        size = os.path.getsize(f"{upper}/ticks")
        wait_for(lambda: os.path.getsize(f"{upper}/ticks") > size)
        docker.start("--live-restore")
        assert daemon(docker.ground, upper) == serving
        assert "alive" in docker("ps", "--format", "{{.Names}}")
        assert_ours(docker("exec", "alive", "sh", "-c", ASK_ROOT))
        assert "ended" in docker("ps", "--all", "--format", "{{.Names}}")
        assert docker("start", "--attach", "ended") == "once\nonce"
        docker("rm", "--force", "alive")
        assert not os.path.exists(upper)
    finally:
        docker.clear()
        docker.stop()
        docker.start()


def test_a_restart_of_dockerd_ends_containers_whose_layers_stay(docker: Docker) -> None:
    quick = ("--stop-signal", "KILL")  # else dockerd waits for ten seconds
    run(docker, "-d", *quick, "--name", "going", "base", "sh", "-c", "echo kept >>/runs; sleep 99")
    wait_for(lambda: "A /runs" in docker("diff", "going"))
    docker.stop()
    docker.start()
    assert docker("ps", "--quiet") == ""
    assert docker("diff", "going").splitlines() == ["A /runs"]
    docker("start", "going")
    wait_for(lambda: docker("exec", "going", "cat", "/runs") == "kept\nkept")


def test_a_killed_daemon_is_the_loss_of_its_own_container_only(docker: Docker) -> None:
    script = "echo whole >/written; rm /etc/words; sleep 99"
    for name in ("struck", "bystander"):
        run(docker, "-d", "--name", name, "base", "sh", "-c", script)
    upper = docker.inspect("container", "struck")["GraphDriver"]["Data"]["UpperDir"]
    wait_for(lambda: os.path.lexists(f"{upper}/etc/words"))
    docker.ground.run("kill", "-KILL", daemon(docker.ground, upper))
    assert "not connected" in docker("exec", "struck", "/bin/cat", "/written", status=126)
    assert docker("exec", "bystander", "cat", "/written") == "whole"
    assert Path(f"{upper}/written").read_text() == "whole\n"
    docker("rm", "--force", "struck")
    assert not os.path.exists(upper)


#: Docker's own limit of layers in an image (maxLayerDepth of moby's layer package in 20.10).
MAX_LAYERS = 125


@pytest.mark.slow
def test_an_image_as_deep_as_docker_allows(images: Docker, context: Path) -> None:
    images("load", "--input", str(deep_image(images.ground.base, MAX_LAYERS)), seconds=200)
    assert len(images.inspect("image", "deep")["RootFS"]["Layers"]) == MAX_LAYERS
    (context / "Dockerfile").write_text("FROM deep\nCOPY file /one-too-many\n")
    images("build", *NO_NETWORK, str(context), status=1)
    assert "max depth exceeded" in images.said
    script = "cat /data/old; ls /made | wc -l; cat /made/124; test ! -e /made/122; rm /made/124"
    plain = ("--entrypoint", "sh", "--user", "0", "--workdir", "/")
    shown = run(images, "--name", "deep", *plain, "deep", "-c", script)
    assert shown.split() == ["old", "63", "124"]
    assert set(images("diff", "deep").splitlines()) == {"C /made", "D /made/124"}
