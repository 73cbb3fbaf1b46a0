"""SIGKILL in the midst of every verb: it has happened or it has not, and nothing is left over.

A child does the verb and kills itself at its K-th function call, of Python's or of C's, for
some K from the first to the last: drawn by a fixed seed, so that a failure comes again.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import tree
from tests.driver import changes
from tests.driver.drivers import Ground
from tests.kills import calls_of_child
from unionfs.driver.api import Driver, Kind
from unionfs.errors import NotFoundError, StoreError

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

#: How many places each verb is killed at, and with --thorough.
POINTS, MORE_POINTS = 4, 14


class Verb(NamedTuple):
    """A verb, and what is so before and after it."""

    do: Callable[[Driver], Any]
    undo: Callable[[Driver], Any]
    """Makes what is so before it again."""
    done: Callable[[Driver], bool]


def _kind(driver: Driver, key: str) -> Kind | None:
    try:
        return driver.stat(key).kind
    except NotFoundError:
        return None


VERBS = {
    "prepare": Verb(
        lambda driver: driver.prepare("new", "base"),
        lambda driver: driver.remove("new"),
        lambda driver: _kind(driver, "new") is Kind.ACTIVE,
    ),
    "view": Verb(
        lambda driver: driver.view("new", "base"),
        lambda driver: driver.remove("new"),
        lambda driver: _kind(driver, "new") is Kind.VIEW,
    ),
    "commit": Verb(
        lambda driver: driver.commit("name", "active"),
        lambda driver: (driver.remove("name"), driver.prepare("active", "base")),
        lambda driver: _kind(driver, "name") is Kind.COMMITTED and _kind(driver, "active") is None,
    ),
    "capture": Verb(
        lambda driver: driver.capture("name", "active"),
        lambda driver: (
            driver.remove("active"),
            driver.remove("name"),
            driver.prepare("active", "base"),
        ),
        lambda driver: _kind(driver, "name") is Kind.COMMITTED,
    ),
    "remove": Verb(
        lambda driver: driver.remove("active"),
        lambda driver: driver.prepare("active", "base"),
        lambda driver: _kind(driver, "active") is None,
    ),
    "update": Verb(
        lambda driver: driver.update("active", {"label": "set"}),
        lambda driver: driver.update("active", {"label": None}),
        lambda driver: "label" in driver.stat("active").labels,
    ),
}


def _child(ground: Ground, do: Callable[[Driver], Any], kill_at: int) -> int:
    def prepare() -> Callable[[], Any]:
        driver = ground.open()
        return lambda: do(driver)

    return calls_of_child(prepare, kill_at)


@pytest.mark.parametrize("name", VERBS)
def test_killed(ground: Ground, pytestconfig: pytest.Config, name: str) -> None:
    points = MORE_POINTS if pytestconfig.getoption("--thorough") else POINTS
    verb = VERBS[name]
    ground.write("base", "", changes.base)
    with ground.seen("base") as root:
        expected = tree.snapshot(root, private=False)
    ground.driver.prepare("active", "base")
    calls = _child(ground, verb.do, 0)
    assert verb.done(ground.driver)
    dice = random.Random(name)
    for kill_at in sorted(dice.sample(range(1, calls), min(points, calls - 1))):
        verb.undo(ground.driver)
        assert not verb.done(ground.driver)
        _child(ground, verb.do, kill_at)
        _check_after(ground, verb, f"killed at call {kill_at} of {calls}")
    with ground.seen("base") as root:
        tree.assert_same(expected, tree.snapshot(root, private=False))


def _check_after(ground: Ground, verb: Verb, what: str) -> None:
    driver = ground.open()
    driver.cleanup()
    assert driver.cleanup() == [], what
    if not verb.done(driver):
        try:
            verb.do(driver)
        except StoreError as error:
            raise AssertionError(f"{what}: neither done nor to be done") from error
    for info in driver.walk():
        if info.kind is not Kind.COMMITTED:
            with ground.at(info.key) as root:
                assert (root / "etc/file1").read_text() == "base 1\n", what
    directories = set(os.listdir(Path(ground.home) / ground.kit.driver / "snapshots"))
    assert len(directories) == len(list(driver.walk())), what
    driver.close()
