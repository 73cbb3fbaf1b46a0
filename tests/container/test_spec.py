"""Words of a command line and lines of files, read."""

from __future__ import annotations

import os
from typing import Any

import pytest

from unionfs.container.spec import (
    Bind,
    Defaults,
    NamedVolume,
    Place,
    Tmpfs,
    command,
    defaults,
    environment,
    parse_mount,
    parse_tmpfs,
    parse_volume,
    random_name,
)
from unionfs.container.users import Range, id_map, parse_subids
from unionfs.errors import UsageError


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("vol:/data", NamedVolume("vol", "/data")),
        ("vol:/data:ro", NamedVolume("vol", "/data", read_only=True)),
        ("vol:/a//b/../c/", NamedVolume("vol", "/a/c")),
        ("/host:/data", Bind("/host", "/data", create=True)),
        ("/host:/data:rw,z", Bind("/host", "/data", create=True)),
        ("/host dir:/data:ro", Bind("/host dir", "/data", read_only=True, create=True)),
    ],
)
def test_volumes(text: str, place: Place) -> None:
    assert parse_volume(text) == place


@pytest.mark.parametrize(
    "text",
    ["/data", "vol", "vol:", "vol:data", "vol:/", "a/b:/b", "...:/b", "v:/b", "vol:/b:rx", ":/b"],
)
def test_volumes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_volume(text)


@pytest.mark.parametrize(
    ("source", "directory"), [("./rel", "rel"), (".", ""), ("./a/../b", "b"), ("../x", "../x")]
)
def test_relative_directories(source: str, directory: str) -> None:
    path = os.path.normpath(os.path.join(os.getcwd(), directory))
    assert parse_volume(f"{source}:/b:ro") == Bind(path, "/b", read_only=True, create=True)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("/t", Tmpfs("/t")),
        ("/t:size=64m", Tmpfs("/t", size=64 << 20)),
        ("/t:size=1g,mode=700,ro", Tmpfs("/t", size=1 << 30, mode=0o700, read_only=True)),
        ("/t:rw,noexec,size=100", Tmpfs("/t", size=100)),
    ],
)
def test_tmpfs(text: str, place: Place) -> None:
    assert parse_tmpfs(text) == place


@pytest.mark.parametrize("text", ["t", "/", "/t:size=0", "/t:size=x", "/t:mode=9", "/t:huge"])
def test_tmpfs_that_is_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_tmpfs(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("type=bind,src=/a,dst=/b", Bind("/a", "/b")),
        ("type=bind,source=/a,target=/b,readonly", Bind("/a", "/b", read_only=True)),
        ("type=bind,source=/a,target=/b,readonly=false", Bind("/a", "/b")),
        ("src=vol,dst=/b", NamedVolume("vol", "/b")),
        ("type=tmpfs,destination=/t,tmpfs-size=1m", Tmpfs("/t", size=1 << 20)),
    ],
)
def test_mounts(text: str, place: Place) -> None:
    assert parse_mount(text) == place


@pytest.mark.parametrize(
    "text", ["type=bind,src=/a", "type=npipe,dst=/b", "type=bind,src=/a,dst=/b,x=y", "dst=/b"]
)
def test_mounts_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_mount(text)


def test_what_an_image_says() -> None:
    config = {
        "Entrypoint": ["/bin/e"],
        "Cmd": ["-c"],
        "Env": ["A=1", "PATH=/x"],
        "WorkingDir": "srv",
        "User": "u",
    }
    image = defaults({"config": config})
    assert image == Defaults(("/bin/e",), ("-c",), ("A=1", "PATH=/x"), "/srv", "u")
    assert command(image, None, []) == ("/bin/e", "-c")
    assert command(image, None, ["x"]) == ("/bin/e", "x")
    assert command(image, "/p", []) == ("/p",)
    assert command(image, "", ["x"]) == ("x",)
    given = environment(image, ["B=2", "A="], "host", terminal=False)
    assert given == {"PATH": "/x", "HOSTNAME": "host", "A": "", "B": "2"}
    strange: dict[str, Any]
    for strange in ({}, {"config": None}, {"config": {"Cmd": "sh", "Env": {}, "User": None}}):
        assert defaults(strange) == Defaults()
    with pytest.raises(UsageError, match="CMD is missing"):
        command(Defaults(), None, [])


def test_random_names_are_names() -> None:
    names = {random_name() for _ in range(100)}
    assert len(names) == 100
    assert all(NamedVolume(name, "/x") == parse_volume(f"{name}:/x") for name in names)


def test_subordinate_ids() -> None:
    text = "# a comment\na:100000:65536\n\nb:1:\nb:x:y\n7:300000:10\na:400000:5\na:500000:0\n"
    assert parse_subids(text, "a", 1) == [Range(100000, 65536), Range(400000, 5)]
    assert parse_subids(text, "c", 7) == [Range(300000, 10)]
    assert parse_subids(text, "b", 2) == []
    words = id_map(1000, [Range(100000, 65536), Range(400000, 5)])
    assert " ".join(words) == "0 1000 1 1 100000 65536 65537 400000 5"
