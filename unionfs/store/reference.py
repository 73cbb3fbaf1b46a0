"""Names of images, as Docker has them: ``[REGISTRY[:PORT]/]PATH[:TAG]``."""

from __future__ import annotations

import re
from typing import Final

from unionfs.errors import InvalidArgumentError

_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST: Final = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_NAME: Final = re.compile(
    rf"(?P<path>(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?",
    re.ASCII,
)
_LIMIT: Final = 255
_DEFAULT_TAG: Final = "latest"
_ENDINGS: Final = re.compile(
    r"(\.(tar|tgz|oci|docker|gz|xz|bz2|zst|zstd|txz|tbz2))+\Z", re.ASCII | re.IGNORECASE
)


def canonical(name: str) -> str:
    """Return *name* with its tag, ``latest`` where it has none.

    Raises `InvalidArgumentError` for what is no name of an image.
    """
    match = _NAME.fullmatch(name)
    if match is None or len(match["path"]) > _LIMIT:
        raise InvalidArgumentError(
            f"{name}: no name for an image: small letters, digits and . _ - in each part of"
            " [REGISTRY/]PATH[:TAG]"
        )
    return f"{match['path']}:{match['tag'] or _DEFAULT_TAG}"


def parts(name: str) -> tuple[str, str]:
    """Return the path and the tag of a `canonical` *name*."""
    path, _, tag = name.rpartition(":")
    return path, tag


def from_file(path: str) -> str:
    """Return the name that an image from the file or directory *path* gets by itself.

    Raises `InvalidArgumentError` where nothing of *path* makes a name.
    """
    base = path.rstrip("/").rpartition("/")[2]
    text = re.sub(r"[^a-z0-9._-]+", "-", _ENDINGS.sub("", base).lower()).strip("._-")
    try:
        return canonical(text)
    except InvalidArgumentError:
        raise InvalidArgumentError(f"{path}: gives the image no name; give a NAME") from None
