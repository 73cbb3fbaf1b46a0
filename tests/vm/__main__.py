"""The command: `scripts/vm`, or `python -m tests.vm` as root."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.vm import cache, kernel, network, root, terminal
from tests.vm.errors import CannotError, MachineError
from tests.vm.machine import QEMU, Machine
from tests.vm.outlet import outlet

#: Exit statuses of ours, as env(1) and docker run have them: the machine could not be had or died.
_FAILED = 125
#: Seconds for a machine of which nothing is said.
_PATIENCE = 3600


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/vm",
        usage="%(prog)s [OPTION...] [--] COMMAND [ARGUMENT...]",
        description="Run COMMAND in a throw-away virtual machine with this checkout in it"
        f" ({root.CHECKOUT}, where it starts; unionfs is in PATH). Its output, errors and exit"
        " status are those of COMMAND; its input is /dev/null. Status 125: there was no machine.",
    )
    add = parser.add_argument
    kernels = " or ".join(kernel.SUITES)
    add(
        "--kernel",
        default=kernel.DEFAULT,
        metavar="KERNEL",
        help=f"{kernels} (Debian's), or a linux-image package (default {kernel.DEFAULT})",
    )
    add("--shell", action="store_true", help="a shell on this terminal, instead of COMMAND")
    add(
        "--disk",
        action="append",
        default=[],
        metavar="SIZE",
        help="one more disk (20G, say): /dev/vdb, the next /dev/vdc",
    )
    add(
        "--with",
        dest="brought",
        action="append",
        default=[],
        metavar="PATH",
        help="bring a copy of this file or directory: /with/NAME",
    )
    add(
        "--network",
        metavar="NAME/NUMBER",
        help="be machine 1 or 2 of a network of two: node1 and node2, which see each other",
    )
    add("--memory", type=int, default=1024, metavar="MIB", help="(default 1024)")
    add("--keep", action="store_true", help="its disks are there again for the next --keep")
    add("--machine", metavar="NAME", help="which of several that are kept; implies --keep")
    add("--discard", action="store_true", help="first throw away the kept one")
    add(
        "--crash-after",
        metavar="PATTERN",
        help="cut its power when the console (/dev/console) shows PATTERN, and exit with 0;"
        " implies --keep",
    )
    add(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="for all of it (default an hour, of a shell none)",
    )
    add("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.command[:1] == ["--"]:
        del given.command[0]
    if bool(given.command) == given.shell and not given.discard:
        parser.error("either COMMAND or --shell")
    if given.timeout is None and not given.shell:
        given.timeout = _PATIENCE
    return given


@contextlib.contextmanager
def _directory(given: argparse.Namespace) -> Iterator[Path]:
    """Give the directory of the machine's disks, and keep others from a kept one."""
    if not (given.keep or given.machine or given.crash_after):
        with tempfile.TemporaryDirectory(prefix="machine.", dir=cache.place()) as thrown_away:
            yield Path(thrown_away)
        return
    name = given.machine or "kept"
    if "/" in name or name.startswith("."):
        raise CannotError(f"{name}: not a name of a machine")
    path = cache.place() / "machines" / name
    path.mkdir(parents=True, exist_ok=True)
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if given.discard:
            for file in path.iterdir():
                file.unlink()
        yield path
        if not any(path.iterdir()):
            path.rmdir()
    except BlockingIOError as error:
        raise CannotError(f"{name}: the machine is running") from error
    finally:
        os.close(held)


def _run(given: argparse.Namespace) -> int:
    for program, package in ((QEMU, "qemu-system-x86"), ("qemu-img", "qemu-utils")):
        if shutil.which(program) is None:
            raise CannotError(f"{program} is not in PATH: install the package {package}")
    if given.shell and not sys.stdin.isatty():
        raise CannotError("--shell: there is no terminal")
    brought = {Path(os.path.abspath(word)).name: Path(word).resolve() for word in given.brought}
    for path in brought.values():
        if not path.exists():
            raise CannotError(f"--with {path}: there is no such file or directory")
    booted, image = kernel.find(given.kernel), root.find()
    with _directory(given) as directory, contextlib.ExitStack() as plugs:
        if not given.command and not given.shell:
            return 0  # it was only to be discarded
        machine = Machine(
            directory,
            booted,
            image,
            disks=given.disk,
            brought=brought,
            memory=given.memory,
            keep=bool(given.keep or given.machine or given.crash_after),
            end=plugs.enter_context(network.plugged(given.network)) if given.network else None,
        )
        if given.shell:
            cache.say("starting; the end of the shell is the machine's")
        with (
            terminal.lent() if given.shell else contextlib.nullcontext() as lent,
            outlet(1) as stdout,
            outlet(2) as stderr,
        ):
            return machine.run(
                given.command,
                stdout=stdout,
                stderr=stderr,
                terminal=lent,
                cut_at=given.crash_after.encode() if given.crash_after else None,
                seconds=given.timeout,
            )


def main() -> int:
    given = _arguments(sys.argv[1:])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return _run(given)
    except (CannotError, MachineError) as error:
        sys.stderr.write(f"scripts/vm: {error}\n")
        return _FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141


if __name__ == "__main__":
    sys.exit(main())
