"""What the kernel's scheduler tells of threads, and whether this process has a group of its own.

The weight of a thread counts inside of its task group, and groups share the CPUs as equals.
So a ``SCHED_IDLE`` thread starves beside others of its group, and only there. A process is
alone in its group after ``setsid`` where autogroup works, which is in the root of the cpu
controller, or as the one process of a cpu cgroup. Where that is not certain, the answer is no.
"""

from __future__ import annotations

import contextlib
import os


class RunDelay:
    """How long the calling thread, which makes this, was ready to run and had no CPU."""

    def __init__(self) -> None:
        self._file = -1
        # Not every kernel counts.
        with contextlib.suppress(OSError):
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._seen = self.total()

    def total(self) -> float:
        """Return the sum of the delays, in seconds; 0 where it is not counted."""
        if self._file < 0:
            return 0.0
        return int(os.pread(self._file, 64, 0).split()[1]) * 1e-9

    def grown(self) -> float:
        """Return how much was added since this was asked last."""
        before, self._seen = self._seen, self.total()
        return self._seen - before

    def close(self) -> None:
        """Give the descriptor back."""
        if self._file >= 0:
            os.close(self._file)


class LastCpu:
    """On which CPU a thread, of whatever process, runs or ran last."""

    def __init__(self) -> None:
        self._thread = self._file = -1

    def of(self, thread: int) -> int:
        """Return the CPU of *thread*, -1 if it cannot be known: it has ended, or is hidden."""
        try:
            if thread != self._thread:
                self.close()
                path = f"/proc/{thread}/task/{thread}/stat"
                self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._thread = thread
            # After the name, which may hold anything: field 39 of proc_pid_stat(5).
            return int(os.pread(self._file, 1024, 0).rpartition(b")")[2].split()[36])
        except OSError:
            return -1

    def close(self) -> None:
        """Give the descriptor back."""
        if self._file >= 0:
            os.close(self._file)
            self._thread = self._file = -1


def crowded() -> bool:
    """Whether more tasks want to run than there are CPUs."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as file:
            running = int(file.read(64).split()[3].partition(b"/")[0])
    except OSError:
        return True
    return running > (os.cpu_count() or 1)


def own_task_group(root: str = "") -> bool:
    """Whether this process is alone in its task group; *root* goes before /proc and /sys."""
    try:
        cgroup = _cpu_cgroup(root)
        if cgroup is None:
            return _leads_session() and _reads(f"{root}/proc/sys/kernel/sched_autogroup_enabled", 1)
        return _reads(f"{cgroup}/cgroup.procs", os.getpid()) and _reads(f"{cgroup}/cpu.idle", 0)
    except (OSError, ValueError):
        return False


def _leads_session() -> bool:
    # Others of the session are our children, or those of the program that we were before exec.
    return os.getsid(0) == os.getpid()


def _reads(path: str, number: int) -> bool:
    return _text(path).split() == [str(number)]


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _cpu_cgroup(root: str) -> str | None:
    """Return the directory of the cpu cgroup of this process, None for the controller's root.

    Raises ValueError where it is not known, as in a container that sees a part of the tree.
    """
    paths = {}
    for line in _text(f"{root}/proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        paths["cpu" if "cpu" in controllers.split(",") else number] = path
    if any(".." in path.split("/") for path in paths.values()):
        raise ValueError("outside of what is seen")
    if "cpu" in paths:
        # Version 1: each directory is a task group; only the true root has a release agent.
        mount = _mount_point(root, "cgroup", "cpu")
        if paths["cpu"] != "/":
            return mount + paths["cpu"]
        if not os.path.exists(f"{mount}/release_agent"):
            raise ValueError("part of the hierarchy is hidden")
        return None
    # Version 2: a directory without the controller belongs to the group of its parent; each
    # but the true root has events.
    mount = _mount_point(root, "cgroup2", None)
    cgroup = mount + paths["0"].rstrip("/")
    if os.path.exists(f"{cgroup}/cpu.weight"):
        return cgroup
    while cgroup != mount:
        cgroup = os.path.dirname(cgroup)
        if os.path.exists(f"{cgroup}/cpu.weight"):
            raise ValueError("in the group of a parent")
    if os.path.exists(f"{mount}/cgroup.events"):
        raise ValueError("part of the hierarchy is hidden")
    if not os.path.exists(f"{mount}/cgroup.procs"):
        raise ValueError("no cgroup file system there")
    return None


def _mount_point(root: str, kind: str, controller: str | None) -> str:
    for line in _text(f"{root}/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, (fstype, _, options) = left.split(), right.split(" ", 2)
        right_one = controller is None or controller in options.split(",")
        # Where else one may be mounted we do not look: it could be inside of our own mount.
        usual = fields[3] == "/" and fields[4].startswith("/sys/fs/cgroup")
        if fstype == kind and right_one and usual:
            return root + fields[4]
    raise ValueError(f"no {kind} file system is mounted")
