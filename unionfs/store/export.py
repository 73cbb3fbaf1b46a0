"""An image, or a committed snapshot, becomes an archive that engines load.

Layers that were imported come out byte by byte as they were, so that the image's id and diff
ids stay the same; what was committed here is packed, the same each time.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import BinaryIO, Final, NamedTuple

from unionfs.driver.api import Info, Kind
from unionfs.errors import FailedPreconditionError, FaultyError, NotFoundError, UsageError
from unionfs.store import reference
from unionfs.store.archives import ArchiveWriter, DockerWriter, OciWriter
from unionfs.store.image import Image, algorithm_of, new_config, timestamp
from unionfs.store.images import DIFF_ID, Images, Progress
from unionfs.store.layers import write_archive
from unionfs.store.store import Store

FORMATS: Final = ("oci-archive", "docker-archive")


def export(
    store: Store,
    name: str,
    file: BinaryIO,
    form: str,
    compression: str | None,
    progress: Progress,
) -> None:
    """Write the image or committed snapshot *name* into the empty, seekable *file*.

    *form* is one of `FORMATS`; *compression* that of the layers: ``gzip`` (the default for an
    OCI archive), ``zstd`` or ``none`` (for Docker's, which is read by any version then).
    Raises `NotFoundError`, `FailedPreconditionError` for a snapshot that is not committed,
    `FaultyError` for a layer that is not what it was, `UsageError`.
    """
    match form:
        case "oci-archive":
            writer: ArchiveWriter = OciWriter(file, compression or "gzip")
        case "docker-archive":
            writer = DockerWriter(file, compression or "none")
        case _:
            raise UsageError(f"--format {form}: it is {' or '.join(FORMATS)}")
    subject = _find(store, name)
    for info in subject.layers:
        _write_layer(store, info, writer, progress)
    writer.finish(subject.name, subject.config([layer.diff_id for layer in writer.layers]))


class _Subject(NamedTuple):
    name: str
    layers: list[Info]
    """The lowest first."""
    image: Image | None
    """The image itself, or the one that a snapshot was made on."""
    top: Info | None
    """The snapshot that is no image."""

    def config(self, diff_ids: Sequence[str]) -> bytes:
        if self.top is None:
            assert self.image is not None
            return self.image.config
        base = None if self.image is None else self.image.settings()
        known = 0 if self.image is None else len(self.image.layers)
        history = [
            {
                "created": timestamp(info.created),
                "created_by": f"unionfs snapshot commit {info.key}",
            }
            for info in self.layers[known:]
        ]
        return new_config(base, diff_ids, self.top.created, history)


def _find(store: Store, name: str) -> _Subject:
    images = Images(store)
    with contextlib.suppress(NotFoundError):
        image = images.find(name)
        return _Subject(image.name, [store.driver.stat(one) for one in image.layers], image, None)
    try:
        info = store.driver.stat(name)
    except NotFoundError:
        raise NotFoundError(f"{name}: neither an image nor a snapshot") from None
    if info.kind is not Kind.COMMITTED:
        raise FailedPreconditionError(f"{name}: {info.kind.value}; commit it first")
    chain = [info]
    while chain[0].parent:
        chain.insert(0, store.driver.stat(chain[0].parent))
    tops = {image.layers[-1]: image for image in images.all() if image.layers}
    base = next((tops[one.key] for one in reversed(chain) if one.key in tops), None)
    return _Subject(reference.canonical(name), chain, base, info)


def _write_layer(store: Store, info: Info, writer: ArchiveWriter, progress: Progress) -> None:
    known = info.labels.get(DIFF_ID)
    plain = hashlib.new(algorithm_of(known) if known else "sha256")
    blob = writer.begin_layer()

    def write(data: bytes) -> None:
        plain.update(data)
        blob.write(data)
        progress(info.key, len(data))

    write_archive(store, info.key, write, known)
    diff_id = f"{plain.name}:{plain.hexdigest()}"
    if known and diff_id != known:
        raise FaultyError(f"layer {info.key}: its files are not what they were ({diff_id})")
    writer.end_layer(blob, diff_id)
