"""``unionfs volume``: Docker's verbs for volumes, and what they print; and some of our own."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

from unionfs.cli import template, usage
from unionfs.cli.arguments import Arguments
from unionfs.cli.files import replacing
from unionfs.cli.output import complain, printable
from unionfs.cli.progress import ProgressLine
from unionfs.cli.store_arguments import given_driver, grammar, print_json
from unionfs.cli.verbs import Verb, run_verb
from unionfs.cli.volume_filters import Filters
from unionfs.errors import (
    ArchiveError,
    FailedPreconditionError,
    NotFoundError,
    UsageError,
    exit_status,
)
from unionfs.store import views
from unionfs.store.store import Store
from unionfs.store.volume import Volume
from unionfs.store.volume_garbage import cleanup
from unionfs.store.volumes import Volumes

_PLAIN: Final = grammar()
_CREATING: Final = grammar(valued={"o", "d", "label", "name"}, aliases={"opt": "o"})
_INSPECTING: Final = grammar(valued={"f"}, aliases={"format": "f"})
_LISTING: Final = grammar(
    flags={"q"}, valued={"f", "format"}, aliases={"quiet": "q", "filter": "f"}
)
_REMOVING: Final = grammar(flags={"f"}, aliases={"force": "f"})
_PRUNING: Final = grammar(flags={"a", "f"}, valued={"filter"}, aliases={"all": "a", "force": "f"})
_MOUNTING: Final = grammar(valued={"id", "o"}, aliases={"options": "o"})
_UNMOUNTING: Final = grammar(flags={"l"}, aliases={"lazy": "l"})
_ARCHIVING: Final = grammar(flags={"q"}, valued={"compression"}, aliases={"quiet": "q"})
_QUIET: Final = grammar(flags={"q"}, aliases={"quiet": "q"})

#: On which machines a volume is; Docker's other is "global".
_LOCAL: Final = "local"
_STANDARD: Final = "-"
_COMPRESSION: Final = {
    ".tar": "none",
    ".gz": "gzip",
    ".tgz": "gzip",
    ".zst": "zstd",
    ".tzst": "zstd",
}
_TABLE: Final = "table {{.Driver}}\t{{.Name}}"
_HEADINGS: Final = {
    "Availability": "AVAILABILITY",
    "CreatedAt": "CREATED AT",
    "Driver": "DRIVER",
    "Group": "GROUP",
    "Labels": "LABELS",
    "Links": "LINKS",
    "Mountpoint": "MOUNTPOINT",
    "Name": "VOLUME NAME",
    "Options": "OPTIONS",
    "Scope": "SCOPE",
    "Size": "SIZE",
    "Status": "STATUS",
}
#: Where one --opt has several, as mount options are often written.
_GLUED: Final = re.compile(r",(?=(?:o|device|type)=)")


def run(argv: list[str]) -> int:
    """Do what *argv*, the words after ``volume``, says."""
    return run_verb("volume", VERBS, usage.VOLUME, argv)


def _create(store: Store, arguments: Arguments) -> None:
    names = [*arguments.positionals, *arguments.values.get("name", ())]
    if len(names) > 1:
        raise UsageError(f"{names[1]}: one name too many")
    made = Volumes(store).create(
        names[0] if names else None,
        driver=given_driver(arguments),
        options=_options(arguments),
        labels=_labels(arguments),
    )
    if "json" in arguments.flags:
        print_json(_as_json(Volumes(store), made))
    else:
        print(printable(made.name))


def _options(arguments: Arguments) -> dict[str, str]:
    found = {}
    for given in arguments.values.get("o", ()):
        for text in _GLUED.split(given) if given.startswith("type=") else [given]:
            key, equals, value = text.partition("=")
            if not key or not equals:
                raise UsageError(f"--opt {given}: not KEY=VALUE")
            found[key] = value
    return found


def _labels(arguments: Arguments) -> dict[str, str]:
    """Return the labels given; as with Docker one without a value has an empty one."""
    found = {}
    for text in arguments.values.get("label", ()):
        key, _, value = text.partition("=")
        if not key:
            raise UsageError(f"--label {text}: has no name")
        found[key] = value
    return found


def _each(arguments: Arguments, do: Callable[[str], None]) -> int:
    """Do something with every name; what fails is told, and the others are done. The status."""
    status = 0
    for name in arguments.positionals:
        try:
            do(name)
        except Exception as error:
            failed, line = exit_status(error)
            if failed == 4:
                raise
            complain([line])
            status = max(status, failed)
    return status


def _inspect(store: Store, arguments: Arguments) -> int:
    volumes = Volumes(store)
    found: list[dict[str, Any]] = []
    status = _each(arguments, lambda name: found.append(_as_json(volumes, volumes.find(name))))
    form = arguments.last("f")
    if form is None or form == "json":
        print_json(found, 4)
    else:
        for line in template.lines(form, found, _HEADINGS):
            print(line)
    return status


def _as_json(volumes: Volumes, volume: Volume) -> dict[str, Any]:
    """Return what ``docker volume inspect`` tells of a volume, and what we know beside."""
    uses = volumes.uses(volume)
    return {
        "CreatedAt": volume.created_text,
        "Driver": volume.driver,
        "Labels": dict(volume.labels) or None,
        "Mountpoint": volumes.tree(volume).mountpoint,
        "Name": volume.name,
        "Options": dict(volume.options) or None,
        "Scope": _LOCAL,
        "Snapshot": volume.data or None,
        "UsageData": {"RefCount": len(uses), "Size": volumes.size(volume)},
        "Users": [{"ID": use.holder, "Target": use.target or None} for use in uses],
    }


def _list(store: Store, arguments: Arguments) -> None:
    volumes = Volumes(store)
    filters = Filters(arguments.values.get("f", ()))
    found = filters.chosen(volumes)
    if "json" in arguments.flags:
        print_json([_as_json(volumes, volume) for volume in found])
        return
    if "q" in arguments.flags:
        for volume in found:
            print(printable(volume.name))
        return
    form = arguments.last("format") or _TABLE
    rows = (_row(volumes, volume) for volume in found)
    for line in template.lines(_TABLE if form == "table" else form, rows, _HEADINGS):
        print(line)


def _row(volumes: Volumes, volume: Volume) -> dict[str, Any]:
    """Return the fields that ``docker volume ls --format`` has."""
    return {
        "Availability": "N/A",
        "CreatedAt": volume.created_text,
        "Driver": volume.driver,
        "Group": "N/A",
        "Label": lambda name: volume.labels.get(name, ""),
        "Labels": ",".join(f"{key}={text}" for key, text in sorted(volume.labels.items())),
        "Links": "N/A",
        "Mountpoint": volumes.tree(volume).mountpoint,
        "Name": volume.name,
        "Options": ",".join(f"{key}={text}" for key, text in sorted(volume.options.items())),
        "Scope": _LOCAL,
        "Size": "N/A",
        "Status": "N/A",
    }


def _remove(store: Store, arguments: Arguments) -> int:
    volumes = Volumes(store)

    def remove(name: str) -> None:
        try:
            volumes.remove(name)
        except NotFoundError:
            # With --force, as Docker has it, what is not there is no error.
            if "f" not in arguments.flags:
                raise
        print(printable(name))

    return _each(arguments, remove)


def _prune(store: Store, arguments: Arguments) -> int:
    volumes = Volumes(store)
    filters = Filters(arguments.values.get("filter", ()))
    used = volumes.in_use()
    names = [volume.name for volume in filters.chosen(volumes) if volume.name not in used]
    if names and "f" not in arguments.flags and not _agreed(names):
        complain(["volume prune has been cancelled"])
        return 1
    freed, gone = 0, []
    for name in names:
        # Somebody may have begun to use it, or removed it, while we asked.
        with contextlib.suppress(FailedPreconditionError, NotFoundError):
            freed += volumes.remove(name)
            gone.append(name)
    cleanup(store)
    if "json" in arguments.flags:
        print_json({"VolumesDeleted": gone, "SpaceReclaimed": freed})
        return 0
    if gone:
        print("Deleted Volumes:", *map(printable, gone), "", sep="\n")
    print(f"Total reclaimed space: {_decimal(freed)}")
    return 0


def _agreed(names: list[str]) -> bool:
    """Ask whether the volumes *names* are to go."""
    print("WARNING! This will remove all volumes that nobody uses:")
    for name in names:
        print(f"  {printable(name)}")
    print("Are you sure you want to continue? [y/N] ", end="", flush=True)
    answer = sys.stdin.readline() if sys.stdin is not None else ""
    if not answer.endswith("\n"):
        print()
    return answer.strip().lower() in ("y", "yes")


def _decimal(size: int) -> str:
    """Return *size* as Docker writes it: four digits, and units of a thousand."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000:
            return f"{amount:.4g}{unit}"
        amount /= 1000
    return f"{amount:.4g}PB"


def _mount(store: Store, arguments: Arguments) -> None:
    name, target = arguments.positionals
    Volumes(store).mount(name, target, arguments.last("id"), extra=arguments.values.get("o", ()))


def _umount(store: Store, arguments: Arguments) -> None:
    Volumes(store).unmount(arguments.positionals[0], lazy="l" in arguments.flags)


def _backup(store: Store, arguments: Arguments) -> None:
    # ruff: noqa: PLC0415 - all that is about archives is for these two alone
    from unionfs.store import backup as archives

    name, path = arguments.positionals
    volumes = Volumes(store)
    volumes.find(name)  # before a file is begun
    compression = arguments.last("compression") or _compression(path)
    with ProgressLine(quiet="q" in arguments.flags) as line, _output(path) as file:
        archives.backup(
            volumes,
            name,
            file.write,
            compression=compression,
            progress=lambda size: line(name, size),
            notice=lambda text: complain([text]),
        )


def _compression(path: str) -> str:
    if path == _STANDARD:
        return "none"
    for ending, name in _COMPRESSION.items():
        if path.lower().endswith(ending):
            return name
    known = ", ".join(_COMPRESSION)
    raise UsageError(f"{path}: end the name in one of {known}, or give --compression")


@contextlib.contextmanager
def _output(path: str) -> Iterator[BinaryIO]:
    if path != _STANDARD:
        with replacing(path) as file:
            yield file
        return
    if os.isatty(sys.stdout.fileno()):
        raise UsageError("an archive is nothing to be shown on a terminal")
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


def _restore(store: Store, arguments: Arguments) -> None:
    from unionfs.store import backup as archives

    path, name = arguments.positionals
    with contextlib.ExitStack() as stack:
        line = stack.enter_context(ProgressLine(quiet="q" in arguments.flags))
        file = sys.stdin.buffer
        if path != _STANDARD:
            file = stack.enter_context(open(path, "rb"))
        try:
            archives.restore(
                Volumes(store),
                name,
                file,
                progress=lambda size: line(name, size),
                notice=lambda text: complain([text]),
            )
        except ArchiveError as error:
            raise ArchiveError(f"{path}: {error}") from error


def _clone(store: Store, arguments: Arguments) -> None:
    name, new = arguments.positionals
    made = views.clone(Volumes(store), name, new)
    if "json" in arguments.flags:
        print_json(_as_json(Volumes(store), made))
    else:
        print(printable(made.name))


def _snapshot(store: Store, arguments: Arguments) -> None:
    name, *key = arguments.positionals
    made = views.snapshot(Volumes(store), name, key[0] if key else None)
    if "json" in arguments.flags:
        print_json({"key": made.key, "volume": name})
    else:
        print(printable(made.key))


def _cleanup(store: Store, arguments: Arguments) -> None:
    gone = cleanup(store)
    if "json" in arguments.flags:
        print_json(gone)
        return
    for key in gone:
        print(printable(key))


#: Each verb with what it takes; in the order that --help tells them.
VERBS: Final[dict[str, Verb]] = {
    "create": Verb(_create, _CREATING, 0, 1, founds=True),
    "inspect": Verb(_inspect, _INSPECTING, 1, -1),
    "ls": Verb(_list, _LISTING, 0, 0),
    "rm": Verb(_remove, _REMOVING, 1, -1, as_owner=True),
    "prune": Verb(_prune, _PRUNING, 0, 0, as_owner=True),
    "mount": Verb(_mount, _MOUNTING, 2, 2),
    "umount": Verb(_umount, _UNMOUNTING, 1, 1),
    "backup": Verb(_backup, _ARCHIVING, 2, 2, as_owner=True),
    "restore": Verb(_restore, _QUIET, 2, 2, as_owner=True, founds=True),
    "clone": Verb(_clone, _PLAIN, 2, 2, as_owner=True),
    "snapshot": Verb(_snapshot, _PLAIN, 1, 2, as_owner=True),
    "cleanup": Verb(_cleanup, _PLAIN, 0, 0, as_owner=True),
}
