"""What engines run in: nothing of it is on the host, nothing survives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.container.runner import wait_for
from tests.engines.ground import REPOSITORY, Ground, hierarchies

pytestmark = pytest.mark.needs_root


def left_of(base: Path) -> list[str]:
    """What of a ground still is there."""
    places = [base, *(hierarchy / base.name for hierarchy in hierarchies())]
    found = [str(path) for path in places if path.exists()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "mountinfo").read_text() + (process / "cmdline").read_text()
        except OSError:
            continue
        if str(base) in text:
            found.append(str(process))
    return found


def test_it_is_not_the_host(ground: Ground) -> None:
    script = "touch /run/mine /dev/shm/mine; ip link add dummy0 type dummy; cat /proc/self/cgroup"
    assert ":cpu:/\n" in ground.run("sh", "-c", script)
    assert not Path("/run/mine").exists()
    assert not Path("/dev/shm/mine").exists()
    assert "dummy0" not in Path("/proc/net/dev").read_text()
    assert "ordinary" not in Path("/etc/passwd").read_text()


def test_its_user_has_what_engines_need(ground: Ground) -> None:
    script = 'id -un; grep -c ordinary: /etc/subuid; test -w /dev/fuse && test -w "$HOME" && pwd'
    home = str(ground.base / "home")
    shown = ground.run("sh", "-c", script, user=True, environment={"HOME": home})
    assert shown.split() == ["ordinary", "1", str(ground.base)]


def test_a_command_that_takes_too_long_is_killed(ground: Ground) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        ground.run("sh", "-c", "sleep 1234 & sleep 1234", seconds=0.5)
    wait_for(lambda: "sleep 1234" not in ground.run("ps", "ax", "-o", "args"))


def test_nothing_is_left_at_its_end(ground: Ground) -> None:
    ground.run("sh", "-c", "mount -t tmpfs none home; setsid sleep 1234 >/dev/null 2>&1 &")
    assert len(left_of(ground.base)) > 2
    ground.close()
    assert left_of(ground.base) == []


def test_nothing_is_left_of_killed_tests() -> None:
    program = (
        "import sys; from tests.engines.ground import Ground; ground = Ground();"
        "ground.run('sh', '-c', 'mount -t tmpfs none home; setsid sleep 99 >/dev/null 2>&1 &');"
        "ground.run('mkdir', '/sys/fs/cgroup/cpu/inner');"
        "print(ground.base, flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True) as tests:
        assert tests.stdout is not None
        base = Path(tests.stdout.readline().strip())
        assert base.is_dir()
        assert left_of(base)
        os.kill(tests.pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while left := left_of(base):
        assert time.monotonic() < end, left
        time.sleep(0.05)


def test_a_project_in_a_closed_home_is_open_to_its_user(scratch: Path) -> None:
    """Where only root may pass, the ground shows the way to the project and nothing else."""
    project = scratch / "closed/project"
    shutil.copytree(REPOSITORY / "tests/engines", project / "tests/engines")
    (scratch / "closed/secret").touch()
    (scratch / "closed").chmod(0o700)
    program = (
        "import importlib.util, sys; path = sys.argv[1] + '/tests/engines/ground.py';"
        "spec = importlib.util.spec_from_file_location('ground', path);"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "ground = module.Ground(); project = sys.argv[1];"
        "print(ground.run('ls', project + '/..', project, user=True)); ground.close()"
    )
    command = [sys.executable, "-S", "-c", program, str(project)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{project}:", "tests", f"{project}/..:", "project"]
