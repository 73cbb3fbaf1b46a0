"""Devices after a kill at every point: before and after each thing that is tried or done."""

from __future__ import annotations

import functools
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.driver.blocks import Blocks
from unionfs.driver.api import Kind
from unionfs.driver.attach import detach
from unionfs.driver.block.devices import Devices, State
from unionfs.driver.block.filesystem import FileSystem
from unionfs.driver.block.qcow2 import Qcow2Engine
from unionfs.errors import FaultyError, NotFoundError

pytestmark = pytest.mark.needs_root

#: What a device is changed by, and what is written down of it.
POINTS = (
    *((Qcow2Engine, name) for name in ("create", "snap", "attach", "detach", "seal")),
    *((Qcow2Engine, name) for name in ("divert", "_switch", "discard")),
    *((Devices, name) for name in ("_set", "_write", "end_capture")),
    *((FileSystem, name) for name in ("make", "frozen")),
)


@pytest.fixture
def blocks(scratch: Path) -> Iterator[Blocks]:
    made = Blocks(scratch, size="64M")
    yield made
    made.end()


def killed_at(blocks: Blocks, verb: Callable[[Any], object], point: int) -> bool:
    """Let a process do *verb* and kill itself at *point*; say whether it came that far."""
    pid = os.fork()
    if pid == 0:
        passed = itertools.count(1)

        def pass_point() -> None:
            if next(passed) == point:
                os.kill(os.getpid(), signal.SIGKILL)

        def watched(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def call(*arguments: Any, **options: Any) -> Any:
                pass_point()
                result = function(*arguments, **options)
                pass_point()
                return result

            return call

        status = 1
        try:
            driver = blocks.open()
            for owner, name in POINTS:
                setattr(owner, name, watched(getattr(owner, name)))
            verb(driver)
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def states(blocks: Blocks) -> set[State]:
    rows = blocks.driver.metadata.rows("SELECT state FROM devices")
    return {State(row[0]) for row in rows}


def points(blocks: Blocks, verb: Callable[[Any], object]) -> Iterator[int]:
    """Yield every point that *verb* was killed at, once it has been."""
    for point in itertools.count(1):
        if not killed_at(blocks, verb, point):
            return
        yield point


def test_making_the_first_one(blocks: Blocks) -> None:
    for _ in points(blocks, lambda driver: driver.prepare("key")):
        blocks.driver.cleanup()
        assert blocks.daemons() == [] or State.CREATING in states(blocks)
        with pytest.raises(NotFoundError):
            blocks.driver.stat("key")
    with blocks.at("key") as root:
        assert os.listdir(root) == []


@pytest.mark.slow
def test_mounts_and_release(blocks: Blocks) -> None:
    blocks.driver.prepare("key")
    with blocks.at("key") as root:
        (root / "file").write_text("kept")
    for _ in points(blocks, lambda driver: driver.mounts("key")):
        with blocks.at("key") as root:
            assert (root / "file").read_text() == "kept"
        assert blocks.daemons() == []
    for _ in points(blocks, lambda driver: (driver.mounts("key"), driver.release("key"))):
        blocks.driver.release("key")
        assert blocks.daemons() == []
        assert states(blocks) == {State.READY}


@pytest.mark.slow
def test_commit(blocks: Blocks) -> None:
    def prepared() -> None:
        blocks.driver.prepare("key")
        target = blocks.mount("key")
        (target / "file").write_text("kept")
        detach(str(target))

    prepared()
    for _ in points(blocks, lambda driver: driver.commit("name", "key")):
        try:
            assert blocks.driver.stat("key").kind is Kind.ACTIVE
        except NotFoundError:
            assert blocks.driver.stat("name").kind is Kind.COMMITTED
            blocks.driver.view("look", "name")
            with blocks.at("look") as root:
                assert (root / "file").read_text() == "kept"
            blocks.driver.remove("look")
            blocks.driver.remove("name")
            prepared()


@pytest.mark.slow
@pytest.mark.parametrize("mounted", [True, False])
def test_capture_while_it_is_attached(blocks: Blocks, mounted: bool) -> None:
    """The captured one has what was there, the other goes on with all, before and later."""
    for point in itertools.count(1):
        blocks.driver.prepare("key")
        target = blocks.mount("key")
        (target / "before").write_text("before")
        if not mounted:
            detach(str(target))
        came = killed_at(blocks, lambda driver: driver.capture("name", "key"), point)
        captured = "name" in {info.key for info in blocks.driver.walk()}
        assert came or captured
        if mounted:
            # Nobody holds writers up whose captor was killed.
            (target / "after").write_text("after")
            os.sync()
        names = ["after", "before"] if mounted else ["before"]
        if captured:
            blocks.driver.view("look", "name")
            with blocks.at("look") as root:
                # Killed early, the moment is that of the first look.
                assert "before" in os.listdir(root)
            blocks.driver.remove("look")
        if mounted:
            (target / "later").write_text("later")
            names.append("later")
            detach(str(target))
        blocks.driver.release("key")
        blocks.driver.cleanup()
        with blocks.at("key") as root:
            assert sorted(os.listdir(root)) == sorted(names), point
        blocks.driver.remove("key")
        if captured:
            blocks.driver.view("look", "name")
            with blocks.at("look") as root:
                assert "later" not in os.listdir(root)
            blocks.driver.remove("look")
            blocks.driver.remove("name")
        if not came:
            break


@pytest.mark.slow
def test_remove(blocks: Blocks) -> None:
    blocks.driver.prepare("key")
    blocks.driver.mounts("key")
    for _ in points(blocks, lambda driver: driver.remove("key")):
        if not list(blocks.driver.walk()):
            blocks.driver.cleanup()
            assert blocks.daemons() == []
            assert states(blocks) == {State.READY}, "that of the empty file system"
            blocks.driver.prepare("key")
            blocks.driver.mounts("key")


def test_what_is_faulty_is_never_used_again(blocks: Blocks) -> None:
    blocks.driver.prepare("key")
    number = blocks.device("key")
    with blocks.driver.metadata.write():
        blocks.driver.devices._set(number, State.CREATING)
    with pytest.raises(FaultyError, match=f"key: device {number}: creating"):
        blocks.driver.mounts("key")
    with pytest.raises(FaultyError):
        blocks.driver.commit("name", "key")
    blocks.driver.remove("key")
    blocks.driver.prepare("key")
    assert blocks.device("key") == number + 1


def test_a_capture_that_fails_is_undone(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks.driver.prepare("key")
    target = blocks.mount("key")
    (target / "before").write_text("before")
    before = list(blocks.driver.walk())

    def fail(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Qcow2Engine, "_switch", fail)
        with pytest.raises(OSError, match="Input/output"):
            blocks.driver.capture("name", "key")
    assert list(blocks.driver.walk()) == before
    (target / "after").write_text("after")
    blocks.driver.capture("name", "key")
    detach(str(target))
    with blocks.at("key") as root:
        assert sorted(os.listdir(root)) == ["after", "before"]


def test_an_image_without_a_row_is_removed(blocks: Blocks) -> None:
    """The removal of a file may be lost with the power, when that of its row is not."""
    blocks.driver.prepare("kept")
    image = Path(Qcow2Engine(str(blocks.home), {}).image(4711))
    image.write_bytes(b"of nobody")
    assert blocks.driver.cleanup() == ["device 4711"]
    assert not image.exists()
    assert blocks.driver.stat("kept").kind is Kind.ACTIVE
