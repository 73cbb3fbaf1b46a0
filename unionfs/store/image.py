"""What an image is: a configuration and the digests of its layers.

The words are the OCI's (image-spec, config.md): a *diff id* is the digest of a layer's archive,
uncompressed; a *chain id* names a layer together with all below it. The digest of the
configuration is the image's id, so that its bytes are kept as they came.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from unionfs.errors import ArchiveError

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
#: Go's names of machines, by those of uname(2).
_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "i686": "386",
    "i386": "386",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
    "loongarch64": "loong64",
    "mips64": "mips64le",
}


def architecture() -> str:
    """Return this machine's architecture as images call it."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of *data*, as ``sha256:…``."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def check_digest(text: Any, what: str) -> str:
    """Return *text* if it is a digest that can be verified. Raises `ArchiveError`."""
    if not isinstance(text, str) or _DIGEST.fullmatch(text) is None:
        raise ArchiveError(f"{what}: no digest of sha256 or sha512")
    return text


def algorithm_of(digest: str) -> str:
    """Return the name of the hash in *digest*."""
    return digest.partition(":")[0]


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Return the chain id of each layer, the lowest first."""
    found: list[str] = []
    for diff_id in diff_ids:
        found.append(digest_of(f"{found[-1]} {diff_id}".encode()) if found else diff_id)
    return found


def timestamp(nanoseconds: int) -> str:
    """Return a time as configurations have it (RFC 3339)."""
    moment = datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Step(NamedTuple):
    """One step of an image's making."""

    created: str
    created_by: str
    comment: str
    layer: str | None
    """The chain id of the layer that it made, ``None`` where it made none."""


class Image(NamedTuple):
    """An image of a store."""

    name: str
    id: str
    config: bytes
    imported: int
    """When it came into the store, in nanoseconds since 1970."""
    layers: tuple[str, ...]
    """The chain ids of its layers, the lowest first: these are names of snapshots."""

    def settings(self) -> dict[str, Any]:
        """Return the configuration."""
        return parse_config(self.config)

    def steps(self) -> Iterator[Step]:
        """Yield the steps of its history, the first one first."""
        layers = iter(self.layers)
        for entry in self.settings().get("history") or ():
            if isinstance(entry, dict):
                layer = None if entry.get("empty_layer") else next(layers, None)
                yield Step(
                    str(entry.get("created") or ""),
                    str(entry.get("created_by") or ""),
                    str(entry.get("comment") or ""),
                    layer,
                )
        for layer in layers:
            yield Step("", "", "", layer)


def parse_config(data: bytes) -> dict[str, Any]:
    """Return the configuration in *data*. Raises `ArchiveError` where it is none."""
    found = parse_json(data, "the configuration")
    rootfs = found.get("rootfs")
    if not isinstance(rootfs, dict) or not isinstance(rootfs.get("diff_ids") or [], list):
        raise ArchiveError("the configuration names no layers: not of an image for Linux")
    if found.get("os", "linux") != "linux":
        raise ArchiveError(f"an image for {found['os']}, and this is Linux")
    return found


def diff_ids(config: bytes) -> list[str]:
    """Return the diff ids that *config* names, the lowest first. Raises `ArchiveError`."""
    found = parse_config(config)["rootfs"].get("diff_ids") or []
    return [check_digest(one, "a diff id of the configuration") for one in found]


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in *data*. Raises `ArchiveError` where it is none."""
    found = parse_any_json(data, what)
    if not isinstance(found, dict):
        raise ArchiveError(f"{what} is no JSON object")
    return found


def parse_any_json(data: bytes, what: str) -> Any:
    """Return the JSON value in *data*. Raises `ArchiveError` where it is none."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ArchiveError(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise ArchiveError(f"{what} is no JSON: {error}") from error


def new_config(
    base: dict[str, Any] | None, layers: Sequence[str], created: int, history: Sequence[Any]
) -> bytes:
    """Return a configuration like *base*, with the diff ids *layers* and more *history*."""
    found: dict[str, Any] = {"architecture": architecture(), "os": "linux", "config": {}}
    found |= base or {}
    found["created"] = timestamp(created)
    found["rootfs"] = {"type": "layers", "diff_ids": list(layers)}
    found["history"] = [*(found.get("history") or ()), *history]
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode(
        errors="backslashreplace"
    )
