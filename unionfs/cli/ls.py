"""``unionfs ls``: the mounted unions, what they are made of and whether they live."""

from __future__ import annotations

import json
import os
from typing import Any

from unionfs import registry
from unionfs.cli import usage
from unionfs.cli.arguments import Grammar, scan
from unionfs.cli.mount_command import asked_text
from unionfs.cli.output import print_table
from unionfs.errors import UsageError
from unionfs.fuse import mounting
from unionfs.options import MountOptions
from unionfs.optwords import parse_options

_GRAMMAR = Grammar(flags=frozenset({"json", "h", "V"}), aliases={"help": "h", "version": "V"})
_COLUMNS = ("target", "state", "pid", "session", "layers")


def run(argv: list[str]) -> int:
    """Print the list that *argv* asks for."""
    arguments = scan(argv, _GRAMMAR)
    if (text := asked_text(arguments, usage.LS)) is not None:
        print(text)
        return 0
    arguments.refuse_unknown()
    if arguments.positionals:
        raise UsageError(f"{arguments.positionals[0]}: ls takes no argument")
    rows = list_unions()
    if "json" in arguments.flags:
        print(json.dumps(rows, indent=2))
    elif rows:
        print_table(_COLUMNS, ([_text(row, column) for column in _COLUMNS] for row in rows))
    return 0


def list_unions() -> list[dict[str, Any]]:
    """Return a dictionary for each union: mounted here, or served for another place."""
    entries = mounting.mounts()
    rows = []
    for entry in entries:
        if entry.kind == mounting.FSTYPE:
            record = registry.find(entry)
            state = "unknown" if record is None else _state(record)
            rows.append(_row(os.fsdecode(entry.target), entry.device, state, record))
            rows[-1]["source"] = os.fsdecode(entry.source)
    elsewhere = registry.others(entry.device for entry in entries)
    return rows + [_row(one.target, one.device, "detached", one) for one in elsewhere]


def _state(record: registry.Record) -> str:
    return {True: "live", False: "dead", None: "unknown"}[registry.is_running(record)]


def _row(target: str, device: str, state: str, record: registry.Record | None) -> dict[str, Any]:
    options = MountOptions() if record is None else _options(record)

    def shown(path: bytes | None) -> str | None:
        return None if path is None else os.fsdecode(path)

    return {
        "target": target,
        "source": options.fsname,
        "state": state,
        "pid": None if record is None else record.pid,
        "session": None if record is None else record.session,
        "device": device,
        "lowerdirs": [os.fsdecode(path) for path in options.lowerdirs],
        "upperdir": shown(options.upperdir),
        "workdir": shown(options.workdir),
        "options": None if record is None else record.options,
    }


def _options(record: registry.Record) -> MountOptions:
    try:
        return parse_options([record.options], tolerant=True).options
    except UsageError:
        return MountOptions()  # written by another version; the others are listed as they are


def _text(row: dict[str, Any], column: str) -> str:
    if column == "layers":
        upper = [] if row["upperdir"] is None else [row["upperdir"]]
        value = ":".join([*upper, *row["lowerdirs"]])
    else:
        value = row[column]
    return str(value or "")
