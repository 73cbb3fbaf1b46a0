"""The course is held, part by part; what the command says, and that nothing is left of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.container.runner import wait_for
from tests.engines.test_ground import left_of
from tests.mounts import REPOSITORY
from tests.walkthrough.classroom import Classroom
from tests.walkthrough.lesson import ID, CheckError, Lesson, UnavailableError
from tests.walkthrough.parts import PARTS, Part

pytestmark = pytest.mark.needs_root


@pytest.fixture(scope="session")
def classroom() -> Iterator[Classroom]:
    """What a part prints is shown if it fails."""
    with Classroom(print) as made:
        yield made


@pytest.mark.parametrize(
    ("part", "engine"),
    [
        pytest.param(part, engine, marks=marks, id=f"{part.name}-{engine}")
        for engine, marks in (("podman", []), ("docker", [pytest.mark.slow]))
        for part in PARTS
        if engine in part.engines
    ],
)
def test_part(classroom: Classroom, part: Part, engine: str) -> None:
    try:
        assert classroom.hold(part, engine) > 3
    except UnavailableError as reason:
        pytest.skip(str(reason))


def test_what_is_shown_must_be_checked(classroom: Classroom) -> None:
    def forgetful(lesson: Lesson) -> None:
        lesson.host("echo shown")
        lesson.host("true")

    with pytest.raises(CheckError, match="a check of what is shown by echo shown"):
        classroom.hold(Part("forgetful", "", forgetful), "podman")


def test_a_status_must_be_the_expected_one(classroom: Classroom) -> None:
    def failing(lesson: Lesson) -> None:
        lesson.engine("run --rm base false")

    with pytest.raises(CheckError, match="exit status"):
        classroom.hold(Part("failing", "", failing), "podman")


def test_a_part_leaves_nothing_to_the_next(classroom: Classroom) -> None:
    def untidy(lesson: Lesson) -> None:
        lesson.host("mkdir -p sub/dir; touch file sub/dir/file")
        lesson.start("runs", "-v left:/v base sleep 999")
        lesson.check("made", lesson.engine("volume create --driver unionfs ours"), "ours")
        lesson.check_that("made", "own" in lesson.engine("network create own"), lesson.said)
        lesson.check("made", lesson.engine("commit -q runs image"), ID)

    def finds(lesson: Lesson) -> None:
        script = "ls; podman ps -aq; podman volume ls -q; podman images -q | wc -l"
        shown = lesson.host(f"{script}; podman network ls --format '{{{{.Name}}}}'")
        lesson.check("nothing", shown, "1\npodman")

    for run in (untidy, finds):
        classroom.hold(Part("untidy", "", run), "podman")


#: The command, with a part that fails before one of its own.
ONE_FAILS: Final = """
import sys
from tests.walkthrough import __main__ as command, parts

def wrong(lesson):
    lesson.check("they are equal", lesson.engine("run --rm base echo found"), "expected")

command.PARTS = (parts.Part("wrong", "it fails", wrong), parts.PARTS[1])
sys.exit(command.main())
"""


@pytest.fixture
def ground_base(scratch: Path) -> Iterator[Path]:
    """Where the command makes its grounds, of which nothing must be left."""
    yield scratch
    end = time.monotonic() + 20
    while left := left_of(scratch) if list(scratch.iterdir()) else []:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def start(base: Path, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", *arguments],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "UNIONFS_TEST_DIR": str(base)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


def run(base: Path, *arguments: str, status: int = 0, **more: Any) -> str:
    """Run to the end; what it wrote."""
    with start(base, *arguments, **more) as process:
        out, _ = process.communicate(timeout=80)
    assert process.returncode == status, out
    return out


def test_a_failing_check_is_the_commands_status(ground_base: Path) -> None:
    out = run(ground_base, "-c", ONE_FAILS, status=1)
    assert "    ✗ they are equal\n      expected: 'expected'\n      found:    'found'\n" in out
    summary = out.partition("==> the parts\n")[2].splitlines()
    assert [line.split()[:2] for line in summary] == [["wrong", "FAILED:"], ["ephemeral", "10"]]


def test_one_part_with_a_closed_input(ground_base: Path) -> None:
    close: dict[str, Any] = {"preexec_fn": lambda: os.close(0)}
    for _ in range(2):
        out = run(ground_base, "-m", "tests.walkthrough", "--part", "tmpfs", **close)
        assert "==> tmpfs (podman)" in out
        assert out.count("\n==> ") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(ground_base: Path, number: signal.Signals) -> None:
    with start(ground_base, "-m", "tests.walkthrough") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "C2 runs" in line:
                break
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)


def test_the_options(tmp_path: Path) -> None:
    module = ("-m", "tests.walkthrough")
    names = [line.split()[:2] for line in run(tmp_path, *module, "--list").splitlines()]
    assert names == [[part.name, part.engines[0]] for part in PARTS]
    listed = run(tmp_path, *module, "--list", "--engine", "docker", "--part", "volumes", "tmpfs")
    assert [line.split()[:2] for line in listed.splitlines()] == [
        ["volumes", "docker"],
        ["tmpfs", "docker"],
    ]
    assert "podman has none of: volume-plugin" in run(
        tmp_path, *module, "--engine", "podman", "--part", "volume-plugin", status=2
    )
    assert "invalid choice: 'no'" in run(tmp_path, *module, "--part", "no", status=2)
    assert "invalid choice: 'lxc'" in run(tmp_path, *module, "--engine", "lxc", status=2)


def test_the_list_needs_no_environment() -> None:
    """Nor a standard input."""
    command = ["env", "-i", "PATH=/usr/bin:/bin", str(REPOSITORY / "scripts/walkthrough"), "--list"]
    close: dict[str, Any] = {"preexec_fn": lambda: os.close(0)}
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=20, **close)
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert listed == [part.name for part in PARTS]


def test_an_engine_that_does_not_start_fails_its_parts(ground_base: Path) -> None:
    program = ONE_FAILS.replace(
        "command.PARTS =",
        "from tests.engines import podman; podman.STORAGE_CONF += '[[['\ncommand.PARTS =",
    )
    out = run(ground_base, "-c", program, status=1)
    summary = out.partition("==> the parts\n")[2].splitlines()
    assert [line.split()[1] for line in summary] == ["FAILED:", "FAILED:"]


def test_what_the_kernel_lacks_is_named(classroom: Classroom) -> None:
    def lacking(lesson: Lesson) -> None:
        lesson.need_link("veth", "type veth")
        lesson.need_link("nothing", "type nothing")

    with pytest.raises(UnavailableError, match=r"^this kernel has no nothing: .*Unknown"):
        classroom.hold(Part("lacking", "", lacking), "podman")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: None if name == "dockerd" else there(name))
    with Classroom(print) as classroom, pytest.raises(UnavailableError) as reason:
        classroom.hold(PARTS[0], "docker")
    assert str(reason.value) == "dockerd is not installed (package docker.io)"


def test_the_page_lists_the_parts() -> None:
    text = (REPOSITORY / "docs/walkthrough.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| (.*?) \|", text, re.MULTILINE)
    listed = [(name, tuple(engines.lower().split(", "))) for name, engines in rows]
    assert listed == [(part.name, part.engines) for part in PARTS]


#: The command, with one part, which uses a volume on a block device.
ON_A_DISK: Final = """
from tests.walkthrough import __main__ as command, parts

def part(lesson):
    options = "--driver unionfs -o driver=block -o size=64m"
    lesson.check("made", lesson.engine(f"volume create {options} disk"), "disk")
    lesson.start("user", "-v disk:/v base sh -c 'echo >/v/file; sleep 999'")
    shown = lesson.engine("exec user grep -o '^/dev/.* /v ' /proc/mounts")
    lesson.check_that("it is on a disk", "/dev/loop" in shown, shown)
    lesson.host("sleep 99")

command.PARTS = (parts.Part("part", "", part),)
command.main()
"""


def test_a_kill_leaves_no_disks(ground_base: Path) -> None:
    with start(ground_base, "-c", ON_A_DISK) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(r" +/dev/(loop\d+) ", line):
                break
        else:
            pytest.fail("the volume is on no disk")
        attached = Path("/sys/block", found[1], "loop")
        number = attached.stat().st_ino
        process.kill()
        process.communicate(timeout=30)
    # Its number may be another's by then.
    wait_for(lambda: not attached.exists() or attached.stat().st_ino != number, 20)
