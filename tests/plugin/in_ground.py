"""The volume plugin beside an engine, in the engine's namespaces."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any, Final

from tests.container.runner import wait_for
from tests.engines.ground import Ground
from tests.engines.ours import UNIONFS

#: Where Docker finds it by its name.
SOCKET: Final = "/run/docker/plugins/unionfs.sock"


class PluginBeside:
    """``unionfs plugin volume`` in *ground*, with a store of its own."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.root = ground.base / "volumes"
        self._pid = ground.base / "plugin.pid"
        self._log = ground.base / "plugin.log"
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until there is a socket."""
        # A session of its own, so that it can be killed as a whole.
        script = f'echo $$ >{self._pid}; exec "$@" >>{self._log} 2>&1'
        plugin = [str(UNIONFS), "plugin", "volume", f"--root={self.root}"]
        self._process = self.ground.start("setsid", "sh", "-c", script, "sh", *plugin)
        wait_for(lambda: self.ground.run("test", "-S", SOCKET, status=None) == "" and self._is_up())

    def _is_up(self) -> bool:
        ask = ["curl", "-s", "--unix-socket", SOCKET, "-d", "", "http://plugin/Plugin.Activate"]
        return "VolumeDriver" in self.ground.run(*ask, status=None)

    def unionfs(self, *arguments: str, **options: Any) -> str:
        """Run ``unionfs ARGUMENTS`` on the same store."""
        return self.ground.run(str(UNIONFS), *arguments, f"--root={self.root}", **options)

    def stop(self, number: str = "TERM") -> None:
        """End it, and the processes of its connections; daemons of mounts are none of these."""
        assert self._process is not None
        self.ground.run("kill", f"-{number}", "--", f"-{self._pid.read_text().strip()}")
        self._process.communicate(timeout=20)
        self._process = None

    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text()

    def close(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            with contextlib.suppress(AssertionError):
                self.stop()
