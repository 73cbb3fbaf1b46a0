"""Archives of images, as they are written: the OCI's, and Docker's."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any, BinaryIO, Final, NamedTuple

from unionfs.layer.compression import compressor
from unionfs.layer.pack import TarWriter, file_header
from unionfs.store import docker, oci, reference
from unionfs.store.image import architecture, digest_of, parse_config

_BLOCK: Final = 512
_LAYER_TYPES: Final = {
    "none": oci.LAYER,
    "gzip": f"{oci.LAYER}+gzip",
    "zstd": f"{oci.LAYER}+zstd",
}


class Layer(NamedTuple):
    """A layer that was written."""

    diff_id: str
    digest: str
    size: int


class BlobWriter:
    """A member of an archive whose name and size are known when it is written."""

    def __init__(self, file: BinaryIO, compression: str) -> None:
        self._file = file
        self._compressor = compressor(compression)
        self._start = file.tell()
        self._hash = hashlib.sha256()
        self._size = 0
        file.write(bytes(_BLOCK))

    def write(self, data: bytes) -> None:
        """Take *data*, to be compressed."""
        self._put(self._compressor.compress(data))

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        self._file.write(data)

    def finish(self, diff_id: str) -> Layer:
        """Write what is left; return what it was."""
        self._put(self._compressor.flush())
        self._file.write(bytes(-self._size % _BLOCK))
        return Layer(diff_id, f"sha256:{self._hash.hexdigest()}", self._size)

    def name(self, name: str) -> None:
        """Write the header."""
        self._file.seek(self._start)
        self._file.write(file_header(name.encode(), self._size))
        self._file.seek(0, 2)

    def take_back(self) -> None:
        """Let nothing have been written."""
        self._file.seek(self._start)
        self._file.truncate()


class ArchiveWriter(ABC):
    """Writes an image into a seekable *file*."""

    def __init__(self, file: BinaryIO, compression: str) -> None:
        self._file = file
        self._compression = compression
        self._names: set[str] = set()
        #: What was written, the lowest first.
        self.layers: list[Layer] = []

    def begin_layer(self) -> BlobWriter:
        """Return what takes the next layer, the lowest being first."""
        return BlobWriter(self._file, self._compression)

    def end_layer(self, blob: BlobWriter, diff_id: str) -> None:
        """Finish *blob*, the archive of a layer; the same one is there once."""
        layer = blob.finish(diff_id)
        self.layers.append(layer)
        name = self.layer_name(layer)
        if name in self._names:
            blob.take_back()
        else:
            blob.name(name)
            self._names.add(name)

    @abstractmethod
    def layer_name(self, layer: Layer) -> str:
        """Return the name that *layer* has in the archive."""

    @abstractmethod
    def finish(self, name: str, config: bytes) -> None:
        """Write what makes the layers an image called *name*."""

    def _add(self, name: str, data: bytes) -> None:
        if name not in self._names:
            self._names.add(name)
            self._file.write(file_header(name.encode(), len(data)))
            self._file.write(data + bytes(-len(data) % _BLOCK))

    def _add_json(self, name: str, value: Any) -> None:
        self._add(name, _json(value))

    def _end(self) -> None:
        TarWriter(self._file.write).finish()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class OciWriter(ArchiveWriter):
    """Writes an OCI layout, as ``oci-archive:`` of containers-transports(5) has it."""

    def layer_name(self, layer: Layer) -> str:
        """See `ArchiveWriter.layer_name`."""
        return _blob(layer.digest)

    def finish(self, name: str, config: bytes) -> None:
        """See `ArchiveWriter.finish`."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST,
            "config": self._add_blob(config, oci.CONFIG),
            "layers": [
                _descriptor(_LAYER_TYPES[self._compression], layer.digest, layer.size)
                for layer in self.layers
            ],
        }
        settings = parse_config(config)
        platform = {
            "architecture": settings.get("architecture") or architecture(),
            "os": settings.get("os") or "linux",
        }
        entry = self._add_blob(_json(manifest), oci.MANIFEST) | {
            "annotations": {oci.REF_NAME: name, oci.FULL_NAME: name},
            "platform": platform,
        }
        self._add_json(oci.INDEX, {"schemaVersion": 2, "manifests": [entry]})
        self._add_json(oci.LAYOUT, {"imageLayoutVersion": "1.0.0"})
        self._end()

    def _add_blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(data)
        self._add(_blob(digest), data)
        return _descriptor(media_type, digest, len(data))


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


class DockerWriter(ArchiveWriter):
    """Writes what ``docker save`` does, without what Docker before 1.10 needs."""

    def layer_name(self, layer: Layer) -> str:
        """See `ArchiveWriter.layer_name`."""
        return f"{_hex(layer.diff_id)}.tar"

    def finish(self, name: str, config: bytes) -> None:
        """See `ArchiveWriter.finish`."""
        config_name = f"{_hex(digest_of(config))}.json"
        self._add(config_name, config)
        layers = [self.layer_name(layer) for layer in self.layers]
        entry = {"Config": config_name, "RepoTags": [name], "Layers": layers}
        self._add_json(docker.MANIFEST, [entry])
        path, tag = reference.parts(name)
        top = _hex(self.layers[-1].diff_id) if self.layers else ""
        self._add_json(docker.REPOSITORIES, {path: {tag: top}})
        self._end()


def _hex(digest: str) -> str:
    return digest.partition(":")[2]
