"""Whether a task group is our own, told from files; and what threads' files say."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from unionfs.fuse.scheduling import LastCpu, RunDelay, own_task_group

V2 = "31 30 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V1_PART = "33 30 0:29 /docker/1 /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
ME = f"{os.getpid()}\n"


class Machine:
    """Files of /proc and /sys as a machine has them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/sys/kernel/sched_autogroup_enabled", "1\n")

    def write(self, path: str, text: str = "") -> Machine:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return self

    def v2(self, path: str) -> Machine:
        self.write("proc/self/cgroup", f"0::{path}\n").write("proc/self/mountinfo", V2)
        return self.write("sys/fs/cgroup/cgroup.procs")

    def v1(self, path: str) -> Machine:
        self.write("proc/self/cgroup", f"4:memory:/x\n3:cpu,cpuacct:{path}\n0::/y\n")
        self.write("sys/fs/cgroup/cpu,cpuacct/release_agent")
        return self.write("proc/self/mountinfo", V2 + V1)

    def own(self) -> bool:
        return own_task_group(str(self.root))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())
    return Machine(tmp_path)


def test_a_session_in_the_root_has_an_autogroup(machine: Machine) -> None:
    assert machine.v2("/").own()
    assert machine.v2("/user.slice").own(), "the controller is not on this cgroup"
    assert machine.v1("/").own()


def test_not_without_autogroup(machine: Machine) -> None:
    machine.v2("/").write("proc/sys/kernel/sched_autogroup_enabled", "0\n")
    assert not machine.own()


def test_not_in_the_session_of_others(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getsid", lambda _: os.getppid())
    assert not machine.v2("/").own()


def test_not_on_a_kernel_without_autogroup(machine: Machine) -> None:
    (machine.root / "proc/sys/kernel/sched_autogroup_enabled").unlink()
    assert not machine.v2("/").own()


@pytest.mark.parametrize(
    ("processes", "idle", "own"),
    [(ME, "0\n", True), (ME + "1\n", "0\n", False), (ME, "1\n", False)],
)
def test_alone_in_a_cpu_cgroup(machine: Machine, processes: str, idle: str, own: bool) -> None:
    machine.v2("/a").write("sys/fs/cgroup/a/cpu.weight", "100\n")
    machine.write("sys/fs/cgroup/a/cgroup.procs", processes)
    machine.write("sys/fs/cgroup/a/cpu.idle", idle)
    assert machine.own() == own
    machine.v1("/a").write("sys/fs/cgroup/cpu,cpuacct/a/cgroup.procs", processes)
    machine.write("sys/fs/cgroup/cpu,cpuacct/a/cpu.idle", idle)
    assert machine.own() == own


def test_not_in_the_group_of_a_parent(machine: Machine) -> None:
    machine.v2("/a/b").write("sys/fs/cgroup/a/cpu.weight", "100\n")
    assert not machine.own()


def test_not_in_a_cgroup_namespace(machine: Machine) -> None:
    assert not machine.v2("/").write("sys/fs/cgroup/cgroup.events", "populated 1\n").own()
    machine.v1("/")
    (machine.root / "sys/fs/cgroup/cpu,cpuacct/release_agent").unlink()
    assert not machine.own()


def test_not_where_the_cgroup_cannot_be_seen(machine: Machine) -> None:
    assert not machine.v1("/docker/1").write("proc/self/mountinfo", V1_PART).own()
    assert not machine.v2("/").write("proc/self/mountinfo").own()
    assert not machine.v2("/../a").own()
    elsewhere = V2.replace("/sys/fs", "/merged/sys/fs")
    assert not machine.v2("/").write("proc/self/mountinfo", elsewhere).own()
    machine.v2("/")
    (machine.root / "sys/fs/cgroup/cgroup.procs").unlink()
    assert not machine.own()


def test_not_without_proc(tmp_path: Path) -> None:
    assert not own_task_group(str(tmp_path))


def test_the_cpu_of_a_thread() -> None:
    allowed = os.sched_getaffinity(0)
    cpu = LastCpu()
    try:
        for pinned in allowed:
            os.sched_setaffinity(0, {pinned})
            assert cpu.of(threading.get_native_id()) == pinned
        assert cpu.of(1 << 22) == -1
        assert cpu.of(os.getpid()) in allowed
    finally:
        os.sched_setaffinity(0, allowed)
        cpu.close()


def test_the_delay_of_a_thread_grows_while_it_has_no_cpu() -> None:
    delay = RunDelay()
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    child = os.fork()
    if child == 0:
        while True:
            pass
    try:
        delay.grown()
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            pass
        assert delay.grown() > 0.01
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.sched_setaffinity(0, allowed)
        delay.close()
