"""The life of snapshots: every verb, its errors, many at once."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from tests.driver.changes import nothing
from tests.driver.drivers import Ground
from unionfs.driver.api import Kind
from unionfs.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
)

pytestmark = pytest.mark.needs_root


def _one_file(root: Path) -> None:
    (root / "file").write_text("x")


def test_the_kinds(ground: Ground) -> None:
    driver = ground.driver
    made = driver.prepare("active", labels={"a": "1"})
    assert (made.key, made.kind, made.parent, made.labels) == (
        "active",
        Kind.ACTIVE,
        "",
        {"a": "1"},
    )
    assert driver.stat("active") == made
    done = driver.commit("committed", "active")
    assert (done.key, done.kind, done.labels) == ("committed", Kind.COMMITTED, {"a": "1"})
    assert driver.view("view", "committed").kind is Kind.VIEW
    assert driver.stat("view").parent == "committed"
    assert driver.prepare("active", "committed").parent == "committed", "the key is free again"


@pytest.mark.parametrize("key", ["ns/12/extract-1 sha256:ab", " ", "ünïcode\n", "-x", "a" * 900])
def test_keys_are_any_string(ground: Ground, key: str) -> None:
    ground.driver.prepare(key)
    with ground.at(key) as root:
        (root / "file").write_text("x")
    ground.driver.commit(f"{key}'s name", key)
    with ground.seen(f"{key}'s name") as root:
        assert (root / "file").read_text() == "x"


def test_what_cannot_be_prepared(ground: Ground) -> None:
    driver = ground.driver
    driver.prepare("active")
    for key in ("", "nu\0l", "not utf-8 \udcff"):
        with pytest.raises(InvalidArgumentError):
            driver.prepare(key)
    with pytest.raises(AlreadyExistsError, match="active"):
        driver.prepare("active")
    with pytest.raises(NotFoundError, match="nowhere"):
        driver.prepare("new", "nowhere")
    with pytest.raises(InvalidArgumentError, match="only a committed"):
        driver.prepare("new", "active")
    with pytest.raises(NotFoundError):
        driver.view("new", "")
    with pytest.raises(InvalidArgumentError, match="label"):
        driver.prepare("new", labels={"big": "x" * 5000})
    assert [info.key for info in driver.walk()] == ["active"]


def test_a_size_needs_quota(ground: Ground) -> None:
    if ground.driver.capabilities.quota:
        assert ground.driver.prepare("limited", size=1 << 30).size_limit == 1 << 30
        ground.driver.commit("parent", "limited")
        assert ground.driver.prepare("inherits", "parent").size_limit == 1 << 30
        with pytest.raises(InvalidArgumentError, match="parent"):
            ground.driver.prepare("smaller", "parent", size=1 << 20)
    else:
        with pytest.raises(UnsupportedError, match="size"):
            ground.driver.prepare("limited", size=1 << 30)


def test_what_cannot_be_committed(ground: Ground) -> None:
    driver = ground.driver
    driver.prepare("a")
    driver.commit("base", "a")
    driver.view("view", "base")
    driver.prepare("b", "base")
    with pytest.raises(NotFoundError):
        driver.commit("new", "a")
    with pytest.raises(AlreadyExistsError):
        driver.commit("base", "b")
    for key in ("view", "base"):
        with pytest.raises(FailedPreconditionError, match="not active"):
            driver.commit("new", key)
    assert driver.stat("b").kind is Kind.ACTIVE
    assert driver.commit("b", "b").kind is Kind.COMMITTED, "a name may be the key"


def test_removal_has_an_order(ground: Ground) -> None:
    driver = ground.driver
    ground.write("one", "", nothing)
    ground.write("two", "one", nothing)
    driver.prepare("three", "two")
    for key in ("one", "two"):
        with pytest.raises(FailedPreconditionError, match="parent"):
            driver.remove(key)
    for key in ("three", "two", "one"):
        driver.remove(key)
        with pytest.raises(NotFoundError):
            driver.stat(key)
    with pytest.raises(NotFoundError):
        driver.remove("one")


def test_what_is_mounted_stays(ground: Ground) -> None:
    driver = ground.driver
    driver.prepare("key")
    with ground.at("key") as root:
        (root / "file").write_text("x")
        for attempt in (driver.remove, driver.release):
            with pytest.raises(FailedPreconditionError, match="mounted"):
                attempt("key")
        assert (root / "file").read_text() == "x"
    driver.remove("key")


def test_what_a_mounted_view_shows_stays(ground: Ground) -> None:
    driver = ground.driver
    ground.write("base", "", _one_file)
    driver.view("look", "base")
    with ground.at("look") as root:
        with contextlib.suppress(FailedPreconditionError):
            driver.remove("look")  # by those who cannot tell it from another of that parent
        with pytest.raises(FailedPreconditionError):
            driver.remove("base")
        assert (root / "file").read_text() == "x"
        if "look" not in {info.key for info in driver.walk()}:
            driver.view("look", "base")  # for `at` to release


def test_mounts_are_of_what_can_change_or_be_looked_at(ground: Ground) -> None:
    driver = ground.driver
    ground.write("base", "", nothing)
    with pytest.raises(FailedPreconditionError, match="view"):
        driver.mounts("base")
    with pytest.raises(NotFoundError):
        driver.mounts("nowhere")
    with pytest.raises(NotFoundError):
        driver.release("nowhere")
    driver.prepare("key", "base")
    assert driver.mounts("key") == driver.mounts("key")
    driver.release("key")
    driver.release("key")


def test_labels(ground: Ground) -> None:
    driver = ground.driver
    driver.prepare("key", labels={"a": "1", "b": "2"})
    assert driver.update("key", {"a": None, "c": "3"}).labels == {"b": "2", "c": "3"}
    changed = driver.update("key", {"d": "4"}, replace=True)
    assert changed.labels == {"d": "4"}
    assert changed.updated > changed.created
    assert driver.commit("name", "key", labels={}).labels == {}
    assert driver.update("name", {"of": "committed"}).labels == {"of": "committed"}
    with pytest.raises(NotFoundError):
        driver.update("key", {})


def test_walk_tells_parents_first(ground: Ground) -> None:
    ground.write("z", "", nothing)
    ground.write("y", "z", nothing)
    ground.driver.prepare("x", "y")
    ground.driver.capture("w", "x")
    seen: set[str] = set()
    for info in ground.driver.walk():
        assert not info.parent or info.parent in seen
        seen.add(info.key)
    assert seen == {"z", "y", "x", "w"}


def test_another_process_sees_it_all(ground: Ground) -> None:
    ground.write("base", "", _one_file)
    other = ground.open()
    other.prepare("key", "base")
    assert ground.driver.stat("key").parent == "base"
    with ground.at("key", other) as root:
        assert (root / "file").read_text() == "x"
    ground.driver.close()
    ground.driver.close()
    ground.driver = other
    with pytest.raises(FailedPreconditionError, match="parent"):
        other.remove("base")


def test_fifty_at_once(ground: Ground) -> None:
    ground.write("base", "", nothing)
    drivers = [ground.driver, ground.open(), ground.open()]
    outcomes: list[str] = []

    def prepare(number: int) -> None:
        driver = drivers[number % len(drivers)]
        driver.prepare(f"own {number}", "base")
        try:
            driver.prepare("same for all", "base")
            outcomes.append("made")
        except AlreadyExistsError:
            outcomes.append("taken")

    threads = [threading.Thread(target=prepare, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["made", *["taken"] * 49]
    assert len(list(ground.driver.walk())) == 52
    assert ground.driver.cleanup() == []
