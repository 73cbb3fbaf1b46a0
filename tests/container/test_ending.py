"""How a container ends: signals, orphans, and processes of ours that are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.container.runner import Runner, wait_for
from unionfs.container import records
from unionfs.container.run import EPHEMERAL, LABEL, clean
from unionfs.store.store import Store

pytestmark = pytest.mark.needs_root


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT]
)
def test_signals_reach_the_command(runner: Runner, number: signal.Signals) -> None:
    script = f"trap 'echo heard; exit 5' {int(number)}; echo ready; while :; do sleep 0.05; done"
    process = runner.start("--rm", "base", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("heard\n", "")
    assert process.returncode == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_command_that_does_not_ask(runner: Runner, number: signal.Signals) -> None:
    process = runner.start("--rm", "base", "sh", "-c", "echo ready; exec sleep 50")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(20) == 128 + number


def test_orphans_are_reaped(runner: Runner) -> None:
    script = """
        for i in 1 2 3 4 5; do (sleep 0.1 & ) ; done; sleep 0.5
        ps -o stat,args | grep -c '^Z'
        pidof sleep
        true
    """
    assert runner.run("--rm", "base", "sh", "-c", script) == "0\n"


def test_what_the_command_leaves_running_ends_with_it(runner: Runner) -> None:
    runner.run("--rm", "base", "sh", "-c", "sleep 1000 & (setsid sleep 1000 &); true")
    runner.wait_until_gone()


def test_a_reader_that_has_enough_is_no_error_of_ours(runner: Runner) -> None:
    process = runner.start("--rm", "base", "yes")
    assert process.stdout is not None
    assert process.stdout.readline() == "y\n"
    process.stdout.close()
    assert process.wait(20) in (1, 128 + signal.SIGPIPE)


def started(runner: Runner, *options: str) -> int:
    """Start container ``victim``, which writes and goes on; the process that runs it."""
    script = "echo whole >/file; echo ready >/data/ready; exec sleep 1000"
    runner.run("-d", "--name", "victim", *options, "base", "sh", "-c", script)

    def is_ready() -> bool:
        return "A /data/ready" in runner.unionfs("snapshot", "diff", "victim").splitlines()

    wait_for(is_ready)
    return runner.supervisor("victim")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def first_process(supervisor: int) -> int:
    """The process that is number 1 of a PID namespace."""
    for pid in children(supervisor):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        (numbers,) = [line.split()[1:] for line in lines if line.startswith("NSpid:")]
        if len(numbers) > 1 and numbers[-1] == "1":
            return pid
    raise AssertionError("no first process")


def daemon(supervisor: int) -> int:
    (pid,) = set(children(supervisor)) - {first_process(supervisor)}
    return pid


def check_kept(runner: Runner) -> None:
    """Nothing runs or is mounted, what was written is whole, and the name can be freed."""
    runner.wait_until_gone()
    runner.run("--rm", "base", "true")
    assert "A /file" in runner.unionfs("snapshot", "diff", "victim").splitlines()
    runner.unionfs("snapshot", "commit", "whole", "victim")
    assert runner.run("--rm", "whole", "cat", "/file") == "whole\n"
    assert runner.containers() == []


def test_the_one_that_runs_it_is_killed(runner: Runner) -> None:
    os.kill(started(runner), signal.SIGKILL)
    check_kept(runner)


def test_the_first_process_is_killed(runner: Runner) -> None:
    os.kill(first_process(started(runner)), signal.SIGKILL)
    check_kept(runner)


def test_the_daemon_is_killed(runner: Runner) -> None:
    supervisor = started(runner)
    os.kill(daemon(supervisor), signal.SIGKILL)
    # The command only sleeps, and has nothing to ask its root for.
    os.kill(supervisor, signal.SIGTERM)
    check_kept(runner)


def test_all_are_killed(runner: Runner) -> None:
    supervisor = started(runner)
    for pid in [supervisor, *children(supervisor)]:
        os.kill(pid, signal.SIGKILL)
    check_kept(runner)


def test_an_ephemeral_layer_goes_with_the_next_run_when_its_runner_was_killed(
    runner: Runner,
) -> None:
    os.kill(started(runner, "--rm"), signal.SIGKILL)
    runner.wait_until_gone()
    runner.run("--rm", "base", "true")
    assert runner.snapshots() == ["base"]
    assert runner.containers() == []


def test_cleanup_removes_the_layers_of_killed_containers_only(runner: Runner) -> None:
    victim = started(runner, "--rm")
    assert runner.unionfs("snapshot", "cleanup") == ""
    os.kill(victim, signal.SIGKILL)
    runner.wait_until_gone()
    # What is captured of it has its labels, and is nobody's to remove.
    runner.unionfs("snapshot", "capture", "taken", "victim")
    runner.run("-d", "--rm", "--name", "alive", "base", "sleep", "1000")
    runner.run("--name", "kept", "base", "true")
    assert runner.snapshots() == ["alive", "base", "kept", "taken"]
    with contextlib.closing(Store.open(str(runner.root), "overlay", {})) as store:
        # Killed before it could write down what it is.
        labels = {LABEL: "early", EPHEMERAL: ""}
        store.driver.prepare("early", "base", labels=labels)
        records.claim(store.root, "early").close()
        store.driver.prepare("a/b", "base", labels={LABEL: "a/b", EPHEMERAL: ""})
    assert runner.unionfs("snapshot", "cleanup") == "early\n"
    assert runner.snapshots() == ["a/b", "alive", "base", "kept", "taken"]
    assert runner.containers() == ["alive"]
    os.kill(runner.supervisor("alive"), signal.SIGTERM)
    runner.wait_until_gone()


def test_cleanup_removes_an_ephemeral_layer(runner: Runner) -> None:
    os.kill(started(runner, "--rm"), signal.SIGKILL)
    runner.wait_until_gone()
    assert runner.unionfs("snapshot", "cleanup") == "victim\n"
    assert runner.snapshots() == ["base"]
    assert runner.containers() == []


def test_a_running_layer_is_not_removed(runner: Runner) -> None:
    supervisor = started(runner)
    assert "victim" in runner.unionfs("snapshot", "rm", "victim", status=1) + runner.said
    assert "in use by container victim" in runner.said
    os.kill(supervisor, signal.SIGTERM)
    runner.wait_until_gone()
    runner.unionfs("snapshot", "rm", "victim")


@pytest.mark.parametrize("delay", [0.02, 0.06, 0.1, 0.14, 0.18, 0.22])
def test_killed_while_it_starts(runner: Runner, delay: float) -> None:
    process = runner.start("--rm", "--name", "victim", "base", "sleep", "1000")
    time.sleep(delay)
    process.kill()
    process.wait()
    runner.wait_until_gone()
    runner.run("--rm", "--name", "victim", "base", "true")
    assert runner.snapshots() == ["base"]
    assert runner.containers() == []


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.15, 0.2])
def test_interrupted_while_it_starts(runner: Runner, delay: float) -> None:
    process = runner.start("--rm", "--name", "victim", "base", "sleep", "1000")
    time.sleep(delay)
    # Again, as a person would: Python may be where it passes over an exception.
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
            break
    assert process.poll() in (1, 8, 125, 130, -signal.SIGINT)
    runner.wait_until_gone()
    runner.run("--rm", "--name", "victim", "base", "true")
    assert runner.snapshots() == ["base"]


#: Has the first process wait where it looks for the user, for ever.
_HANG = """
import os, time
import unionfs.container.init
def identify(text):
    os.write(1, b"waiting\\n")
    time.sleep(1000)
unionfs.container.init.identify = identify
"""


def start_hanging(runner: Runner, *options: str) -> subprocess.Popen[str]:
    """Start ``victim``, which comes no further than to its first process."""
    (runner.base / "sitecustomize.py").write_text(_HANG)
    path = f"{runner.base}:{runner.surroundings()['PYTHONPATH']}"
    arguments = ["--rm", "--name", "victim", *options, "base", "true"]
    process = runner.start(*arguments, env={"PYTHONPATH": path})
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_start_that_hangs(runner: Runner, number: signal.Signals) -> None:
    process = start_hanging(runner)
    process.send_signal(number)
    said = f"unionfs: {number.name} before the command was started\n"
    assert process.communicate(timeout=20) == ("", said)
    assert process.returncode == 128 + number
    runner.wait_until_gone()
    assert runner.snapshots() == ["base"]
    assert runner.containers() == []


def test_nothing_is_left_of_a_start_that_hangs_when_its_runner_is_killed(runner: Runner) -> None:
    process = start_hanging(runner)
    process.kill()
    process.wait()
    runner.wait_until_gone()
    runner.run("--rm", "--name", "victim", "base", "true")
    assert runner.snapshots() == ["base"]
    assert runner.containers() == []


def test_many_at_once(runner: Runner) -> None:
    processes = [
        runner.start("--rm", "base", "sh", "-c", f"echo {number} >/f; cat /f")
        for number in range(8)
    ]
    shown = [process.communicate(timeout=60)[0] for process in processes]
    assert shown == [f"{number}\n" for number in range(8)]
    assert runner.snapshots() == ["base"]


@pytest.mark.parametrize("driver", ["overlay", "block"])
def test_what_was_killed_is_removed_from_its_own_driver_only(runner: Runner, driver: str) -> None:
    with contextlib.closing(Store.open(str(runner.root), "overlay", {})) as store:
        labels = {LABEL: "victim", EPHEMERAL: ""} if driver == "overlay" else {}
        store.driver.prepare("victim", "base", labels=labels)
        with contextlib.closing(records.claim(store.root, "victim")) as record:
            record.begin(driver=driver, volumes=())
        clean(store)
        ours = driver == "overlay"
        assert ("victim" in [info.key for info in store.driver.walk()]) is not ours
        assert runner.containers() == ([] if ours else ["victim"])
