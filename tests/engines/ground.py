"""Where an engine runs: namespaces, cgroups and a directory of its own, and nothing on the host.

A *keeper* makes them and waits. When its input ends, because the tests have or because their
process was killed, it kills what runs there and removes the rest. Run as a program this file is
the keeper.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]

#: Seconds for one command, if it does not say.
PATIENCE: Final = 60.0

#: The ordinary user of every ground, and the subordinate ids: `containers` are those that Podman
#: gives away for root's ``--userns=auto``.
USER: Final = 5000
USERS: Final = f"ordinary:x:{USER}:{USER}::{{home}}:/bin/sh\n"
GROUPS: Final = f"ordinary:x:{USER}:\n"
SUBORDINATE: Final = "ordinary:100000:65536\ncontainers:1000000:1000000\n"

#: Run by process 1 of the namespaces before it becomes one that only reaps.
#: `unshare --mount-proc` has made /proc. Engines keep locks, sockets and records in /run and
#: /dev/shm; ordinary users need the devices, which are root's in some virtual machines.
PREPARE: Final = r"""
set -e  # $1 the ground's directory, $2 the user, $3 the repository, $4 what hides it
ip link set lo up
mount -t tmpfs -o mode=755 none /run
exec 4<"$1" # it may lie in there
mount -t tmpfs -o mode=1777 none /dev/shm
case $1 in /dev/shm/*) mkdir -p "$1" && mount --no-canonicalize --bind /proc/self/fd/4 "$1" ;; esac
mkdir -p /run/lock /run/user/$2
chown $2:$2 /run/user/$2
hierarchies=$(awk '$3 ~ /^cgroup2?$/ {print $2 ":" $3 ":" $4}' /proc/mounts)
umount -R /sys/fs/cgroup
case $hierarchies in
/sys/fs/cgroup:*) ;; # version 2 alone
*) mount -t tmpfs -o mode=755 none /sys/fs/cgroup ;;
esac
for hierarchy in $hierarchies; do
  place=${hierarchy%%:*} kind=${hierarchy#*:} options=${hierarchy##*:}
  mkdir -p "$place"
  options=$(echo "$options" | sed 's/^rw,//; s/relatime,\{0,1\}//; s/^name=/none,name=/')
  mount -t "${kind%%:*}" ${options:+-o "$options"} none "$place"
done
for file in etc/passwd etc/group etc/subuid etc/subgid dev/fuse dev/net/tun; do
  mount --bind "$1/host/$file" "/$file"
done
# The program may stand in somebody's home: where nobody else may pass, only it is left.
if [ -n "$4" ]; then
  exec 3<"$3"
  mount -t tmpfs -o mode=755 none "$4"
  mkdir -p "$3"
  mount --no-canonicalize --bind /proc/self/fd/3 "$3"
fi
exec tini -- sleep infinity
"""


class Ground:
    """The tests' end of it: runs commands there. *parent* is where its directory is to be."""

    def __init__(self, parent: Path | None = None) -> None:
        place = parent or os.environ.get("UNIONFS_TEST_DIR", "/var/tmp")
        #: A directory on a disk, the same inside and outside.
        self.base = Path(tempfile.mkdtemp(prefix="unionfs-engine-", dir=place))
        self.base.chmod(0o755)
        #: Of the last command: what it said on standard error, and its exit status.
        self.said = ""
        self.status = 0
        self._keeper = subprocess.Popen(
            [sys.executable, "-S", __file__, str(self.base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is not for it
        )
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        assert line, "the namespaces could not be made: see above"
        #: Process 1 of the namespaces, as the host numbers it.
        self.pid = int(line)

    def command(
        self,
        argv: Sequence[str],
        *,
        user: bool = False,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> list[str]:
        """What runs *argv* in the namespaces, if asked as their ordinary user."""
        enter = ["nsenter", "--target", str(self.pid)]
        enter += ["--mount", "--pid", "--net", "--ipc", "--cgroup", "--"]
        become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
        settings = [f"{name}={value}" for name, value in (environment or {}).items()]
        inside = ["env", "-C", str(cwd or self.base), *settings, *argv]
        return [*enter, *(become if user else ()), *inside]

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """Start *argv* there: *options* are those of `command`, others go to Popen."""
        ours = ("user", "environment", "cwd")
        inside = {name: options.pop(name) for name in ours if name in options}
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return subprocess.Popen(
            self.command(argv, **inside),
            text=True,
            start_new_session=True,
            preexec_fn=lambda: _join(self.base.name),  # noqa: PLW1509 - no threads here
            **options,
        )

    def run(
        self,
        *argv: str,
        status: int | None = 0,
        typed: str | None = None,
        seconds: float = PATIENCE,
        **options: Any,
    ) -> str:
        """Run *argv* to its end, with *typed* as standard input; what it wrote.

        It must end with *status*, unless that is None. *options* are those of `start`.
        """
        if typed is not None:
            options["stdin"] = subprocess.PIPE
        with self.start(*argv, **options) as process:
            try:
                out, self.said = process.communicate(typed, timeout=seconds)
            except BaseException:  # the alarm of the test too
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        self.status = process.returncode
        assert status in (None, self.status), f"{' '.join(argv)}: {self.status}\n{out}\n{self.said}"
        return out

    def mountinfo(self) -> list[list[str]]:
        """The mounts there, each as the fields of its line."""
        text = Path(f"/proc/{self.pid}/mountinfo").read_text(errors="surrogateescape")
        return [line.split() for line in text.splitlines()]

    def close(self) -> None:
        """End all that runs there, and remove everything."""
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        status = self._keeper.wait(60)
        self._keeper.stdout.close()
        assert status == 0, "the ground could not be removed: see above"


def hierarchies() -> list[Path]:
    """Where cgroups are made: in each hierarchy of version 1, or in the one of version 2."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(place) for _, place, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]


def _join(name: str) -> None:
    """Move the calling process to the cgroups of the ground *name*."""
    for hierarchy in hierarchies():
        (hierarchy / name / "cgroup.procs").write_text("0")


def _make_cgroups(name: str) -> None:
    for hierarchy in hierarchies():
        (hierarchy / name).mkdir()
        # An empty set of CPUs takes no process.
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (hierarchy / setting).exists():
                (hierarchy / name / setting).write_text((hierarchy / setting).read_text())


def _remove_cgroups(name: str) -> None:
    """Remove them, the innermost first; processes that were killed leave in a moment."""
    end = time.monotonic() + 10
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy / name, topdown=False):
            while True:
                try:
                    os.rmdir(directory)
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise
                    _kill_all(Path(directory))
                    time.sleep(0.02)


def _kill_all(cgroup: Path) -> None:
    for pid in (cgroup / "cgroup.procs").read_text().split():
        if pid != "0":  # one that is about to be gone has no number any more
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _processes(cgroup: Path) -> list[str]:
    with contextlib.suppress(OSError):  # it is gone
        return (cgroup / "cgroup.procs").read_text().split()
    return []


def _disks(name: str) -> set[str]:
    """The loop devices that processes of the ground *name* see mounted."""
    numbers: set[str] = set()
    for directory, _, _ in os.walk(hierarchies()[0] / name):
        for pid in _processes(Path(directory)):
            with contextlib.suppress(OSError):  # it has ended
                mounts = Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines()
                numbers.update(line.split()[2].decode() for line in mounts)
    links = [f"/sys/dev/block/{number}" for number in numbers if number.startswith("7:")]
    return {f"/dev/{os.path.basename(os.path.realpath(link))}" for link in links}


def _give_back(disks: set[str]) -> None:
    """Let loop devices go with their last mount."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        for disk in disks:
            subprocess.run(["losetup", "--detach", disk], check=False, timeout=10)


def _make_host_files(base: Path) -> None:
    """What is shown in place of the host's: more users, and devices that are everyone's."""
    added = {
        "etc/passwd": USERS.format(home=base / "home"),
        "etc/group": GROUPS,
        "etc/subuid": SUBORDINATE,
        "etc/subgid": SUBORDINATE,
    }
    for name, lines in added.items():
        place, original = base / "host" / name, Path("/", name)
        place.parent.mkdir(parents=True, exist_ok=True)
        sub = "sub" in name  # the host's ranges could overlap with ours
        place.write_text(lines if sub or not original.exists() else original.read_text() + lines)
        original.touch()  # to be mounted over
    for name in ("dev/fuse", "dev/net/tun"):
        place = base / "host" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(place, 0o020666, os.stat(Path("/", name)).st_rdev)
        place.chmod(0o666)
    for name in ("home", "tmp"):
        (base / name).mkdir()
        os.chown(base / name, USER, USER)
    (base / "tmp").chmod(0o1777)


def _hidden() -> str:
    """The outermost directory on the way to the repository that only its owner may pass."""
    ways = [*reversed(REPOSITORY.parents), REPOSITORY]
    return next((str(way) for way in ways if not way.stat().st_mode & 0o001), "")


def _keep(base: Path) -> None:
    _make_cgroups(base.name)
    try:
        _make_host_files(base)
        command = ["unshare", "--net", "--mount", "--pid", "--ipc", "--cgroup", "--fork"]
        command += ["--kill-child", "--mount-proc"]
        inside = subprocess.Popen(
            [*command, "sh", "-c", PREPARE, "sh", str(base), str(USER), str(REPOSITORY), _hidden()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: _join(base.name),  # noqa: PLW1509 - no threads here
        )
        before = None
        try:
            first = _first_process(inside)
            before = _disks(base.name)  # the host's
            sys.stdout.write(f"{first}\n")
            sys.stdout.flush()
            sys.stdin.read()
        finally:
            if before is not None:
                _give_back(_disks(base.name) - before)
            inside.kill()
            inside.wait()
    finally:
        _remove_cgroups(base.name)
        shutil.rmtree(base)


def _first_process(unshare: subprocess.Popen[bytes]) -> int:
    """Process 1 of the new namespaces, when it has prepared them and only reaps."""
    end = time.monotonic() + 20
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
    while time.monotonic() < end and unshare.poll() is None:
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text() == "tini\n":
                    return int(child)
        time.sleep(0.01)
    sys.exit("the namespaces of the engine could not be made")


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
