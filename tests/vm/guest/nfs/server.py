"""The kernel's NFS server as /etc/exports and exportfs(8) have it, and mounts of its client."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests import system

EXPORTS = Path("/etc/exports")
#: How docs/nfs.md says that a union is exported.
OPTIONS = "rw,fsid=77,no_subtree_check"
#: Seconds for one program.
PATIENCE = 120
#: Seconds in which clients may claim again what they had open; the least that nfsd takes.
GRACE = 10


def run(*words: str | Path) -> str:
    """Run a program to its end; what it has said."""
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}"
    return done.stdout


class Daemons:
    """rpcbind, mountd, statd (locks of version 3) and nfsdcld (clients of version 4)."""

    def __init__(self) -> None:
        Path("/var/lib/nfs/nfsdcld").mkdir(parents=True, exist_ok=True)
        self._all: list[subprocess.Popen[bytes]] = []
        self._start("rpcbind", "-f", "-w")
        self._wait_for("rpcbind")
        self._start("rpc.statd", "--foreground")
        self._start("rpc.mountd", "--foreground")
        self._start("nfsdcld", "--foreground")
        self._wait_for("mountd")
        self._wait_for("status")

    def _start(self, *command: str) -> None:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=system.die_with_parent,  # noqa: PLW1509 - this process has no threads
        )
        self._all.append(process)

    def _wait_for(self, program: str) -> None:
        """Wait until rpcbind knows *program* (a name of /etc/rpc)."""
        names = {"rpcbind": "100000", "mountd": "100005", "status": "100024"}
        end = time.monotonic() + PATIENCE
        while True:
            done = subprocess.run(
                ["rpcinfo", "-p"], capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            if names[program] in done.stdout:
                return
            assert time.monotonic() < end, f"{program} does not answer: {done.stderr}"
            time.sleep(0.2)

    def end(self) -> None:
        for process in self._all:
            process.kill()
            process.wait(PATIENCE)


class Nfsd:
    """The server's threads and exports, and what the client has mounted of them."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._mounted: list[Path] = []
        self._exports: dict[Path, str] = {}

    def start(self) -> None:
        run("rpc.nfsd", "--grace-time", str(GRACE), "--lease-time", str(GRACE), "2")

    def stop(self) -> None:
        """Answer nobody any more, and let go of all files."""
        run("rpc.nfsd", "0")

    def export(self, path: Path, options: str = OPTIONS) -> None:
        """Add *path* to /etc/exports."""
        self._exports[path] = f"{options},no_root_squash"
        self._write()

    def withdraw(self, path: Path) -> None:
        """Take *path* out of /etc/exports, and out of what the server remembers."""
        del self._exports[path]
        self._write()
        self.forget()

    def forget(self) -> None:
        """Let the server ask for each export again, and close the files that it keeps open."""
        run("exportfs", "-f")

    def _write(self) -> None:
        lines = (f"{path} *({options})\n" for path, options in self._exports.items())
        EXPORTS.write_text("".join(lines))
        run("exportfs", "-ra")

    def mount(self, path: Path, version: str, *options: str, host: str = "127.0.0.1") -> Path:
        """Mount the export *path* of *host* by the kernel's client; where."""
        target = self._base / f"client{len(self._mounted)}"
        target.mkdir()
        words = ",".join((f"vers={version}", *options))
        run("mount", "-t", "nfs", "-o", words, f"{host}:{path}", target)
        self._mounted.append(target)
        return target

    def unmount(self, target: Path) -> None:
        self._mounted.remove(target)
        run("umount", target)

    def end(self) -> None:
        """Unmount the client's mounts, then take all exports back."""
        for target in reversed(self._mounted):
            run("umount", "-f", "-l", target)
        self._exports.clear()
        self._write()
        self.forget()
        self.stop()
