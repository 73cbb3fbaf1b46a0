"""Engines that create, mount, unmount and remove in any order, and a plugin that comes and goes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.mounts import mounted_below
from tests.plugin.conftest import PluginGround

pytestmark = pytest.mark.needs_root

EXAMPLES = int(os.environ.get("UNIONFS_MODEL_EXAMPLES", "20"))

NAMES = st.sampled_from(["ab", "cd"])
IDS = st.sampled_from(["one", "two"])
KINDS = st.sampled_from(["plain", "memory", "view"])


class Known:
    """A volume as it should be."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.users: Counter[str] = Counter()
        self.text: str | None = None
        #: Where it was mounted, while it is.
        self.place: Path | None = None


class Machine(RuleBasedStateMachine):
    """Compares the plugin with a dictionary."""

    ground: ClassVar[PluginGround]
    host: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.client = self.ground.connect()
        self.known: dict[str, Known] = {}

    def options(self, kind: str) -> dict[str, str]:
        return {
            "plain": {},
            "memory": {"type": "tmpfs", "o": "size=1m"},
            "view": {"from": str(self.host)},
        }[kind]

    @rule(name=NAMES, kind=KINDS)
    def create(self, name: str, kind: str) -> None:
        options = self.options(kind)
        if name in self.known and self.known[name].kind != kind:
            assert "conflict" in self.client.refused("Create", Name=name, Opts=options)
            return
        self.client.create(name, **options)
        self.known.setdefault(name, Known(kind))

    @rule(name=NAMES, holder=IDS)
    def mount(self, name: str, holder: str) -> None:
        if name not in self.known:
            assert "no such volume" in self.client.refused("Mount", Name=name, ID=holder)
            return
        volume = self.known[name]
        place = self.client.mount(name, holder)
        self.ground.guard()
        assert volume.place in (None, place)
        volume.place = place
        volume.users[holder] += 1
        file = place / "file"
        assert (file.read_text() if file.exists() else None) == volume.text

    @rule(name=NAMES, text=st.text("ab", max_size=3))
    def write(self, name: str, text: str) -> None:
        volume = self.known.get(name)
        if volume is not None and volume.place is not None:
            (volume.place / "file").write_text(text)
            volume.text = text

    @rule(name=NAMES, holder=IDS)
    def unmount(self, name: str, holder: str) -> None:
        self.client.unmount(name, holder)
        volume = self.known.get(name)
        if volume is None or not volume.users[holder]:
            return
        volume.users[holder] -= 1
        if not volume.users.total():
            volume.place = None
            if volume.kind == "memory":
                volume.text = None

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name not in self.known:
            assert "no such volume" in self.client.refused("Remove", Name=name)
        elif self.known[name].users.total():
            assert "volume is in use" in self.client.refused("Remove", Name=name)
        else:
            self.client.remove(name)
            del self.known[name]

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        self.client.close()
        self.ground.restart(killed=killed)
        self.client = self.ground.connect()

    @invariant()
    def agree(self) -> None:
        found = self.client.call("List")["Volumes"]
        counted = {one["Name"]: Counter(one["Status"]["Users"]) for one in found}
        assert counted == {name: +volume.users for name, volume in self.known.items()}
        mounted = {
            f"{self.ground.root}/volumes/{name}/_data"
            for name, volume in self.known.items()
            if volume.place is not None and volume.kind != "plain"
        }
        assert set(mounted_below(self.ground.root)) == mounted

    def teardown(self) -> None:
        for name, volume in self.known.items():
            for holder in volume.users.elements():
                self.client.unmount(name, holder)
            self.client.remove(name)
        self.client.close()


@pytest.mark.slow
def test_any_order(ground: PluginGround) -> None:
    Machine.ground = ground
    Machine.host = ground.base / "host"
    Machine.host.mkdir()
    (Machine.host / "below").write_text("of the host")
    test: Any = Machine.TestCase
    test.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=25,
        derandomize=EXAMPLES <= 40,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    test("runTest").debug()
    assert (Machine.host / "below").read_text() == "of the host"
    assert len(list(Machine.host.iterdir())) == 1
