"""Images as ``docker save`` and ``podman save`` write them, in both of their forms.

The newer one has ``manifest.json``, which names configuration and layers. The older one, of
Docker before 1.10, has ``repositories`` and for each layer a directory with ``json`` and
``layer.tar`` (docker's image/spec/v1.md and v1.2.md).
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from unionfs.errors import ArchiveError
from unionfs.store.bundle import Bundle
from unionfs.store.image import digest_of, parse_any_json, parse_json
from unionfs.store.packed import Blob, PackedImage

MANIFEST: Final = "manifest.json"
REPOSITORIES: Final = "repositories"
_NAMED_BY_DIGEST: Final = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")
_MOST_LAYERS: Final = 1000


def is_archive(bundle: Bundle) -> bool:
    """Say whether *bundle* is one that Docker or Podman saved."""
    return bundle.has(MANIFEST) or bundle.has(REPOSITORIES)


def read(bundle: Bundle) -> list[PackedImage]:
    """Return the images in *bundle*. Raises `ArchiveError`."""
    return _read_new(bundle) if bundle.has(MANIFEST) else _read_old(bundle)


def _read_new(bundle: Bundle) -> list[PackedImage]:
    found = parse_any_json(bundle.read(MANIFEST), MANIFEST)
    if not isinstance(found, list) or not found:
        raise ArchiveError(f"{MANIFEST} names no image")
    return [_image(bundle, entry) for entry in found]


def _image(bundle: Bundle, entry: Any) -> PackedImage:
    match entry:
        case {"Config": str() as name, "Layers": None}:
            layers: list[str] = []
        case {"Config": str() as name, "Layers": [*layers]} if all(
            isinstance(layer, str) for layer in layers
        ):
            pass
        case _:
            raise ArchiveError(f"{MANIFEST} has an image without Config and Layers")
    tags = entry.get("RepoTags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ArchiveError(f"{MANIFEST} has an image whose RepoTags are no names")
    config = bundle.read(name)
    promised = _NAMED_BY_DIGEST.fullmatch(name)
    if promised and digest_of(config) != f"sha256:{promised[1]}":
        raise ArchiveError(f"{name}: has another digest: it is broken")
    return PackedImage(tuple(tags), tuple(Blob(layer) for layer in layers), config)


def _read_old(bundle: Bundle) -> list[PackedImage]:
    found: dict[str, list[str]] = {}
    for repository, tags in parse_json(bundle.read(REPOSITORIES), REPOSITORIES).items():
        if not isinstance(tags, dict) or not all(isinstance(top, str) for top in tags.values()):
            raise ArchiveError(f"{REPOSITORIES}: {repository}: no tags")
        for tag, top in tags.items():
            found.setdefault(top, []).append(f"{repository}:{tag}")
    if not found:
        raise ArchiveError(f"{REPOSITORIES} names no image")
    return [_old_image(bundle, top, tuple(names)) for top, names in found.items()]


def _old_image(bundle: Bundle, top: str, names: tuple[str, ...]) -> PackedImage:
    notes: list[dict[str, object]] = []
    layers: list[Blob] = []
    current: object = top
    while current:
        if not isinstance(current, str) or len(layers) > _MOST_LAYERS:
            raise ArchiveError(f"{top}: its parents have no end")
        notes.append(parse_json(bundle.read(f"{current}/json"), f"{current}/json"))
        layers.append(Blob(f"{current}/layer.tar"))
        current = notes[-1].get("parent")
    return PackedImage(names, tuple(reversed(layers)), None, tuple(reversed(notes)))


def config_of(notes: tuple[dict[str, object], ...], diff_ids: list[str]) -> bytes:
    """Return the configuration that an image of the older form has in the newer one."""
    top = notes[-1]
    found: dict[str, object] = {
        key: top[key] for key in ("architecture", "author", "config", "created", "os") if key in top
    }
    found["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    found["history"] = [_step(note) for note in notes]
    return json.dumps(found, separators=(",", ":"), sort_keys=True).encode()


def _step(note: dict[str, object]) -> dict[str, object]:
    step = {key: note[key] for key in ("created", "author", "comment") if note.get(key)}
    container = note.get("container_config")
    command = container.get("Cmd") if isinstance(container, dict) else None
    if isinstance(command, list):
        step["created_by"] = " ".join(map(str, command))
    return step
