"""The volume plugin beside an engine, in the engine's namespaces."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.container.runner import wait_for
from tests.engines.conftest import UNIONFS
from tests.engines.docker import Docker
from tests.engines.ground import REPOSITORY, Ground
from tests.engines.podman import Podman

#: Where Docker finds it by its name.
SOCKET: Final = "/run/docker/plugins/unionfs.sock"
#: Asks from inside of the ground; the body of the answer.
_ASK: Final = """
import json, sys
from tests.plugin.client import Client
socket, path, body = sys.argv[1:]
print(json.dumps(Client(socket).ask(path, body.encode()).body))
"""


class PluginBeside:
    """``unionfs plugin volume`` in *ground*, with a store of its own.

    *user* is whether the ground's ordinary user starts it.
    """

    def __init__(self, ground: Ground, socket: str = SOCKET, *, user: bool = False) -> None:
        self.ground = ground
        self.socket = socket
        self.user = user
        self.home = ground.base / ("users-plugin" if user else "plugin")
        self.root = self.home / "store"
        self.home.mkdir()
        if user:
            ground.run("chown", "ordinary", str(self.home))
        self._process: subprocess.Popen[str] | None = None

    def start(self, *prefix: str, environment: Mapping[str, str] | None = None) -> None:
        """Start it, by the command *prefix* if one is given, and wait until it answers."""
        # A session of its own, so that it can be killed as a whole.
        script = f'echo $$ >{self.home}/pid; exec "$@" >>{self.home}/log 2>&1'
        plugin = [str(UNIONFS), "plugin", "volume", f"--socket={self.socket}"]
        self._process = self.ground.start(
            *("setsid", "sh", "-c", script, "sh", *prefix, *plugin, f"--root={self.root}"),
            user=self.user,
            environment=environment,
        )
        wait_for(lambda: "VolumeDriver" in self.ask("Plugin.Activate", status=None))

    def ask(self, call: str, status: int | None = 0, **fields: str) -> str:
        """Make a call as an engine would; the answer as it is."""
        words = (self.socket, f"/{call}", json.dumps(fields))
        return self.ground.run(sys.executable, "-c", _ASK, *words, status=status, cwd=REPOSITORY)

    def users(self, name: str) -> list[str]:
        """The ids that are counted for the volume *name*."""
        answer = json.loads(self.ask("VolumeDriver.Get", Name=name))
        found = answer["Volume"]["Status"]["Users"]
        assert isinstance(found, list)
        return found

    def names(self) -> list[str]:
        """The volumes that there are."""
        answer = json.loads(self.ask("VolumeDriver.List"))
        return [volume["Name"] for volume in answer["Volumes"]]

    def mounted(self) -> list[str]:
        """What is mounted of the store, below it."""
        targets = [fields[4] for fields in self.ground.mountinfo()]
        prefix = f"{self.root}/"
        return [target.removeprefix(prefix) for target in targets if target.startswith(prefix)]

    def unionfs(self, *arguments: str, **options: Any) -> str:
        """Run ``unionfs ARGUMENTS`` on the same store."""
        return self.ground.run(
            str(UNIONFS), *arguments, f"--root={self.root}", user=self.user, **options
        )

    def stop(self, number: str = "TERM") -> None:
        """End it, and the processes of its connections; daemons of mounts are none of these."""
        assert self._process is not None
        pid = (self.home / "pid").read_text().strip()
        self.ground.run("kill", f"-{number}", "--", f"-{pid}")
        self._process.communicate(timeout=20)
        self._process = None

    def restart(self, number: str = "TERM") -> None:
        """End it by a signal, and start it again."""
        self.stop(number)
        self.start()

    def close(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self.stop("KILL")

    def log(self) -> str:
        """All that it has said."""
        return (self.home / "log").read_text()


class Engine:
    """An engine, and the plugin that it has its volumes from."""

    def __init__(self, engine: Docker | Podman, plugin: PluginBeside) -> None:
        self.engine = engine
        self.plugin = plugin
        self.base: Path = engine.ground.base

    def __call__(self, *arguments: str, **options: Any) -> str:
        """Run ``docker ARGUMENTS``, or ``podman`` it is; what it wrote."""
        return self.engine(*arguments, **options)

    @property
    def said(self) -> str:
        """What the last command said on standard error."""
        return self.engine.said

    def create(self, name: str, **options: str) -> None:
        """Make a volume of the plugin's."""
        words = [f"--opt={key}={text}" for key, text in options.items()]
        self("volume", "create", "--driver=unionfs", *words, name)

    def sh(self, volume: str, script: str, **options: Any) -> str:
        """Run *script* in a container that has *volume*, as ``-v`` takes it."""
        return self("run", "--rm", "-v", volume, "base", "sh", "-c", script, **options)

    def begin(self, name: str, volume: str, script: str = "sleep 600") -> None:
        """Start a container in the background."""
        # Their first process takes no signals that it has no handler for.
        words = ("--detach", f"--name={name}", "--stop-timeout=1", "-v", volume)
        self("run", *words, "base", "sh", "-c", script)

    def end(self, *names: str) -> None:
        """Kill and remove containers."""
        patience = ("--time=0",) if isinstance(self.engine, Podman) else ()
        self("rm", "--force", *patience, *names)

    def clear(self) -> None:
        """Remove all containers and volumes, and see that nothing is left of these."""
        self.engine.clear()
        names = self("volume", "ls", "--quiet").split()
        if names:
            self("volume", "rm", *names)
        assert self.plugin.names() == []
        assert self.plugin.mounted() == []
        assert self.plugin.log() == ""
