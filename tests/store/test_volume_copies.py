"""Volumes cloned and captured, and killed at it."""

from __future__ import annotations

import os
import random
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests import tree
from tests.driver import changes
from tests.store.volume_ground import VolumeGround, assert_same, only_file
from unionfs.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    StoreError,
)
from unionfs.store import views
from unionfs.store.volume_garbage import cleanup
from unionfs.store.volumes import Volumes

pytestmark = pytest.mark.needs_root


def test_clone(any_ground: VolumeGround) -> None:
    volumes = any_ground.volumes
    volumes.create("vol", labels={"a": "1"})
    any_ground.write("vol", changes.base)
    with any_ground.at("vol") as root:
        expected = tree.snapshot(root, private=False)
    made = views.clone(volumes, "vol", "copy")
    assert (made.labels, made.driver) == ({"a": "1"}, any_ground.kit.driver)
    any_ground.write("vol", changes.delete)
    with any_ground.at("copy") as root:
        assert_same(expected, tree.snapshot(root, private=False))
    with pytest.raises(AlreadyExistsError):
        views.clone(volumes, "vol", "copy")
    volumes.remove("vol")
    with any_ground.at("copy") as root:
        assert_same(expected, tree.snapshot(root, private=False))
    volumes.remove("copy")
    assert list(volumes.store.driver.walk()) == []


def test_a_snapshot_outlives_the_volume(any_ground: VolumeGround) -> None:
    volumes = any_ground.volumes
    volumes.create("vol")
    any_ground.write("vol", only_file("then"))
    key = views.snapshot(volumes, "vol").key
    assert re.fullmatch(r"vol@\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", key)
    any_ground.write("vol", only_file("now"))
    volumes.remove("vol")
    driver = volumes.store.driver
    assert [info.key for info in driver.walk()] == [key]
    assert driver.stat(key).labels == {"unionfs.snapshot-of": "vol"}


def test_capturing_one_in_use(any_ground: VolumeGround) -> None:
    """Where the driver can, of what was written until then; else it says by whom."""
    volumes = any_ground.volumes
    volumes.create("vol")
    with any_ground.at("vol", "web") as root:
        (root / "file").write_text("then")
        os.sync()
        if not volumes.store.driver.capabilities.live_snapshot:
            with pytest.raises(FailedPreconditionError, match="in use by web"):
                views.clone(volumes, "vol", "copy")
            return
        views.clone(volumes, "vol", "copy")
        (root / "file").write_text("now")
        with any_ground.at("copy") as copy:
            assert (copy / "file").read_text() == "then"
        assert (root / "file").read_text() == "now"


def test_its_snapshot_is_the_volumes(ground: VolumeGround) -> None:
    """What belongs to a volume is refused to who knows the key."""
    store = ground.volumes.store
    key = ground.volumes.create("vol").data
    for do in (
        lambda: store.remove(key),
        lambda: store.commit("name", key),
        lambda: store.capture("name", key),
        lambda: store.mount(key, str(ground.place())),
    ):
        with pytest.raises(FailedPreconditionError, match="the files of the volume vol"):
            do()


# Crashes


_VERBS: dict[str, Callable[[VolumeGround, Volumes], Any]] = {
    "create": lambda _ground, volumes: volumes.create("new"),
    "view": lambda _ground, volumes: volumes.create("new", options={"from": "vol"}),
    "clone": lambda _ground, volumes: views.clone(volumes, "vol", "new"),
    "snapshot": lambda _ground, volumes: views.snapshot(volumes, "vol", "state"),
    "remove": lambda _ground, volumes: volumes.remove("other"),
    "hold": lambda _ground, volumes: volumes.hold("vol", "web", os.getpid()),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", _VERBS)
def test_killed(any_ground: VolumeGround, verb: str) -> None:
    """At seeded calls of each verb: what is told afterwards is whole, all else can be removed."""
    do = _VERBS[verb]
    volumes = any_ground.volumes
    volumes.create("vol")
    any_ground.write("vol", changes.base)
    with any_ground.at("vol") as root:
        expected = tree.snapshot(root, private=False)

    def again() -> None:
        present = {volume.name for volume in volumes.all()}
        if "new" in present:
            volumes.remove("new")
        volumes.create("other")
        for info in list(volumes.store.driver.walk()):
            if info.key == "state":
                # The volume goes on on top of it: only its name is needed again.
                volumes.remove("vol")
                volumes.create("vol", options={"from": "state"})

    again()
    calls = any_ground.in_child(lambda opened: do(any_ground, opened))
    dice = random.Random(verb)
    for kill_at in sorted(dice.sample(range(1, calls), 8)):
        if verb == "snapshot":
            key = f"state{kill_at}"
            any_ground.in_child(partial(views.snapshot, name="vol", key=key), kill_at)
        else:
            again()
            any_ground.in_child(lambda opened: do(any_ground, opened), kill_at)
        cleanup(volumes.store)
        volumes.store.driver.cleanup()
        assert cleanup(volumes.store) == [], kill_at
        for volume in volumes.all():
            with any_ground.at(volume.name) as root:
                if volume.name in ("vol", "new") and verb != "create":
                    assert_same(expected, tree.snapshot(root, private=False))


def test_of_two_that_race_for_a_name(ground: VolumeGround) -> None:
    ground.volumes.create("vol")
    results: list[object] = []

    def clone() -> None:
        try:
            results.append(views.clone(ground.open(), "vol", "new"))
        except StoreError as error:
            results.append(error)

    threads = [threading.Thread(target=clone) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, AlreadyExistsError) for one in results) == 5, results
