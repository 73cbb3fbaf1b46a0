"""The units for systemd, and the plugin started by systemd's own socket activation."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.container.runner import wait_for
from tests.mounts import REPOSITORY
from tests.plugin.client import Client, connected
from unionfs.cli import plugin

UNITS = REPOSITORY / "docs/systemd"
NAMES = sorted(path.name for path in UNITS.iterdir())
#: The command as it was installed beside this Python.
UNIONFS = Path(sys.executable).parent / "unionfs"


def unit(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, strict=True)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string((UNITS / name).read_text())
    return parsed


def test_they_say_what_the_command_does() -> None:
    socket, service = unit("unionfs-volume.socket"), unit("unionfs-volume.service")
    assert socket["Socket"]["ListenStream"] == plugin._VOLUME_SOCKET
    assert socket["Socket"]["SocketMode"] == "0600"
    program, *words = service["Service"]["ExecStart"].split()
    assert program == "unionfs"
    assert words == ["plugin", "volume"]
    assert words[1] in plugin.VERBS
    assert service["Service"]["Type"] == "notify"
    assert service["Service"]["KillMode"] == "process"


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".service")])
def test_services_have_the_mounts_of_the_host(name: str) -> None:
    """These are all that they have: any other may give them a mount namespace of their own."""
    programs = {"Type", "EnvironmentFile", "ExecStartPre", "ExecStart"}
    harmless = {*programs, "KillMode", "Restart", "TimeoutStartSec", "TimeoutStopSec"}
    assert set(unit(name)["Service"]) <= harmless


@pytest.mark.parametrize("name", NAMES)
def test_they_are_installed(name: str) -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    shared = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared[f"docs/systemd/{name}"] == f"lib/systemd/system/{name}"


def test_systemd_understands_them(scratch: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    for name in NAMES:
        text = (UNITS / name).read_text()
        # It looks where programs are installed only.
        (scratch / name).write_text(text.replace("ExecStart=unionfs", f"ExecStart={UNIONFS}"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(scratch / name) for name in NAMES)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "unionfs-" in line]
    assert said == []
    assert done.returncode == 0, done.stderr


def listens(path: Path) -> bool:
    """Whether somebody can connect; systemd has made the socket before it listens."""
    try:
        connected(path).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


@pytest.mark.needs_root
def test_the_first_engine_that_asks_starts_it(scratch: Path) -> None:
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("systemd is not installed")
    path, root = scratch / "plugin.sock", scratch / "store"
    command = ["systemd-socket-activate", f"--listen={path}", str(UNIONFS), "plugin", "volume"]
    with (scratch / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--root={root}"],
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: listens(path))
        client = Client(path)
        client.create("data")
        assert client.names() == ["data"]
        client.close()
        process.terminate()
        assert process.wait(20) == 0, (scratch / "log").read_text()
        assert path.exists()
    finally:
        process.kill()
        process.wait()
