"""What is to be run, and in what surroundings; read from words as ``docker run`` takes them."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from unionfs import sizes
from unionfs.errors import UsageError

#: Docker's rule for the names of containers and volumes.
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")

#: What a command finds that neither the image nor the caller gave another.
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Bind(NamedTuple):
    """A directory or file of the host, shown at *target*."""

    source: str
    target: str
    read_only: bool = False
    create: bool = False
    """Make the directory *source* where there is nothing, as ``-v`` does."""


class NamedVolume(NamedTuple):
    """The store's volume *name*, shown at *target*."""

    name: str
    target: str
    read_only: bool = False


class Tmpfs(NamedTuple):
    """An empty file system in memory at *target*."""

    target: str
    size: int | None = None
    """Bytes that it can hold; ``None`` is the kernel's half of the memory."""
    mode: int = 0o1777
    read_only: bool = False


Place = Bind | NamedVolume | Tmpfs


class Spec(NamedTuple):
    """One command to run."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    hostname: str
    workdir: str = "/"
    user: str = ""
    """``USER[:GROUP]``, names of the image or numbers; empty for root."""
    places: tuple[Place, ...] = ()
    read_only: bool = False
    terminal: bool = False
    interactive: bool = False
    """Standard input is the caller's; else it is empty."""


def check_name(name: str) -> str:
    """Return *name*, if it can be a container's or a volume's. Raises `UsageError`."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name}: not a name: letters, digits, '_', '.' and '-', at least two,"
            " the first a letter or digit"
        )
    return name


def random_name() -> str:
    """Return a name that nobody has: twelve hexadecimal digits, the first of them a letter."""
    return secrets.choice("abcdef") + secrets.token_hex(6)[1:]


def parse_volume(text: str) -> Place:
    """Read ``NAME:/path[:ro]`` or ``/HOST/DIR:/path[:ro]``. Raises `UsageError`.

    ``./DIR`` and ``../DIR`` are the host's, too, from the working directory on.
    """
    source, _, rest = text.partition(":")
    target, _, modes = rest.partition(":")
    if not rest:
        raise UsageError(f"-v {text}: give NAME:/path or /HOST/DIR:/path")
    unknown = set(filter(None, modes.split(","))) - {"ro", "rw", "z", "Z", "rprivate", "private"}
    if unknown:
        raise UsageError(f"-v {text}: {min(unknown)}: unknown mode, it is ro or rw")
    read_only = "ro" in modes.split(",")
    target = _target(f"-v {text}", target)
    if source.partition("/")[0] in (".", ".."):
        source = os.path.abspath(source)
    if os.path.isabs(source):
        return Bind(source, target, read_only, create=True)
    if "/" in source:
        raise UsageError(f"-v {text}: {source}: a directory of the host starts with '/' or './'")
    return NamedVolume(check_name(source), target, read_only)


def parse_tmpfs(text: str) -> Tmpfs:
    """Read ``/path[:size=64m,mode=1777,ro]``. Raises `UsageError`."""
    target, _, options = text.partition(":")
    place = Tmpfs(_target(f"--tmpfs {text}", target))
    for word in filter(None, options.split(",")):
        key, _, value = word.partition("=")
        if key == "size":
            place = place._replace(size=_size(f"--tmpfs {text}", value))
        elif key == "mode":
            place = place._replace(mode=_octal(f"--tmpfs {text}", value))
        elif key == "ro":
            place = place._replace(read_only=True)
        elif key not in ("rw", "exec", "suid", "dev", "noexec", "nosuid", "nodev"):
            raise UsageError(f"--tmpfs {text}: {key}: unknown option, it is size=, mode= or ro")
    return place


def parse_mount(text: str) -> Place:
    """Read ``type=bind|volume|tmpfs,src=…,dst=/path[,ro]``, as ``--mount``. Raises `UsageError`."""
    given = dict(word.partition("=")[::2] for word in text.split(","))
    what = f"--mount {text}"
    kind = given.pop("type", "volume")
    source = _first(given, "source", "src")
    target = _target(what, _first(given, "destination", "dst", "target"))
    read_only = _first(given, "readonly", "ro", missing="false") not in ("false", "0")
    place: Place
    match kind:
        case "tmpfs":
            size = given.pop("tmpfs-size", None)
            mode = _octal(what, given.pop("tmpfs-mode", "1777"))
            place = Tmpfs(target, None if size is None else _size(what, size), mode, read_only)
        case "bind":
            place = Bind(os.path.abspath(source), target, read_only)
        case "volume":
            place = NamedVolume(check_name(source), target, read_only)
        case _:
            raise UsageError(f"{what}: type={kind}: it is bind, volume or tmpfs")
    if given:
        raise UsageError(f"{what}: {next(iter(given))}: unknown")
    return place


def _first(given: dict[str, str], *names: str, missing: str = "") -> str:
    """Take all of *names* out of *given*, and return what the last one says."""
    values = [given.pop(name) for name in names if name in given]
    return values[-1] if values else missing


def _target(what: str, path: str) -> str:
    if not os.path.isabs(path) or os.path.normpath(path) in ("/", "//"):
        raise UsageError(f"{what}: {path or 'nothing'}: not an absolute path below '/'")
    return os.path.normpath(path)


def _size(what: str, text: str) -> int:
    size = sizes.parse(text)
    if not size:  # for the kernel nothing is no limit
        raise UsageError(f"{what}: size={text}: {sizes.NOT_A_SIZE}")
    return size


def _octal(what: str, text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise UsageError(f"{what}: mode={text}: not an octal mode")
    return mode


class Defaults(NamedTuple):
    """What an image says of commands that are run in it, for where the caller says nothing."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    workdir: str = "/"
    user: str = ""


def defaults(settings: Mapping[str, Any]) -> Defaults:
    """Read an image's configuration (image-spec, config.md); what makes no sense is left out."""
    config = settings.get("config")
    if not isinstance(config, dict):
        return Defaults()

    def words(key: str) -> tuple[str, ...]:
        found = config.get(key)
        return tuple(map(str, found)) if isinstance(found, list) else ()

    return Defaults(
        entrypoint=words("Entrypoint"),
        command=words("Cmd"),
        environment=words("Env"),
        workdir=os.path.join("/", str(config.get("WorkingDir") or "")),
        user=str(config.get("User") or ""),
    )


def command(image: Defaults, entrypoint: str | None, given: Sequence[str]) -> tuple[str, ...]:
    """Return what is to be run, by Docker's rules. Raises `UsageError` if there is nothing."""
    program = image.entrypoint if entrypoint is None else tuple(filter(None, [entrypoint]))
    arguments = tuple(given) or (image.command if entrypoint is None else ())
    if not program + arguments:
        raise UsageError("CMD is missing: what to run in it; see unionfs run --help")
    return program + arguments


def environment(
    image: Defaults, given: Sequence[str], hostname: str, *, terminal: bool
) -> dict[str, str]:
    """Return the environment of a command: the *image*'s, and what is *given* by the caller.

    ``K=V`` is taken as it is; ``K`` takes the caller's own value, where there is one.
    """
    result = {"PATH": _PATH, "HOSTNAME": hostname}
    if terminal:
        result["TERM"] = os.environ.get("TERM", "xterm")
    for word in image.environment:
        key, _, value = word.partition("=")
        result[key] = value
    for word in given:
        key, equals, value = word.partition("=")
        if not key:
            raise UsageError(f"-e {word}: give NAME=VALUE")
        if equals:
            result[key] = value
        elif key in os.environ:
            result[key] = os.environ[key]
    return result
