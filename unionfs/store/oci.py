"""Images in the OCI's layout: ``oci-layout``, ``index.json`` and ``blobs/`` (image-layout.md)."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from unionfs.errors import ArchiveError, InvalidArgumentError
from unionfs.store import reference
from unionfs.store.bundle import Bundle
from unionfs.store.image import algorithm_of, architecture, check_digest, digest_of, parse_json
from unionfs.store.packed import Blob, PackedImage

LAYOUT: Final = "oci-layout"
INDEX: Final = "index.json"
#: Full names of images, as containerd and Docker note them; the OCI's own may be a tag.
FULL_NAME: Final = "io.containerd.image.name"
REF_NAME: Final = "org.opencontainers.image.ref.name"
_INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_MANIFESTS: Final = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_CONFIGS: Final = (CONFIG, "application/vnd.docker.container.image.v1+json")
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_LAYERS: Final = (
    LAYER,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
_COMPRESSIONS: Final = ("", "+gzip", ".gzip", "+zstd", ".zstd")
_ATTESTATION: Final = "vnd.docker.reference.type"
_MOST_INDEXES: Final = 8


def is_layout(bundle: Bundle) -> bool:
    """Say whether *bundle* is an OCI layout."""
    return bundle.has(INDEX) and (bundle.has(LAYOUT) or bundle.has("blobs"))


def read(bundle: Bundle) -> list[PackedImage]:
    """Return the images in *bundle*, of an index the one for this machine.

    Raises `ArchiveError`, also for a digest or a size that is not as it was said.
    """
    index = parse_json(bundle.read(INDEX), INDEX)
    found: dict[str, list[dict[str, Any]]] = {}
    for descriptor in _descriptors(index):
        found.setdefault(_name(descriptor, bundle.path), []).append(descriptor)
    if not found:
        raise ArchiveError(f"{INDEX} names no image")
    # Of several under one name each is for another machine.
    return [
        _image(bundle, _chosen(descriptors, 0, bundle), (name,) if name else ())
        for name, descriptors in found.items()
    ]


def _name(descriptor: dict[str, Any], path: str) -> str:
    notes = descriptor.get("annotations")
    notes = notes if isinstance(notes, dict) else {}
    if full := notes.get(FULL_NAME):
        return str(full)
    name = str(notes.get(REF_NAME) or "")
    if name and ":" not in name and "/" not in name:
        # A tag alone: of what, the file's own name says.
        with contextlib.suppress(InvalidArgumentError):
            return f"{reference.parts(reference.from_file(path))[0]}:{name}"
        return ""
    return name


def _descriptors(index: dict[str, Any]) -> list[dict[str, Any]]:
    found = index.get("manifests")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ArchiveError("an index without a list of manifests")
    return [one for one in found if _ATTESTATION not in (one.get("annotations") or {})]


def _chosen(descriptors: list[dict[str, Any]], depth: int, bundle: Bundle) -> dict[str, Any]:
    """Return the manifest for this machine among what *descriptors* lead to."""
    if depth > _MOST_INDEXES:
        raise ArchiveError("indexes within indexes without an end")
    fitting = [one for one in descriptors if _fits(one)]
    if not fitting:
        there = ", ".join(sorted({_platform(one) for one in descriptors})) or "nothing"
        raise ArchiveError(f"no image for linux/{architecture()}: it has {there}")
    best = fitting[0]
    data = read_blob(bundle, blob_of(best))
    manifest = parse_json(data, "a manifest")
    if _media_type(manifest, best) in _INDEXES:
        return _chosen(_descriptors(manifest), depth + 1, bundle)
    return {**manifest, "mediaType": _media_type(manifest, best)}


def _media_type(manifest: dict[str, Any], descriptor: dict[str, Any]) -> Any:
    return manifest.get("mediaType") or descriptor.get("mediaType")


def _fits(descriptor: dict[str, Any]) -> bool:
    platform = descriptor.get("platform")
    if not isinstance(platform, dict):
        return True
    return platform.get("os") == "linux" and platform.get("architecture") == architecture()


def _platform(descriptor: dict[str, Any]) -> str:
    platform = descriptor.get("platform") or {}
    words = (platform.get("os"), platform.get("architecture"), platform.get("variant"))
    return "/".join(str(word) for word in words if word)


def _image(bundle: Bundle, manifest: dict[str, Any], names: tuple[str, ...]) -> PackedImage:
    config, layers = manifest.get("config"), manifest.get("layers")
    if manifest["mediaType"] not in _MANIFESTS or not isinstance(config, dict):
        raise ArchiveError(f"a manifest of another kind: {manifest['mediaType']}")
    if config.get("mediaType") not in _CONFIGS:
        raise ArchiveError(f"no image but {config.get('mediaType')}")
    if not isinstance(layers, list) or not all(isinstance(one, dict) for one in layers):
        raise ArchiveError("a manifest without a list of layers")
    for layer in layers:
        if layer.get("mediaType") not in _readable_types():
            raise ArchiveError(f"a layer of an unknown kind: {layer.get('mediaType')}")
    return PackedImage(
        names, tuple(blob_of(one) for one in layers), read_blob(bundle, blob_of(config))
    )


def _readable_types() -> set[str]:
    return {kind + compression for kind in _LAYERS for compression in _COMPRESSIONS}


def blob_of(descriptor: dict[str, Any]) -> Blob:
    """Return the blob that *descriptor* is about. Raises `ArchiveError`."""
    digest = check_digest(descriptor.get("digest"), "a descriptor")
    size = descriptor.get("size")
    if not isinstance(size, int) or size < 0:
        raise ArchiveError(f"{digest}: a descriptor without a size")
    return Blob(f"blobs/{digest.replace(':', '/')}", digest, size)


def read_blob(bundle: Bundle, blob: Blob) -> bytes:
    """Return all of *blob*, verified. Raises `ArchiveError`."""
    data = bundle.read(blob.name)
    assert blob.digest is not None
    found = digest_of(data, algorithm_of(blob.digest))
    if found != blob.digest or len(data) != blob.size:
        raise ArchiveError(f"{blob.name}: has another digest ({found}) or size: it is broken")
    return data
