"""Images that root's Podman makes of unions of ours: commits, archives, builds, stores."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.engines.ground import Ground
from tests.engines.ours import ASK_ROOT, assert_ours, assert_ours_at, linked
from tests.engines.podman import Podman

pytestmark = pytest.mark.needs_root

#: Of every kind that a layer can hold, over what lies below.
CHANGES = """
    set -e
    echo new >/new; ln /new /same; ln -s new /link; mkfifo /pipe; mknod /device c 1 3
    echo more >>/data/old; rm /etc/words; rm -r /home/user; mkdir /home/user
    echo his >/home/user/his; chown 5:7 /home/user/his; chmod 6755 /bin/busybox
    mkdir -p /deep/er; touch -d '2001-02-03 04:05:06' /deep/er; mv /deep /renamed
"""
#: What of it every copy must show alike.
SHOW = """
    cd /; stat -c '%n %F %a %u:%g %h %t,%T' new same link pipe device data/old home/user/his
    stat -c '%n %F %a %u:%g' home/user bin/busybox renamed
    cat new data/old home/user/his; readlink link; ls -a etc home/user renamed
    stat -c %y renamed/er
"""


@pytest.fixture
def images(podman: Podman) -> Iterator[Podman]:
    """Podman, whose images but ``base`` are removed after the test."""
    yield podman
    podman.clear()
    made = podman("images", "--all", "--quiet", "--no-trunc").split()
    podman("rmi", "--force", "--ignore", *set(made) - set(podman.image_ids("base")))


def shown(podman: Podman, image: str) -> str:
    return podman("run", "--rm", image, "sh", "-c", SHOW)


@pytest.fixture
def changed(images: Podman) -> str:
    """What a container shows after `CHANGES`; the container is called ``changed``."""
    script = f"{CHANGES}{SHOW}"
    return images("run", "--name", "changed", "base", "sh", "-c", script)


def test_a_commit_shows_what_its_container_showed(images: Podman, changed: str) -> None:
    images("commit", "--quiet", "changed", "kept")
    assert shown(images, "kept") == changed
    assert_ours(images("run", "--rm", "kept", "sh", "-c", ASK_ROOT))


def test_commits_upon_commits(images: Podman) -> None:
    """A name that comes and goes, in four layers."""
    image = "base"
    for number in range(4):
        script = "rm -r /it" if number % 2 else f"mkdir /it; echo {number} >/it/{number}"
        images("run", "--name", f"step{number}", image, "sh", "-c", script)
        image = images("commit", "--quiet", f"step{number}", f"image{number}")
    assert images("run", "--rm", "image2", "ls", "/it") == "2"
    images("run", "--rm", "image3", "ls", "/it", status=1)
    tree = images("image", "tree", "image3")
    assert tree.count("── ID: ") == 5


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_save_and_load(images: Podman, changed: str, form: str) -> None:
    images("commit", "--quiet", "changed", "kept")
    before = images.inspect("image", "kept")
    path = images.ground.base / f"{form}.tar"
    images("save", "--format", form, "--output", str(path), "kept")
    images("rm", "changed")
    images("rmi", "kept")
    images("load", "--input", str(path))
    path.unlink()
    assert images.inspect("image", "kept")["RootFS"] == before["RootFS"]
    assert shown(images, "kept") == changed


def test_export_and_import(images: Podman, changed: str) -> None:
    path = images.ground.base / "exported.tar"
    images("export", "--output", str(path), "changed")
    with tarfile.open(path) as tar:
        members = {member.name.strip("./"): member for member in tar}
    assert {"new", "same", "link", "pipe", "device", "renamed/er"} <= set(members)
    assert "etc/words" not in members
    assert {members["new"].islnk(), members["same"].islnk()} == {True, False}
    images("import", str(path), "flat")
    path.unlink()
    assert shown(images, "flat") == changed


def test_image_mount(images: Podman, changed: str) -> None:
    images("commit", "--quiet", "changed", "kept")
    target = images("image", "mount", "kept")
    assert_ours_at(images.ground, target)
    assert images("-c", f"cat {target}/new; ls {target}/etc", program="sh").startswith("new\n")
    images("-c", f"touch {target}/no", program="sh", status=1)
    assert "Read-only file system" in images.said
    images("image", "unmount", "kept")
    assert target not in [fields[4] for fields in images.ground.mountinfo()]


CONTAINERFILE = """
    FROM base
    ENV WHERE=/app
    RUN mkdir $WHERE && echo one >$WHERE/one
    COPY --chown=user:user file other /app/
    RUN rm /etc/words /app/other && cat /app/file /app/one >/app/both
    WORKDIR /app
    RUN mv /home/user /app/home && chmod 700 /app/home
    USER user
    RUN touch /app/home/mine 2>&1; id -un >/tmp/who
    CMD ["cat", "both", "/tmp/who"]
"""


@pytest.fixture
def context(ground_of_build: Path) -> Path:
    """A directory to build from."""
    (ground_of_build / "Containerfile").write_text(CONTAINERFILE)
    (ground_of_build / "file").write_text("file\n")
    (ground_of_build / "other").write_text("other\n")
    return ground_of_build


@pytest.fixture
def ground_of_build(images: Podman, request: pytest.FixtureRequest) -> Path:
    path: Path = images.ground.base / request.node.name.replace("[", "-").replace("]", "")
    path.mkdir()
    return path


def build(podman: Podman, context: Path, *options: str) -> str:
    command = ["build", "--network", "none", "--tag", "app"]
    return podman(*command, *options, str(context), seconds=80)


@pytest.mark.parametrize("layers", ["true", "false"])
def test_build(images: Podman, context: Path, layers: str) -> None:
    build(images, context, f"--layers={layers}")
    assert images("run", "--rm", "app").split() == ["file", "one", "user"]
    script = "ls /etc /app; stat -c '%U %a' home file"
    lines = images("run", "--rm", "--user", "0", "app", "sh", "-c", script).split()
    assert lines[-4:] == ["user", "700", "user", "644"]
    assert "words" not in lines
    assert "other" not in lines
    below = images.inspect("image", "base")["RootFS"]["Layers"]
    made = images.inspect("image", "app")["RootFS"]["Layers"]
    assert made[:1] == below
    assert len(made) == (2 if layers == "false" else 6)


def test_build_takes_steps_from_the_cache(images: Podman, context: Path) -> None:
    build(images, context)
    first = images.image_ids("app")
    again = build(images, context)
    assert again.count("Using cache") == 9
    assert images.image_ids("app") == first
    (context / "file").write_text("changed\n")
    assert build(images, context).count("Using cache") == 2
    assert images("run", "--rm", "app").split() == ["changed", "one", "user"]


def test_build_in_stages_with_mounts(images: Podman, context: Path) -> None:
    (context / "Containerfile").write_text("""
        FROM base AS making
        RUN --mount=type=bind,source=.,target=/context cat /context/file >/made
        RUN --mount=type=cache,target=/cache echo cached >/cache/it
        RUN --mount=type=cache,target=/cache cat /cache/it >>/made
        RUN --mount=type=tmpfs,target=/scratch touch /scratch/it
        FROM base
        COPY --from=making /made /made
        RUN test ! -e /cache/it -a ! -e /scratch/it
    """)
    build(images, context)
    assert images("run", "--rm", "app", "cat", "/made") == "file\ncached"


def test_a_store_of_another_podman_is_read(images: Podman, changed: str) -> None:
    """Its images are lowers for ours, which cannot be removed or written."""
    images("commit", "--quiet", "changed", "kept")
    with closing(Ground()) as ground:
        other = Podman(ground, linked(ground), stores=[images.root])
        assert shown(other, "kept") == changed
        assert_ours(other("run", "--name", "mine", "kept", "sh", "-c", f"{ASK_ROOT}; rm /new"))
        assert json.loads(other("images", "--format", "json"))[0]["ReadOnly"]
        other("rmi", "--force", "kept", status=None)
        assert other("commit", "--quiet", "mine", "derived")
        assert "new" not in other("run", "--rm", "derived", "ls", "/").split()
    assert shown(images, "kept") == changed
