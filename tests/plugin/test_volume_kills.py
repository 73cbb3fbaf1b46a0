"""kill -9 in the midst of each call that changes something: the store is whole, and goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kills import calls_of_child
from tests.plugin.conftest import PluginGround
from unionfs.plugin.volume.calls import CALLS, Request, Service
from unionfs.plugin.volume.engine import Engine
from unionfs.store.store import Store
from unionfs.store.volume_garbage import cleanup

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

#: At how many points each call is killed.
POINTS = 15


def opened(ground: PluginGround) -> contextlib.closing[Store]:
    return contextlib.closing(Store.open(str(ground.root), "overlay", {}))


def call_killed(ground: PluginGround, kill_at: int, name: str, **fields: Any) -> int:
    """Make a call as a process of the plugin does, which kills itself; see `calls_of_child`."""

    def prepare() -> Callable[[], Any]:
        service = Service(lambda: opened(ground), lambda: opened(ground), Engine(0))
        request = Request(service, fields, contextlib.ExitStack())
        return lambda: CALLS[f"/VolumeDriver.{name}"](request)

    return calls_of_child(prepare, kill_at)


def options(ground: PluginGround) -> dict[str, str]:
    host = ground.base / "host"
    if not host.exists():
        host.mkdir()
        (host / "below").write_text("of the host")
    return {"from": str(host)}


def assert_whole(ground: PluginGround, text: str | None = None) -> None:
    """The volume can be used, counted down to nothing, removed, and leaves nothing."""
    client = ground.client
    client.create("view", **options(ground))
    place = client.mount("view", "other")
    ground.guard()
    assert (place / "below").read_text() == "of the host"
    assert text in (None, (place / "file").read_text() if text else None)
    for holder in client.users("view"):
        client.unmount("view", holder)
    assert client.users("view") == []
    assert ground.mounted() == []
    client.remove("view")
    with opened(ground) as store:
        cleanup(store)
        assert list(store.driver.walk()) == []
        assert store.uses.all() == []


def points(total: int) -> list[int]:
    """The first calls and the last, and some between."""
    return sorted({1, 2, total - 1, total, *range(3, total, max(1, total // POINTS))})


def make(ground: PluginGround) -> Path:
    """A view that is mounted by nobody, and where it comes to be."""
    ground.client.create("view", **options(ground))
    place = ground.client.mount("view", "one")
    ground.guard()
    (place / "file").write_text("kept")
    ground.client.unmount("view", "one")
    return place


def test_create(ground: PluginGround) -> None:
    total = call_killed(ground, 0, "Create", Name="view", Opts=options(ground))
    assert_whole(ground)
    for kill_at in points(total):
        call_killed(ground, kill_at, "Create", Name="view", Opts=options(ground))
        assert ground.client.names() in ([], ["view"])
        assert_whole(ground)


def test_mount(ground: PluginGround) -> None:
    """It was counted whole or not at all; what was mounted for nobody goes with the next use."""
    make(ground)
    total = call_killed(ground, 0, "Mount", Name="view", ID="one")
    assert ground.client.users("view") == ["one"]
    assert_whole(ground, "kept")
    for kill_at in points(total):
        make(ground)
        call_killed(ground, kill_at, "Mount", Name="view", ID="one")
        assert ground.client.users("view") in ([], ["one"])
        assert_whole(ground, "kept")


def test_mount_of_one_that_is_mounted(ground: PluginGround) -> None:
    """Whoever has it mounted has it still."""
    place = make(ground)
    ground.client.mount("view", "before")
    total = call_killed(ground, 0, "Mount", Name="view", ID="one")
    ground.client.unmount("view", "one")
    for kill_at in points(total):
        call_killed(ground, kill_at, "Mount", Name="view", ID="one")
        assert ground.client.users("view") in (["before"], ["before", "one"])
        ground.client.unmount("view", "one")
        assert (place / "file").read_text() == "kept"
    assert_whole(ground, "kept")


def test_unmount(ground: PluginGround) -> None:
    make(ground)
    ground.client.mount("view", "one")
    total = call_killed(ground, 0, "Unmount", Name="view", ID="one")
    assert_whole(ground, "kept")
    for kill_at in points(total):
        make(ground)
        ground.client.mount("view", "one")
        call_killed(ground, kill_at, "Unmount", Name="view", ID="one")
        assert ground.client.users("view") in ([], ["one"])
        assert_whole(ground, "kept")


def test_remove(ground: PluginGround) -> None:
    make(ground)
    total = call_killed(ground, 0, "Remove", Name="view")
    for kill_at in points(total):
        make(ground)
        call_killed(ground, kill_at, "Remove", Name="view")
        assert ground.client.names() in ([], ["view"])
        assert_whole(ground)
