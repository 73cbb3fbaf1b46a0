"""An image as a file, served by a process: ``qemu-storage-daemon`` and its FUSE export.

The process belongs to nobody's session, control group or mount namespace, and lives until it is
stopped. If it were the last in a namespace that has its own disk mounted, it could not be killed:
the kernel would unmount the disk in the middle of it, and wait for it to write what is left. And
what others unmount would be in use for as long as it lives.

It is known by a directory that has

    pid      its number; locked by it for as long as it lives
    export   where the image is mounted, in the process's own mount namespace
    qmp      the socket on which it takes commands (qemu-storage-daemon-qmp-ref(7))
    tag      what the loop device is known by, see `unionfs.driver.block.loop`
    device   the path of the loop device, before it is there

so that the whole may be renamed while it runs, and what is left after a reboot is known as dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from unionfs.driver import programs
from unionfs.driver.block import loop
from unionfs.errors import MountError, StoreError
from unionfs.filelocks import is_locked
from unionfs.fuse import mounting

DAEMON: Final = "qemu-storage-daemon"
#: The name of the export in the process.
EXPORT: Final = "export"
#: Seconds for a command, and for the end of the process.
_PATIENCE: Final = 60.0
#: What any process needs to see, and this one.
_NEEDED: Final = ("/dev/fuse", "/proc/self", "/sys", "/lib", "/lib64")
#: Where a process is moved, so that it ends with no service or session: cgroup v2, and v1's.
_ROOT_GROUPS: Final = ("", "systemd/", "unified/")


def start(run: str, nodes: list[Mapping[str, Any]], tag: str) -> str:
    """Serve the last of *nodes*, block nodes as QEMU takes them; return a loop device of it.

    *run* is the directory, which must not be there. Raises `ProgramError` with what the
    daemon says, ``OSError``; then nothing is left.
    """
    os.makedirs(run, mode=0o700)
    try:
        _write(run, "tag", f"{tag} {secrets.token_hex(8)}")
        _write(run, "export", "")
        read_only = bool(nodes[-1].get("read-only"))
        _launch(run, nodes, read_only=read_only)
        _leave_groups(_pid(run))
        path = _attach(run, read_only=read_only)
    except BaseException:
        stop(run, force=True)
        raise
    return path


def _launch(run: str, nodes: list[Mapping[str, Any]], *, read_only: bool) -> None:
    export = {
        "type": "fuse",
        "id": EXPORT,
        "node-name": nodes[-1]["node-name"],
        "mountpoint": os.path.join(run, "export"),
        "writable": not read_only,
        "growable": False,
        "allow-other": "off",
    }
    arguments = [word for node in nodes for word in ("--blockdev", json.dumps(node))]
    arguments += ["--export", json.dumps(export)]
    # A name relative to where it starts: the path of a socket may have 107 bytes at most.
    arguments += ["--chardev", "socket,id=commands,path=qmp,server=on,wait=off"]
    arguments += ["--monitor", "chardev=commands"]
    arguments += ["--daemonize", "--pidfile", os.path.join(run, "pid")]

    files = [str(node["filename"]) for node in nodes if "filename" in node]

    def launch() -> None:
        mounting.leave_namespace()
        _shed_mounts([run, shutil.which(DAEMON) or run, *files, *_NEEDED])
        programs.run([DAEMON, *arguments], place=run)

    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(launch).result()


def _shed_mounts(needed: Sequence[str]) -> None:
    """Take all mounts out of this thread's namespace but those that hold the *needed* paths.

    What lies on a disk of ours must not be there, and what others unmount is to be gone.
    """
    kept = [os.fsencode(os.path.realpath(path)) for path in needed]
    shed: set[bytes] = set()
    for entry in mounting.mounts():
        target = entry.target
        if any(_holds(target, path) for path in kept):
            continue
        if not any(one != target and _holds(one, target) for one in shed):
            with contextlib.suppress(MountError):
                mounting.unmount(target, lazy=True)
                shed.add(target)


def _holds(directory: bytes, path: bytes) -> bool:
    return (path + b"/").startswith(directory.rstrip(b"/") + b"/")


def _attach(run: str, *, read_only: bool) -> str:
    """Make the loop device of the export, which only the process sees."""
    export = f"/proc/{_pid(run)}/root{os.path.join(run, 'export')}"
    file = os.open(export, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        return loop.attach(file, _read(run, "tag"), lambda path: _write(run, "device", path))
    finally:
        os.close(file)


def _leave_groups(pid: int) -> None:
    """Move the process out of its maker's control group, where that can be done."""
    for group in _ROOT_GROUPS:
        # Not made where it is not: version 1 alone has a tmpfs there.
        path = f"/sys/fs/cgroup/{group}cgroup.procs"
        with contextlib.suppress(OSError), open(path, "r+", encoding="ascii") as file:
            file.write(str(pid))


def device(run: str) -> str | None:
    """Return the loop device of a process that lives, else ``None``."""
    try:
        path, tag = _read(run, "device"), _read(run, "tag")
    except FileNotFoundError:
        return None
    return path if loop.tag_of(path) == tag and _lives(run) else None


def stop(run: str, *, force: bool = False) -> None:
    """End the process and its loop device, or what is left of them; remove *run*.

    Raises `FailedPreconditionError` while the device is mounted, unless *force*.
    """
    try:
        tag = _read(run, "tag")
    except FileNotFoundError:
        tag = ""
    path, lives = _known_device(run, tag), _lives(run)
    with contextlib.ExitStack() as held:
        if path is not None:
            held.enter_context(loop.detaching(path, force=force or not lives))
        # It ends first: without its loop device it would do its last request again and again.
        if lives:
            _end(_pid(run))
        elif tag:
            _end_unborn(run)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(run)


def _known_device(run: str, tag: str) -> str | None:
    """Return the loop device that is this one's; a path may be another's by now."""
    try:
        path = _read(run, "device")
    except FileNotFoundError:
        return None
    return path if loop.tag_of(path) in {tag, loop.GONE} else None


def _lives(run: str) -> bool:
    """Say whether the process has its lock: numbers are used again, locks are not kept."""
    try:
        fd = os.open(os.path.join(run, "pid"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return is_locked(fd)
    finally:
        os.close(fd)


def _pid(run: str) -> int:
    return int(_read(run, "pid"))


def _end(pid: int) -> None:
    """Ask the process to end, which writes all that it has; wait for it."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(_PATIENCE * 1000):
            raise StoreError(f"{DAEMON} (process {pid}) does not end; its disk may hang")
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def _end_unborn(run: str) -> None:
    """Kill a process that was still starting when its maker died; it has written nothing."""
    export = os.path.join(run, "export").encode()
    while found := [pid for pid in filter(str.isdigit, os.listdir("/proc")) if _names(pid, export)]:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)


def _names(pid: str, path: bytes) -> bool:
    """Say whether *path* stands in the command line of a daemon; a dead one has none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read()
    except OSError:
        return False
    return words.startswith(DAEMON.encode() + b"\0") and b'"' + path + b'"' in words


def command(run: str, *commands: tuple[str, Mapping[str, Any]]) -> list[Any]:
    """Have the process do *commands*, each a name and its arguments; return their answers.

    Raises `StoreError` with what it says, and leaves out the rest.
    """
    with _monitor(run) as lines:
        answers = []
        for name, arguments in (("qmp_capabilities", {}), *commands):
            lines.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
            lines.flush()
            while "return" not in (answer := json.loads(lines.readline() or "{}")):
                if "event" not in answer:
                    said = answer.get("error", {}).get("desc", "it closed the connection")
                    raise StoreError(f"{DAEMON}: {name}: {said}")
            answers.append(answer["return"])
        return answers[1:]


@contextlib.contextmanager
def _monitor(run: str) -> Iterator[Any]:
    directory = os.open(run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_PATIENCE)
            sock.connect(f"/proc/self/fd/{directory}/qmp")
            with sock.makefile("rw", encoding="utf-8") as lines:
                lines.readline()  # its greeting
                yield lines
    finally:
        os.close(directory)


def _read(run: str, name: str) -> str:
    with open(os.path.join(run, name), encoding="utf-8") as file:
        return file.read().strip()


def _write(run: str, name: str, text: str) -> None:
    """Put *text* into a file of *run*, which has it whole or is not there."""
    path = os.path.join(run, name)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(path + ".new", path)
