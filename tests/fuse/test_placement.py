"""Which thread reads: decisions with a clock of our own, and threads on a pipe."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from unionfs.fuse.formation import BLOCK, Formation, Pause, Policy
from unionfs.fuse.placement import NOBODY, Placement, Reader

ONE = [7] * BLOCK
TWO = [7, 8] * (BLOCK // 2)


class World:
    """A policy, and what it sees."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calm = self.alone = True
        self.policy = Policy(lambda: self.calm, lambda: self.alone, self.now)

    def look(self, clients: list[int], after: float = 0.001, *, apart: int = 0) -> Formation:
        self.now += after
        return self.policy.look(clients, apart, self.now)

    def late(self, after: float = 0.01) -> Formation:
        self.now += after
        return self.policy.late(self.now)

    def near(self) -> World:
        for _ in range(2):
            self.look(ONE)
        assert self.policy.formation is Formation.NEAR
        return self

    def spread(self) -> World:
        for _ in range(2):
            self.look(TWO, apart=BLOCK)
        assert self.policy.formation is Formation.SPREAD
        return self

    def looks_until(self, formation: Formation, step: float = 0.001, *, apart: int = 0) -> float:
        """The seconds until *formation*, with one fast client."""
        begun = self.now
        while self.look(ONE, step, apart=apart) is not formation:
            assert self.now < begun + 100
        return self.now - begun


@pytest.fixture
def world() -> World:
    return World()


def test_near_after_two_good_looks(world: World) -> None:
    assert world.look(ONE) is Formation.FREE
    assert world.look(ONE) is Formation.NEAR


@pytest.mark.parametrize("clients", [TWO, [7] * 12 + [8] * 4, list(range(BLOCK))])
def test_never_near_without_a_single_client(world: World, clients: list[int]) -> None:
    assert {world.look(clients) for _ in range(1000)} == {Formation.FREE}


def test_good_looks_must_be_in_a_row(world: World) -> None:
    assert {world.look(clients) for _ in range(50) for clients in (ONE, TWO)} == {Formation.FREE}


def test_a_slow_client_stays_free(world: World) -> None:
    assert {world.look(ONE, after=0.017) for _ in range(50)} == {Formation.FREE}


@pytest.mark.parametrize("obstacle", ["calm", "alone"])
def test_near_only_when_calm_and_alone(world: World, obstacle: str) -> None:
    setattr(world, obstacle, False)
    assert {world.look(ONE) for _ in range(50)} == {Formation.FREE}
    setattr(world, obstacle, True)
    assert world.looks_until(Formation.NEAR) <= 0.021


def test_files_are_not_asked_at_each_look() -> None:
    asked = []

    def calm() -> bool:
        asked.append(1)
        return False

    policy = Policy(calm, lambda: True, 0.0)
    for number in range(1000):
        policy.look(ONE, 0, number * 0.001)
    assert len(asked) <= 50


def test_one_late_pick_up_is_an_accident(world: World) -> None:
    world.near()
    for _ in range(10):
        assert world.late() is Formation.NEAR
        assert {world.look(ONE, after=0.1) for _ in range(4)} == {Formation.NEAR}


def test_the_second_late_pick_up_ends_near(world: World) -> None:
    world.near()
    assert world.late() is Formation.NEAR
    assert world.late(after=0.2) is Formation.FREE


def test_late_pick_ups_of_a_slow_client_end_near_too(world: World) -> None:
    world.near()
    assert world.late(after=5.0) is Formation.NEAR
    assert world.look(ONE, after=16.0) is Formation.NEAR
    assert world.late(after=5.0) is Formation.FREE


def test_pauses_double_up_to_a_bound_and_are_forgotten(world: World) -> None:
    lengths = []
    for _ in range(10):
        world.looks_until(Formation.NEAR, 0.0005)
        world.late()
        world.late()
        begun = world.now
        world.looks_until(Formation.NEAR, 0.0005)
        lengths.append(world.now - begun)
        world.policy.leave_near(world.now)
        world.now += 31.0
    assert lengths == pytest.approx([0.1] * 10, abs=0.01)
    pause = Pause(longest=10.0)
    lengths = []
    for _ in range(9):
        pause.failed(world.now)
        begun = world.now
        while not pause.over(world.now):
            world.now += 0.01
        lengths.append(world.now - begun)
    assert lengths == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10], abs=0.02)


def test_a_second_client_ends_near_at_the_second_look(world: World) -> None:
    world.near()
    assert world.look(TWO) is Formation.NEAR
    assert world.look(TWO) is Formation.FREE
    assert world.look(ONE) is Formation.FREE
    assert world.look(ONE) is Formation.NEAR, "no failure, no pause"


def test_one_client_after_another_stays_near(world: World) -> None:
    world.near()
    assert {world.look([client] * BLOCK) for client in range(20)} == {Formation.NEAR}


def test_a_near_client_may_come_slowly(world: World) -> None:
    world.near()
    assert {world.look(ONE, after=5.0) for _ in range(10)} == {Formation.NEAR}


@pytest.mark.parametrize("clients", [ONE, TWO])
def test_spread_while_requests_copy_or_wait(world: World, clients: list[int]) -> None:
    assert world.look(clients, apart=8) is Formation.FREE
    assert world.look(clients, apart=8) is Formation.SPREAD
    assert {world.look(clients, apart=8) for _ in range(20)} == {Formation.SPREAD}
    world.look(clients)
    assert world.look(clients) is not Formation.SPREAD


def test_a_few_that_wait_do_not_end_near(world: World) -> None:
    world.near()
    assert {world.look(ONE, apart=2) for _ in range(50)} == {Formation.NEAR}


def test_many_that_wait_end_near_without_a_pause(world: World) -> None:
    world.near()
    world.look(ONE, apart=8)
    assert world.look(ONE, apart=8) is Formation.SPREAD
    world.look(ONE)
    assert world.look(ONE) is Formation.NEAR


def test_never_spread_when_crowded(world: World) -> None:
    world.calm = False
    assert {world.look(TWO, apart=BLOCK) for _ in range(200)} == {Formation.FREE}


def test_late_pinned_readers_give_way_to_a_free_one(world: World) -> None:
    world.spread()
    assert world.late() is Formation.SPREAD, "late, but not for want of a CPU"
    world.calm = False
    assert world.late() is Formation.FREE
    assert {world.look(ONE, apart=BLOCK) for _ in range(200)} == {Formation.FREE}
    world.calm = True
    assert world.looks_until(Formation.SPREAD, apart=BLOCK) <= 0.021


def test_the_pause_of_spread_lasts_longer_each_time(world: World) -> None:
    world.spread()
    lengths = []
    for _ in range(6):
        world.calm = False
        world.late()
        world.calm = True
        lengths.append(world.looks_until(Formation.SPREAD, apart=BLOCK))
    assert lengths == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0], abs=0.01)


# Threads.


@contextmanager
def serving(mode: str) -> Iterator[tuple[int, list[tuple[int, set[int], int]], Placement]]:
    """A placement whose readers take bytes from a pipe; what each byte was read by, and where."""
    source, sink = os.pipe()
    notes: list[tuple[int, set[int], int]] = []
    client = os.getpid()

    def read_loop(reader: Reader) -> None:
        while True:
            reader.await_turn()
            if not os.read(source, 1):
                return
            here = threading.get_native_id()
            notes.append((here, os.sched_getaffinity(0), os.sched_getscheduler(0)))
            reader.served(client)

    placement = Placement(mode)
    threads = placement.start(read_loop)
    try:
        yield sink, notes, placement
    finally:
        os.close(sink)
        for thread in threads:
            thread.join(10)
        os.close(source)
    assert not any(thread.is_alive() for thread in threads), "parked readers see the end too"


def send(sink: int, notes: list[tuple[int, set[int], int]], count: int) -> None:
    """One request after the other, as a client that waits for its answers."""
    for _ in range(count):
        before = len(notes)
        os.write(sink, b"x")
        until(lambda before=before: len(notes) > before)  # type: ignore[misc]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0)


def test_off_is_one_thread_that_the_scheduler_places() -> None:
    with serving("off") as (sink, notes, _):
        send(sink, notes, 100)
    assert len({thread for thread, _, _ in notes}) == 1
    assert all(cpus == os.sched_getaffinity(0) for _, cpus, _ in notes)


def test_spread_is_one_pinned_thread_for_each_cpu() -> None:
    with serving("spread") as (sink, notes, placement):
        assert len(placement._readers) == len(os.sched_getaffinity(0))
        send(sink, notes, 200)
    assert all(len(cpus) == 1 for _, cpus, _ in notes)
    assert {policy for _, _, policy in notes} == {os.SCHED_OTHER}


def test_readers_follow_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unionfs.fuse.placement._RARELY", 0.0)
    allowed = os.sched_getaffinity(0)
    one = min(allowed)
    with serving("spread") as (sink, notes, _):
        try:
            os.sched_setaffinity(0, {one})
            send(sink, notes, 10 * BLOCK)
            assert all(cpus == {one} for _, cpus, _ in notes[-2 * BLOCK :])
        finally:
            os.sched_setaffinity(0, allowed)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU is always near")
def test_near_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unionfs.fuse.placement.own_task_group", lambda: True)
    monkeypatch.setattr("unionfs.fuse.placement.crowded", lambda: False)
    monkeypatch.setattr("unionfs.fuse.formation._FAST", 10.0)
    # Here the thread shares its group with the tests, and is late whenever the machine is busy.
    monkeypatch.setattr(Placement, "late", lambda _: None)
    with serving("auto") as (sink, notes, placement):
        send(sink, notes, 20 * BLOCK)
        near = notes[-1][0]
        assert [policy for _, _, policy in notes[-BLOCK:]] == [os.SCHED_IDLE] * BLOCK
        assert {thread for thread, _, _ in notes[-BLOCK:]} == {near}
        monkeypatch.setattr(Pause, "SHORTEST", 1000.0)
        with placement._changing:
            placement._form(placement._policy.leave_near(time.monotonic()))
        sent = len(notes)
        send(sink, notes, 3 * BLOCK)
        last = [thread for thread, _, _ in notes[sent:]].count(near)
        assert last <= 1, "it hands on what its last read brings, and parks"


def test_a_reader_that_fails_leaves_the_others_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    placement = Placement("auto")
    ended = threading.Event()
    lock = threading.Lock()

    def read_loop(reader: Reader) -> None:
        reader.await_turn()
        with lock:
            ended.set()

    for thread in placement.start(read_loop):
        thread.join(10)
        assert not thread.is_alive()
    assert ended.is_set()


def test_what_nobody_waits_for_is_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def look(policy: Policy, clients: list[int], *_: object) -> Formation:
        seen.extend(clients)
        return policy.formation

    monkeypatch.setattr(Policy, "look", look)
    placement = Placement("auto")

    def read_loop(reader: Reader) -> None:
        for _ in range(BLOCK):
            reader.served(7)
            reader.served(NOBODY)

    for thread in placement.start(read_loop):
        thread.join(10)
    assert set(seen) == {7}


def test_descriptors_are_given_back() -> None:
    before = os.listdir("/proc/self/fd")
    with serving("auto") as (sink, notes, _):
        send(sink, notes, 100)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "spread", "off"])
def test_nothing_wakes_without_requests(mode: str) -> None:
    with serving(mode) as (sink, notes, _):
        send(sink, notes, 200)
        time.sleep(0.5)
        before = switches()
        time.sleep(20)
        assert switches() == before


def switches() -> dict[str, list[str]]:
    """How often each reader has given up a CPU."""
    found = {}
    for thread in threading.enumerate():
        if thread.name.startswith("reader-"):
            status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
            found[thread.name] = [line for line in status.splitlines() if "ctxt_" in line]
    return found
