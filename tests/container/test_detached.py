"""Containers in the background: their name, their output, their end."""

from __future__ import annotations

import os
import signal

import pytest

from tests.container.runner import Runner, wait_for

pytestmark = pytest.mark.needs_root


def test_its_name_is_told_and_its_output_kept(runner: Runner) -> None:
    script = "echo out; echo errors >&2; read line || echo no input; touch /done"
    name = runner.run("-d", "base", "sh", "-c", script).rstrip("\n")
    assert len(name) == 12
    runner.wait_until_gone()
    log = runner.root / "containers" / name / "log"
    assert log.read_text() == "out\nerrors\nno input\n"
    assert log.stat().st_mode & 0o077 == 0
    assert "A /done" in runner.unionfs("snapshot", "diff", name).splitlines()
    runner.unionfs("snapshot", "rm", name)
    runner.run("--rm", "base", "true")
    assert runner.containers() == []


def test_nothing_is_left_with_rm(runner: Runner) -> None:
    runner.run("-d", "--rm", "--name", "brief", "base", "true")
    runner.wait_until_gone()
    assert runner.snapshots() == ["base"]
    assert runner.containers() == []


def test_what_cannot_be_started_is_told(runner: Runner) -> None:
    assert (
        runner.refuse("-d", "base", "nosuch", status=127) == "nosuch: no such command in the image"
    )
    assert runner.refuse("-d", "nosuch", "true") == "nosuch: no such image"
    assert runner.snapshots() == ["base"]


def test_a_signal_to_its_process_reaches_the_command(runner: Runner) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    runner.run("-d", "--name", "background", "base", "sh", "-c", script)
    log = runner.root / "containers/background/log"
    wait_for(lambda: log.read_text() == "ready\n")
    os.kill(runner.supervisor("background"), signal.SIGTERM)
    runner.wait_until_gone()
    assert log.read_text() == "ready\nbye\n"
    assert not (runner.root / "containers/background/pid").exists()


def test_a_terminal_in_the_background(runner: Runner) -> None:
    runner.run("-dt", "--name", "background", "base", "sh", "-c", "tty; echo end")
    runner.wait_until_gone()
    log = runner.root / "containers/background/log"
    assert log.read_bytes() == b"/dev/pts/0\r\nend\r\n"


def test_two_of_one_name(runner: Runner) -> None:
    runner.run("-d", "--name", "taken", "base", "sleep", "1000")
    said = runner.refuse("-d", "--name", "taken", "base", "true")
    assert said == "taken: a container of this name is running"
    os.kill(runner.supervisor("taken"), signal.SIGKILL)
    runner.wait_until_gone()
