"""``unionfs image``: images brought in, listed, removed and taken out again."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, Final

from unionfs.cli import usage
from unionfs.cli.arguments import Arguments
from unionfs.cli.files import replacing
from unionfs.cli.output import complain, print_table, printable
from unionfs.cli.progress import ProgressLine
from unionfs.cli.store_arguments import grammar, print_json
from unionfs.cli.verbs import Verb, run_verb
from unionfs.errors import ArchiveError, InvalidArgumentError, UsageError
from unionfs.sizes import readable
from unionfs.store import reference
from unionfs.store.export import FORMATS, export
from unionfs.store.image import Image, timestamp
from unionfs.store.images import Images
from unionfs.store.packed import PackedImage
from unionfs.store.recognise import STANDARD_INPUT, open_bundle
from unionfs.store.store import Store

_PLAIN: Final = grammar()
_QUIET: Final = grammar(flags={"q"}, aliases={"quiet": "q"})
_EXPORTING: Final = grammar(flags={"q"}, valued={"format", "compression"}, aliases={"quiet": "q"})
_HISTORY: Final = grammar(flags={"no-trunc"})
_STANDARD_OUTPUT: Final = "-"
_SHORT_ID: Final = 12
_SHORT_STEP: Final = 60


def run(argv: list[str]) -> int:
    """Do what *argv*, the words after ``image``, says."""
    return run_verb("image", VERBS, usage.IMAGE, argv)


def _import(store: Store, arguments: Arguments) -> None:
    path, *name = arguments.positionals
    images = Images(store)
    made = []
    with _explained(path):
        bundle, found = open_bundle(path, store.root)
        with contextlib.closing(bundle), ProgressLine(quiet=_is_quiet(arguments)) as progress:
            for packed, image_name in _named(found, path, name[0] if name else None):
                made.append(
                    images.add(packed, image_name, bundle, progress, lambda text: complain([text]))
                )
    if "json" in arguments.flags:
        print_json([_as_json(image) for image in made])
        return
    for image in made:
        print(printable(image.name))


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from error


def _named(
    found: list[PackedImage], path: str, name: str | None
) -> Iterator[tuple[PackedImage, str]]:
    """Yield each image that is meant with each name that it gets."""
    if name is None:
        for packed in found:
            for one in packed.names or [_name_from(path)]:
                try:
                    good = reference.canonical(one)
                except InvalidArgumentError as error:
                    raise InvalidArgumentError(f"{path}: {error}; give a NAME") from error
                yield packed, good
        return
    if len(found) == 1:
        yield found[0], name
        return
    wanted = reference.canonical(name)
    for packed in found:
        if wanted in map(reference.canonical, packed.names):
            yield packed, wanted
            return
    there = ", ".join(one for packed in found for one in packed.names)
    raise UsageError(f"{path}: has several images, and none is {name}: {there}")


def _name_from(path: str) -> str:
    if path == STANDARD_INPUT:
        raise UsageError("what comes from standard input has no name; give a NAME")
    return reference.from_file(os.path.abspath(path))


def _export(store: Store, arguments: Arguments) -> None:
    name, path = arguments.positionals
    form = arguments.last("format") or FORMATS[0]
    compression = arguments.last("compression")
    with ProgressLine(quiet=_is_quiet(arguments)) as progress:
        if path == _STANDARD_OUTPUT:
            if os.isatty(sys.stdout.fileno()):
                raise UsageError("an archive is nothing to be shown on a terminal")
            with tempfile.TemporaryFile(dir=store.root) as spool:
                export(store, name, spool, form, compression, progress)
                spool.seek(0)
                shutil.copyfileobj(spool, sys.stdout.buffer)
            return
        with replacing(path) as file:
            export(store, name, file, form, compression, progress)


def _list(store: Store, arguments: Arguments) -> None:
    found = Images(store).all()
    if "json" in arguments.flags:
        print_json([_as_json(image) for image in found])
    elif _is_quiet(arguments):
        for image in found:
            print(printable(image.name))
    elif found:
        rows = (
            [*reference.parts(image.name), _short(image.id), _created(image), _size(store, image)]
            for image in found
        )
        print_table(("repository", "tag", "id", "created", "size"), rows)


def _size(store: Store, image: Image) -> str:
    return readable(sum(store.driver.usage(layer).size for layer in image.layers))


def _created(image: Image) -> str:
    return str(image.settings().get("created") or "")[:19]


def _short(digest: str) -> str:
    return digest.partition(":")[2][:_SHORT_ID]


def _remove(store: Store, arguments: Arguments) -> None:
    images = Images(store)
    gone = {name: images.remove(name) for name in arguments.positionals}
    if "json" in arguments.flags:
        print_json(gone)


def _history(store: Store, arguments: Arguments) -> None:
    steps = list(Images(store).find(arguments.positionals[0]).steps())[::-1]
    sizes = [None if one.layer is None else store.driver.usage(one.layer).size for one in steps]
    if "json" in arguments.flags:
        print_json(
            [{**one._asdict(), "size": size} for one, size in zip(steps, sizes, strict=True)]
        )
        return
    whole = "no-trunc" in arguments.flags
    rows = [
        [
            "" if one.layer is None else one.layer if whole else _short(one.layer),
            one.created[:19],
            readable(size or 0),
            one.created_by if whole else one.created_by[:_SHORT_STEP],
            one.comment,
        ]
        for one, size in zip(steps, sizes, strict=True)
    ]
    print_table(("layer", "created", "size", "created by", "comment"), rows)


def _inspect(store: Store, arguments: Arguments) -> None:
    images = Images(store)
    print_json([_as_json(images.find(name), whole=True) for name in arguments.positionals])


def _cleanup(store: Store, arguments: Arguments) -> None:
    gone = Images(store).cleanup()
    if "json" in arguments.flags:
        print_json(gone)
        return
    for name in gone:
        print(printable(name))


def _is_quiet(arguments: Arguments) -> bool:
    return "q" in arguments.flags


def _as_json(image: Image, *, whole: bool = False) -> dict[str, Any]:
    settings = image.settings()
    found = {
        "name": image.name,
        "id": image.id,
        "created": settings.get("created"),
        "imported": timestamp(image.imported),
        "layers": list(image.layers),
    }
    if whole:
        found |= {
            "architecture": settings.get("architecture"),
            "os": settings.get("os"),
            "config": settings.get("config") or {},
            "diff_ids": settings["rootfs"].get("diff_ids") or [],
            "history": settings.get("history") or [],
        }
    return found


#: Each verb with what it takes; in the order that --help tells them.
VERBS: Final[dict[str, Verb]] = {
    "import": Verb(_import, _QUIET, 1, 2, as_owner=True, founds=True),
    "export": Verb(_export, _EXPORTING, 2, 2, as_owner=True),
    "ls": Verb(_list, _QUIET, 0, 0),
    "rm": Verb(_remove, _PLAIN, 1, -1, as_owner=True),
    "history": Verb(_history, _HISTORY, 1, 1),
    "inspect": Verb(_inspect, _PLAIN, 1, -1),
    "cleanup": Verb(_cleanup, _PLAIN, 0, 0, as_owner=True),
}
