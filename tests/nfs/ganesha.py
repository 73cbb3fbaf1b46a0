"""nfs-ganesha serving directories in a network namespace of its own, and its clients."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from tests import system
from tests.mounts import REPOSITORY

#: Seconds for the server to answer its first request, and for one request.
START, PATIENCE = 20.0, 40.0
PORT, MOUNT_PORT = 20490, 20480

_GLOBAL = """
NFS_CORE_PARAM {{
    Protocols = 3, 4; NFS_Port = {port}; MNT_Port = {mount_port};
    Enable_NLM = false; Enable_RQUOTA = false; Plugins_Dir = "{plugins}";
}}
NFSV4 {{ Graceless = true; Only_Numeric_Owners = true; }}
"""
_EXPORT = """
EXPORT {{
    Export_Id = {number}; Path = "{path}"; Pseudo = "{name}"; Access_Type = RW; SecType = sys;
    Squash = {squash}; Anonymous_Uid = 65534; Anonymous_Gid = 65534;
    Filesystem_Id = {number}.7; FSAL {{ Name = VFS; }}
}}
"""
_PLUGINS = "/usr/lib/x86_64-linux-gnu/ganesha"


def missing() -> list[str]:
    """The programs and libraries that this machine lacks."""
    programs = [name for name in ("ganesha.nfsd", "rpcbind", "nsenter") if not shutil.which(name)]
    if not any(Path(_PLUGINS).glob("libfsalvfs*")):
        programs.append("nfs-ganesha-vfs")
    return programs


class Ganesha:
    """One server. Its network, and the files that it keeps, end with this object."""

    def __init__(self, base: Path) -> None:
        self.base = base
        base.mkdir()
        self.exports: dict[str, tuple[Path, str]] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._clients: list[Remote] = []
        self._network = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=system.die_with_parent,  # noqa: PLW1509 - this process has no threads
        )
        assert self._network.stdout is not None
        assert self._network.stdout.readline() == b"up\n"
        # They keep files in places of the machine's.
        self._private = [Path("/run"), Path("/var/lib/nfs")]
        for place in self._private:
            place.mkdir(exist_ok=True)
            system.mount("none", place, "tmpfs")
        for name in ("/run/ganesha", "/run/rpcbind", "/var/lib/nfs/ganesha"):
            Path(name).mkdir()
        self._rpcbind = self._popen(["rpcbind", "-f", "-w"], "rpcbind.log")

    def inside(self) -> list[str]:
        """What a command begins with that is to run in the server's network."""
        return ["nsenter", f"--net=/proc/{self._network.pid}/ns/net", "--"]

    def _popen(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        with open(self.base / log, "ab") as output:
            return subprocess.Popen(
                [*self.inside(), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=system.die_with_parent,  # noqa: PLW1509 - this process has no threads
            )

    def export(self, name: str, path: Path, squash: str = "No_Root_Squash") -> None:
        """Offer *path* as *name* at the next start."""
        self.exports[name] = path, squash

    def start(self) -> None:
        """Serve, and wait until the first export can be asked for."""
        text = _GLOBAL.format(port=PORT, mount_port=MOUNT_PORT, plugins=_PLUGINS)
        for number, (name, (path, squash)) in enumerate(self.exports.items(), start=1):
            text += _EXPORT.format(number=number, path=path, name=name, squash=squash)
        (self.base / "conf").write_text(text)
        files = ["-L", str(self.base / "log"), "-f", str(self.base / "conf")]
        files += ["-p", str(self.base / "pid")]
        self._server = self._popen(["ganesha.nfsd", "-F", *files], "ganesha.log")
        end = time.monotonic() + START
        path = next(iter(self.exports.values()))[0]
        while not self._answers(path):
            if time.monotonic() > end or self._server.poll() is not None:
                raise AssertionError(f"ganesha does not serve:\n{self.log()}")
            time.sleep(0.1)

    def _answers(self, path: Path) -> bool:
        url = f"nfs://127.0.0.1{path}?nfsport={PORT}&mountport={MOUNT_PORT}"
        command = [*self.inside(), "nfs-ls", url]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
        return done.returncode == 0

    def log(self) -> str:
        """What the server has said."""
        return (self.base / "log").read_text(errors="replace")[-4000:]

    def stop(self, *, kill: bool = False) -> None:
        """End the server, and only that."""
        if self._server is not None:
            (self._server.kill if kill else self._server.terminate)()
            self._server.wait(START)
            self._server = None

    def client(self, name: str, version: int, uid: int = 0) -> Remote:
        """A new client of the export *name*."""
        where = str(self.exports[name][0]) if version == 3 else name
        remote = Remote(self.inside(), where, version, uid)
        self._clients.append(remote)
        return remote

    def program(
        self, module: str, name: str, version: int, *arguments: str
    ) -> subprocess.Popen[bytes]:
        """Start *module*, a client of the export *name*."""
        export = str(self.exports[name][0]) if version == 3 else name
        where = {"port": PORT, "mount_port": MOUNT_PORT, "export": export, "version": version}
        return subprocess.Popen(
            [*self.inside(), sys.executable, "-m", module, json.dumps(where), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            preexec_fn=system.die_with_parent,  # noqa: PLW1509 - this process has no threads
        )

    def run(self, *command: str | Path, seconds: float = PATIENCE) -> bytes:
        """Run a client's command to its end; what it has said."""
        text = [str(part) for part in command]
        done = subprocess.run(
            [*self.inside(), *text], capture_output=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, (text, done.stderr.decode(errors="replace"))
        return done.stdout

    def url(self, name: str, path: str, version: int) -> str:
        """What the commands of libnfs-utils call a file of the export *name*."""
        where = str(self.exports[name][0]) if version == 3 else name
        return (
            f"nfs://127.0.0.1{where}/{path}?version={version}&nfsport={PORT}&mountport={MOUNT_PORT}"
        )

    def close(self) -> None:
        """End everything that was started."""
        for client in self._clients:
            client.end()
        self.stop(kill=True)
        for process in (self._rpcbind, self._network):
            process.kill()
            process.wait(START)
        for stream in (self._network.stdin, self._network.stdout):
            if stream is not None:
                stream.close()
        for place in reversed(self._private):
            system.umount(place, system.MNT_DETACH)


class Remote:
    """A `tests.nfs.libnfs.Client` in a process of its own: its methods by their names."""

    def __init__(self, inside: list[str], export: str, version: int, uid: int) -> None:
        arguments = {"port": PORT, "mount_port": MOUNT_PORT, "export": export}
        text = json.dumps({**arguments, "version": version, "uid": uid})
        self._process = subprocess.Popen(
            [*inside, sys.executable, "-m", "tests.nfs.libnfs", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            preexec_fn=system.die_with_parent,  # noqa: PLW1509 - this process has no threads
        )
        assert self._line() == b'"ready"\n', "the client could not mount"

    def _line(self) -> bytes:
        output: IO[bytes] | None = self._process.stdout
        assert output is not None
        return output.readline()

    def ask(self, name: str, *arguments: Any) -> None:
        """Send a request, whose answer is to be had from `answer`."""
        given = [one.decode("latin-1") if isinstance(one, bytes) else one for one in arguments]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *given]).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What became of the request; `OSError` if it failed."""
        line = self._line()
        assert line, "the client has ended"
        told = json.loads(line)
        if "errno" in told:
            raise OSError(told["errno"], told["said"])
        return told["result"]

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.ask(name, *arguments)
            result = self.answer()
            return result.encode("latin-1") if name in ("read", "get") else result

        return call

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait(START)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
