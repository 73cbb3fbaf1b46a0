"""``unionfs snapshot``: the verbs of a storage driver, typed by a person."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import Any, Final

from unionfs.cli import usage
from unionfs.cli.arguments import Arguments
from unionfs.cli.output import print_table, printable
from unionfs.cli.store_arguments import grammar, pairs, print_json, size
from unionfs.cli.verbs import Verb, run_verb
from unionfs.driver.api import Info
from unionfs.sizes import readable
from unionfs.store.store import Store

_LABELLED: Final = grammar(valued={"label"})
_SIZED: Final = grammar(valued={"label", "size"})
_PLAIN: Final = grammar()
_MOUNTING: Final = grammar(valued={"o"}, aliases={"options": "o"})
_UNMOUNTING: Final = grammar(flags={"l"}, aliases={"lazy": "l"})
_EMPTY_PLACE: Final = "TARGET"


def run(argv: list[str]) -> int:
    """Do what *argv*, the words after ``snapshot``, says."""
    return run_verb("snapshot", VERBS, usage.SNAPSHOT, argv)


def _prepare(store: Store, arguments: Arguments) -> None:
    key, *parent = arguments.positionals
    limit = arguments.last("size")
    info = store.driver.prepare(
        key,
        _parent(store, parent[0]) if parent else "",
        labels=_labels(arguments),
        size=None if limit is None else size(limit, "--size"),
    )
    _print_made(info, arguments)


def _view(store: Store, arguments: Arguments) -> None:
    key, parent = arguments.positionals
    made = store.driver.view(key, _parent(store, parent), labels=_labels(arguments))
    _print_made(made, arguments)


def _commit(store: Store, arguments: Arguments) -> None:
    name, key = arguments.positionals
    labels = _labels(arguments) if "label" in arguments.values else None
    _print_made(store.commit(name, key, labels), arguments)


def _capture(store: Store, arguments: Arguments) -> None:
    name, key = arguments.positionals
    labels = _labels(arguments) if "label" in arguments.values else None
    _print_made(store.capture(name, key, labels), arguments)


def _mount(store: Store, arguments: Arguments) -> None:
    key, target = arguments.positionals
    store.mount(key, target, extra=arguments.values.get("o", ()))


def _umount(store: Store, arguments: Arguments) -> None:
    store.umount(arguments.positionals[0], lazy="l" in arguments.flags)


def _mounts(store: Store, arguments: Arguments) -> None:
    key, *target = arguments.positionals
    mounts = store.driver.mounts(key)
    if "json" in arguments.flags:
        print_json([one._asdict() for one in mounts])
        return
    for one in mounts:
        words = ["mount", "-t", one.type, "-o", ",".join(one.options), one.source]
        print(printable(" ".join(map(_quoted, [*words, *(target or [_EMPTY_PLACE])]))))


def _quoted(word: str) -> str:
    import shlex  # noqa: PLC0415 - for this verb alone

    return shlex.quote(word)


def _remove(store: Store, arguments: Arguments) -> None:
    for key in arguments.positionals:
        store.remove(key)


def _release(store: Store, arguments: Arguments) -> None:
    for key in arguments.positionals:
        store.driver.release(key)


def _list(store: Store, arguments: Arguments) -> None:
    found = list(store.driver.walk())
    if "json" in arguments.flags:
        print_json([_as_json(info) for info in found])
    elif found:
        rows = ([one.key, one.parent, one.kind.value, _date(one.created)] for one in found)
        print_table(("key", "parent", "kind", "created"), rows)


def _info(store: Store, arguments: Arguments) -> None:
    found = [_as_json(store.driver.stat(key)) for key in arguments.positionals]
    if "json" in arguments.flags:
        print_json(found)
        return
    for one in found:
        labels = one.pop("labels")
        lines = [*one.items(), *((f"label {name}", text) for name, text in labels.items())]
        for name, value in lines:
            print(printable(f"{name}: {'-' if value in (None, '') else value}"))


def _usage(store: Store, arguments: Arguments) -> None:
    keys = arguments.positionals or [info.key for info in store.driver.walk()]
    found = [(key, store.driver.usage(key)) for key in keys]
    if "json" in arguments.flags:
        print_json([{"key": key, **used._asdict()} for key, used in found])
    elif found:
        rows = ([key, readable(used.size), str(used.inodes)] for key, used in found)
        print_table(("key", "size", "inodes"), rows)


def _diff(store: Store, arguments: Arguments) -> None:
    from unionfs.store.compare import snapshot_changes  # noqa: PLC0415 - for this verb alone

    found = snapshot_changes(store, arguments.positionals[0])
    if "json" in arguments.flags:
        print_json([{"kind": one.kind, "path": os.fsdecode(one.path)} for one in found])
        return
    output = sys.stdout.buffer
    for one in found:
        output.write(b"%s %s\n" % (one.kind.encode(), one.path))
    output.flush()


def _label(store: Store, arguments: Arguments) -> None:
    key, *texts = arguments.positionals
    labels = {name: value or None for name, value in pairs(texts, "label")}
    _print_made(store.driver.update(key, labels), arguments)


def _cleanup(store: Store, arguments: Arguments) -> None:
    from unionfs.container.run import clean  # noqa: PLC0415 - for this verb alone

    removed = [*store.remove_left_views(), *clean(store), *store.driver.cleanup()]
    if "json" in arguments.flags:
        print_json(removed)
        return
    for path in removed:
        print(printable(path))


def _parent(store: Store, name: str) -> str:
    from unionfs.store.images import Images  # noqa: PLC0415 - for two verbs alone

    return Images(store).parent(name)


def _labels(arguments: Arguments) -> dict[str, str]:
    return dict(pairs(arguments.values.get("label", ()), "--label"))


def _print_made(info: Info, arguments: Arguments) -> None:
    if "json" in arguments.flags:
        print_json(_as_json(info))


def _as_json(info: Info) -> dict[str, Any]:
    return {
        **info._asdict(),
        "kind": info.kind.value,
        "labels": dict(info.labels),
        "created": _date(info.created),
        "updated": _date(info.updated),
    }


def _date(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="seconds")


#: Each verb with what it takes; in the order that --help tells them.
VERBS: Final[dict[str, Verb]] = {
    "prepare": Verb(_prepare, _SIZED, 1, 2, founds=True),
    "view": Verb(_view, _LABELLED, 2, 2),
    "commit": Verb(_commit, _LABELLED, 2, 2, as_owner=True),
    "capture": Verb(_capture, _LABELLED, 2, 2, as_owner=True),
    "mount": Verb(_mount, _MOUNTING, 2, 2),
    "umount": Verb(_umount, _UNMOUNTING, 1, 1),
    "mounts": Verb(_mounts, _PLAIN, 1, 2),
    "release": Verb(_release, _PLAIN, 1, -1),
    "rm": Verb(_remove, _PLAIN, 1, -1, as_owner=True),
    "ls": Verb(_list, _PLAIN, 0, 0),
    "info": Verb(_info, _PLAIN, 1, -1),
    "usage": Verb(_usage, _PLAIN, 0, -1, as_owner=True),
    "diff": Verb(_diff, _PLAIN, 1, 1, as_owner=True),
    "label": Verb(_label, _PLAIN, 2, -1),
    "cleanup": Verb(_cleanup, _PLAIN, 0, 0, as_owner=True),
}
