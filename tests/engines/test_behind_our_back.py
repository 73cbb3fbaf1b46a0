"""Engines write to layers without asking: as marks of AUFS, and below mounts that live."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.archives import archive, directory, member
from tests.container.runner import wait_for
from tests.engines.conftest import need
from tests.engines.docker import Docker
from tests.engines.ground import Ground
from tests.engines.images import busybox_tar, deep_image, saved
from tests.engines.ours import linked
from tests.engines.podman import Podman

pytestmark = pytest.mark.needs_root

#: An image's own user and command are not what is tried.
PLAIN = ("--rm", "--network", "none", "--entrypoint", "sh", "--user", "0", "--workdir", "/")

#: A second layer that hides a file, a directory, and all that a directory had.
HIDING = archive(
    directory("etc"),
    member("etc/.wh.words"),
    directory("home"),
    member("home/.wh.user"),
    directory("data"),
    member("data/.wh..wh..opq"),
    member("data/new", data=b"new\n"),
)
#: A third, that brings back what the second hides.
AGAIN = archive(
    directory("etc"),
    member("etc/words", data=b"again\n"),
    directory("home"),
    directory("home/user"),
)
SHOW = "cat /etc/words; find /etc /home /data"


@pytest.fixture
def without_deep(podman: Podman) -> Iterator[None]:
    """Remove the image ``deep`` after the test."""
    yield
    podman.clear()
    podman("rmi", "--force", "deep")


@pytest.fixture(params=["podman", "docker"])
def engine(request: pytest.FixtureRequest) -> Iterator[Podman | Docker]:
    """Podman and Docker in turn."""
    engine = request.getfixturevalue(request.param)
    yield engine
    engine.clear()
    for image in ("hiding", "again"):
        engine("rmi", "--force", image, status=None)


def load(engine: Podman | Docker, name: str, *layers: bytes) -> None:
    base = engine.ground.base
    path = saved(base / f"{name}.tar", name, [(base / "busybox.tar").read_bytes(), *layers])
    engine("load", "--input", str(path))
    path.unlink()


def test_layers_that_hide_by_names(engine: Podman | Docker) -> None:
    load(engine, "hiding", HIDING)
    shown = engine("run", *PLAIN, "hiding", "-c", SHOW, status=None).split()
    assert {"/etc/words", "/home/user", "/data/old"}.isdisjoint(shown)
    assert shown[-3:] == ["/home", "/data", "/data/new"]
    assert ".wh." not in "".join(shown)
    load(engine, "again", HIDING, AGAIN)
    shown = engine("run", *PLAIN, "again", "-c", SHOW).split()
    assert shown[0] == "again"
    assert {"/etc/words", "/home/user"} <= set(shown)


def test_what_a_layer_hides_can_be_made_again(engine: Podman | Docker) -> None:
    load(engine, "hiding", HIDING)
    script = "mkdir /home/user /data/old; echo new >/etc/words; rmdir /data/old; rm -r /data"
    engine("run", "--name", "made", *PLAIN[1:], "hiding", "-c", script)
    changes = set(engine("diff", "made").splitlines()) - {"C /run"}
    assert changes == {"C /home", "A /home/user", "C /etc", "A /etc/words", "D /data"}


def test_an_image_arrives_while_its_layers_are_in_use(engine: Podman | Docker) -> None:
    script = "while ! test -e /stop; do cat /etc/words || exit 9; done >/dev/null; cat /data/old"
    engine("run", "-d", "--name", "busy", *PLAIN[1:], "base", "-c", script)
    load(engine, "hiding", HIDING)
    engine("run", *PLAIN, "hiding", "-c", "test ! -e /etc/words")
    engine("exec", "busy", "touch", "/stop")
    assert engine("wait", "busy") == "0"
    assert engine("logs", "busy") == "old"


def test_the_upper_of_a_live_container_below_another(podman: Podman) -> None:
    """Two mounts have one directory, the one as its upper, the other as its lower."""
    first = "echo first >/data/new; rm /data/old; echo ready >/ready; sleep 99"
    podman("run", "-d", "--name", "first", "base", "sh", "-c", first)
    upper = podman.layer("first")["UpperDir"]
    wait_for(lambda: os.path.exists(f"{upper}/ready"))
    second = "cat /s/data/new; ls /s/data; rm /s/data/new; echo mine >/s/data/old; cat /s/data/old"
    shown = podman("run", "--rm", "-v", f"{upper}:/s:O", "base", "sh", "-c", second)
    assert shown.split() == ["first", "new", "mine"]
    assert podman("exec", "first", "sh", "-c", "cat /data/new; ls /data") == "first\nnew"


def test_what_changes_in_an_image_shows_where_nothing_is_kept() -> None:
    """An engine's ``mountopt`` reaches us: with ``timeout=0`` nothing is remembered."""
    need("podman", "runc", "tini", "busybox")
    with closing(Ground()) as ground:
        podman = Podman(ground, linked(ground), mountopt="timeout=0")
        podman("import", str(busybox_tar(ground.base)), "base")
        podman("run", "-d", "--name", "living", "base", "sleep", "99")
        show = ("exec", "living", "sh", "-c", "cat /etc/words; ls /data")
        assert podman(*show) == "of the image\nold"
        layer = podman.layer("living")["LowerDir"]
        with open(f"{layer}/etc/words", "w") as file:
            file.write("changed\n")
        os.rename(f"{layer}/data/old", f"{layer}/data/renamed")
        assert podman(*show) == "changed\nrenamed"
        os.unlink(f"{layer}/data/renamed")
        os.mkdir(f"{layer}/data/directory")
        assert podman(*show) == "changed\ndirectory"


def test_what_changes_below_a_live_union_breaks_nothing(podman: Podman) -> None:
    """Seen or not yet: a file is the one or the other, and the daemon lives on."""
    source = podman.ground.base / "changing"
    source.mkdir()
    for number in range(20):
        (source / f"file{number}").write_text("before\n")
    volume = ("-v", f"{source}:/s:O")
    podman("run", "-d", "--name", "watching", *volume, "base", "sleep", "99")
    look = ("exec", "watching", "sh", "-c", "cd /s; cat file*; echo mine >own")
    assert podman(*look).split() == ["before"] * 20
    for number in range(20):
        if number % 2:
            (source / f"file{number}").unlink()
        else:
            (source / "other").write_text("after\n")
            os.replace(source / "other", source / f"file{number}")
    assert set(podman(*look, status=None).split()) <= {"before", "after"}
    assert podman("exec", "watching", "cat", "/s/own") == "mine"
    assert sorted(set(os.listdir(source))) == sorted(f"file{n}" for n in range(0, 20, 2))


def test_a_deep_image(podman: Podman, without_deep: None) -> None:
    """As deep as Podman takes it (maxDepth of containers/storage: 128 in Debian 12, then 500)."""
    podman("load", "--input", str(deep_image(podman.ground.base, 128)), seconds=200)
    script = "cat /data/old; ls /made | wc -l; cat /made/127; test ! -e /made/126; rm /made/127"
    options = ("--name", "deepest", *PLAIN[1:])
    assert podman("run", *options, "deep", "-c", script).split() == ["old", "64", "127"]
    assert {"C /made", "D /made/127"} <= set(podman("diff", "deepest").splitlines())
