"""What all commands of the store have in common: which store, which driver, how it prints."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from unionfs import sizes
from unionfs.cli.arguments import Arguments, Grammar
from unionfs.errors import NotFoundError, UnsupportedError, UsageError
from unionfs.store.store import DEFAULT_DRIVER, Store, default_root

FLAGS: Final = frozenset({"json", "h", "V"})
VALUED: Final = frozenset({"root", "driver", "storage-opt"})
ALIASES: Final = {"help": "h", "version": "V"}


def grammar(
    flags: Iterable[str] = (),
    valued: Iterable[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> Grammar:
    """Return the grammar of a command with these *flags* and options beside the common ones."""
    return Grammar(FLAGS.union(flags), VALUED.union(valued), {**ALIASES, **(aliases or {})})


def chosen_root(arguments: Arguments, apart: str = "") -> str:
    """Return the directory of the store that *arguments* and the environment name.

    What has a store *apart* from the others' has that behind the name of the default one, and
    does not look at the environment.
    """
    named = arguments.last("root") or ("" if apart else os.environ.get("UNIONFS_ROOT"))
    return named or default_root() + apart


@contextlib.contextmanager
def open_store(
    arguments: Arguments, *, as_owner: bool = False, founds: bool, apart: str = ""
) -> Iterator[Store]:
    """Open the store that *arguments* and the environment name. Raises `StoreError`.

    An ordinary user whose subordinate users have files in it may read and change these only
    *as_owner*: as root of a user namespace, if he can be that. A directory that --root names is
    made a store only by what *founds* one: others would answer for one that was mistyped.
    """
    root = chosen_root(arguments, apart)
    if arguments.last("root") and not founds:
        _require_store(root)
    driver = given_driver(arguments) or os.environ.get("UNIONFS_DRIVER") or DEFAULT_DRIVER
    options = dict(pairs(arguments.values.get("storage-opt", ()), "--storage-opt"))
    if as_owner and os.geteuid() != 0:
        with contextlib.closing(Store.open(root, driver, options)) as store:
            store.uses.forget_dead()  # mounts are seen from out here only
        _become_owner()
    with contextlib.closing(Store.open(root, driver, options)) as store:
        yield store


def _require_store(root: str) -> None:
    try:
        os.stat(os.path.join(root, "store.db"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{root}: no store is here") from error
    except OSError:
        pass  # to open it says why


def _become_owner() -> None:
    from unionfs.container.users import become_root  # noqa: PLC0415 - not for root

    with contextlib.suppress(UnsupportedError):
        become_root()


def given_driver(arguments: Arguments) -> str | None:
    """Return the driver that *arguments* name; ``local``, as Docker calls its own, is none."""
    driver = arguments.last("driver") or arguments.last("d")
    return None if driver == "local" else driver


def pairs(texts: Iterable[str], option: str) -> Iterator[tuple[str, str]]:
    """Yield each of *texts*, values of *option*, as key and value. Raises `UsageError`."""
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{option} {text}: not KEY=VALUE")
        yield key, value


def size(text: str, option: str) -> int:
    """Return the bytes that *text* means (`unionfs.sizes`). Raises `UsageError`."""
    found = sizes.parse(text)
    if found is None:
        raise UsageError(f"{option} {text}: {sizes.NOT_A_SIZE}")
    return found


def print_json(value: Any, indent: int = 2) -> None:
    """Print *value* for a script."""
    print(json.dumps(value, indent=indent))
