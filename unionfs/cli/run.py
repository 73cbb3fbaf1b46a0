"""``unionfs run``: a command in a root of its own, over a snapshot or an image."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Final

from unionfs import daemon
from unionfs.cli import usage
from unionfs.cli.arguments import Arguments, scan
from unionfs.cli.mount_command import asked_text
from unionfs.cli.output import complain
from unionfs.cli.store_arguments import chosen_root, grammar, open_store
from unionfs.container.init import FAILED
from unionfs.container.records import Record
from unionfs.container.run import Streams
from unionfs.container.run import run as run_container
from unionfs.container.spec import (
    Defaults,
    Place,
    Spec,
    check_name,
    command,
    defaults,
    environment,
    parse_mount,
    parse_tmpfs,
    parse_volume,
    random_name,
)
from unionfs.errors import NotFoundError, UnionError, UsageError, exit_status
from unionfs.store.images import Images
from unionfs.store.store import Store

_GRAMMAR: Final = grammar(
    flags={"rm", "i", "t", "d", "read-only"},
    valued={"name", "v", "tmpfs", "mount", "e", "w", "u", "entrypoint", "hostname"},
    aliases={
        "interactive": "i",
        "tty": "t",
        "detach": "d",
        "volume": "v",
        "env": "e",
        "workdir": "w",
        "user": "u",
    },
)
#: HOST_NAME_MAX of the kernel.
_HOSTNAME_LIMIT: Final = 64


def run(argv: list[str]) -> int:
    """Run what *argv* says, and return the exit status of the command, or of its failed start."""
    try:
        arguments = scan(argv, _GRAMMAR, leading=True)
        if (text := asked_text(arguments, usage.RUN)) is not None:
            print(text)
            return 0
        arguments.refuse_unknown()
        return _run(arguments)
    except (UnionError, OSError) as error:
        status, line = exit_status(error)
        complain([line])
        return max(status, FAILED)


def _run(arguments: Arguments) -> int:
    if not arguments.positionals:
        raise UsageError("IMAGE is missing; see unionfs run --help")
    name = arguments.last("name")
    name = random_name() if name is None else check_name(name)
    daemon.fill_standard_descriptors()
    # Before this user has another number.
    arguments.values["root"] = [chosen_root(arguments)]
    spec = _spec(arguments, name)
    if os.geteuid() != 0:
        from unionfs.container.users import become_root  # noqa: PLC0415 - not for root

        become_root()
    if "d" not in arguments.flags:
        return _carry_out(arguments, name, spec, lambda: None)

    def work(ready: daemon.Ready) -> None:
        _carry_out(arguments, name, spec, ready)

    daemon.start(work)
    print(name)
    return 0


def _carry_out(arguments: Arguments, name: str, spec: Spec, started: Callable[[], None]) -> int:
    def open_streams(record: Record) -> Streams:
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if "d" not in arguments.flags:
            return Streams(0 if spec.interactive else null, 1, 2)
        log = os.open(record.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return Streams(null, log, log)

    with open_store(arguments, founds=False) as store:
        parent, image = _image(store, arguments.positionals[0])
        return run_container(
            store,
            name,
            parent,
            _with_defaults(spec, image, arguments),
            ephemeral="rm" in arguments.flags,
            open_streams=open_streams,
            started=started,
        )


def _image(store: Store, name: str) -> tuple[str, Defaults]:
    """Return the snapshot that *name* means, and what it says of commands. `NotFoundError`."""
    images = Images(store)
    with contextlib.suppress(NotFoundError):
        return store.driver.stat(name).key, Defaults()
    image = images.find(name)
    return images.parent(name), defaults(image.settings())


def _spec(arguments: Arguments, name: str) -> Spec:
    """Return what is asked for, as far as the image has no say in it. Raises `UsageError`."""
    hostname = arguments.last("hostname") or name[:_HOSTNAME_LIMIT]
    if len(os.fsencode(hostname)) > _HOSTNAME_LIMIT:
        raise UsageError(f"--hostname {hostname}: longer than {_HOSTNAME_LIMIT} bytes")
    if " " in hostname or not hostname.isprintable():
        raise UsageError(f"--hostname {hostname}: blanks are not for names of hosts")
    workdir = arguments.last("w") or "/"
    if not os.path.isabs(workdir):
        raise UsageError(f"-w {workdir}: not an absolute path")
    spec = Spec(
        command=(),
        environment={},
        hostname=hostname,
        places=tuple(_places(arguments)),
        read_only="read-only" in arguments.flags,
        terminal="t" in arguments.flags,
        interactive="i" in arguments.flags and "d" not in arguments.flags,
    )
    if spec.terminal and spec.interactive and not os.isatty(0):
        raise UsageError("-t with -i: standard input is not a terminal; leave -t out")
    return spec


def _with_defaults(spec: Spec, image: Defaults, arguments: Arguments) -> Spec:
    given = arguments.values.get("e", ())
    return spec._replace(
        command=command(image, arguments.last("entrypoint"), arguments.positionals[1:]),
        environment=environment(image, given, spec.hostname, terminal=spec.terminal),
        workdir=arguments.last("w") or image.workdir,
        user=arguments.last("u") or image.user,
    )


def _places(arguments: Arguments) -> Iterator[Place]:
    readers = {"v": parse_volume, "tmpfs": parse_tmpfs, "mount": parse_mount}
    taken = set()
    for option, read in readers.items():
        for text in arguments.values.get(option, ()):
            place = read(text)
            if place.target in taken:
                raise UsageError(f"{place.target}: two things to mount there")
            taken.add(place.target)
            yield place
