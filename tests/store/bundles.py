"""Images as files, made by hand for tests: OCI layouts and what Docker saves."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.archives import archive, directory, member, symlink
from unionfs.store.image import architecture

#: Three layers: the second changes and hides, the third is empty.
BASE = archive(
    directory("bin"),
    member("bin/tool", data=b"tool" * 1000, mode=0o755),
    directory("etc", mode=0o750),
    member("etc/config", data=b"first"),
    directory("var"),
    member("var/old", data=b"old"),
    symlink("tool", "bin/tool"),
)
CHANGE = archive(
    member("etc/config", data=b"second"),
    directory("var"),
    member("var/.wh..wh..opq"),
    member("var/new", data=b"new"),
    member(".wh.tool"),
)
EMPTY = bytes(1024)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config(*layers: bytes, **more: Any) -> bytes:
    return json.dumps(
        {
            "created": "2020-01-02T03:04:05Z",
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Env": ["PATH=/bin", "A=b"],
                "Cmd": ["-v"],
                "Entrypoint": ["/bin/tool"],
                "WorkingDir": "/var",
                "User": "12:34",
            },
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
            "history": [
                {"created": "2020-01-01T00:00:00Z", "created_by": "ADD base"},
                {"created_by": "ENV A=b", "empty_layer": True},
                {"created_by": "RUN change", "comment": "noted"},
            ],
            **more,
        }
    ).encode()


class Layout:
    """An OCI layout in the making: blobs, and what the index names."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.manifests: list[dict[str, Any]] = []

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        self.files[f"blobs/{digest(data).replace(':', '/')}"] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}

    def image(self, layers: Sequence[bytes], settings: bytes, **more: Any) -> dict[str, Any]:
        """Add an image whose layers are compressed by gzip; return its descriptor."""
        manifest = {
            "schemaVersion": 2,
            "config": self.blob(settings, "application/vnd.oci.image.config.v1+json"),
            "layers": [
                self.blob(
                    gzip.compress(layer, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip"
                )
                for layer in layers
            ],
        }
        data = json.dumps(manifest).encode()
        return self.blob(data, "application/vnd.oci.image.manifest.v1+json", **more)

    def index(self, manifests: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        data = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()
        return self.blob(data, "application/vnd.oci.image.index.v1+json", **more)

    def name(self, descriptor: dict[str, Any], name: str | None) -> None:
        notes = {} if name is None else {"org.opencontainers.image.ref.name": name}
        self.manifests.append({**descriptor, "annotations": notes})

    def all(self) -> dict[str, bytes]:
        index = json.dumps({"schemaVersion": 2, "manifests": self.manifests}).encode()
        return {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index, **self.files}


def layout(name: str | None = "example.org/app:v1", *layers: bytes) -> Layout:
    """A layout of one image of *layers*, by default `BASE` and `CHANGE`."""
    made = Layout()
    used = layers or (BASE, CHANGE)
    made.name(made.image(used, config(*used)), name)
    return made


def docker_files(*names: str, layers: Sequence[bytes] = (BASE, CHANGE)) -> dict[str, bytes]:
    """What ``docker save`` writes."""
    settings = config(*layers)
    number = hashlib.sha256(settings).hexdigest()
    files = {f"{number}.json": settings}
    for position, layer in enumerate(layers):
        files[f"{position}/layer.tar"] = layer
    entry = {"Config": f"{number}.json", "RepoTags": list(names), "Layers": list(files)[1:]}
    return {**files, "manifest.json": json.dumps([entry]).encode()}


def old_docker_files(name: str, tag: str) -> dict[str, bytes]:
    """What ``docker save`` wrote before there were manifests."""
    first, second = "1" * 64, "2" * 64
    note = {"id": first, "os": "linux", "created": "2014-01-01T00:00:00Z"}
    top = {
        **note,
        "id": second,
        "parent": first,
        "architecture": architecture(),
        "config": {"Cmd": ["/bin/tool"]},
        "container_config": {"Cmd": ["/bin/sh", "-c", "change"]},
    }
    return {
        f"{second}/VERSION": b"1.0",
        f"{second}/json": json.dumps(top).encode(),
        f"{second}/layer.tar": CHANGE,
        f"{first}/VERSION": b"1.0",
        f"{first}/json": json.dumps(note).encode(),
        f"{first}/layer.tar": BASE,
        "repositories": json.dumps({name: {tag: second}}).encode(),
    }


def as_tar(files: dict[str, bytes]) -> bytes:
    return archive(*(member(name, data=data) for name, data in files.items()))


def write_directory(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return path


def write_tar(path: Path, files: dict[str, bytes], compressed: bool = False) -> Path:
    data = as_tar(files)
    path.write_bytes(gzip.compress(data) if compressed else data)
    return path


def tar_files(data: bytes) -> dict[str, bytes]:
    """The files in an archive."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for header in tar:
            file = tar.extractfile(header)
            assert file is not None
            found[header.name] = file.read()
    return found
