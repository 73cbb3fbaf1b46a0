"""The manual pages and completions name what the program takes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from unionfs import __version__, options, optwords
from unionfs.cli import (
    diff,
    fuse_overlayfs,
    image,
    ls,
    mount8,
    mount_command,
    plugin,
    run,
    snapshot,
    umount,
    usage,
    volume,
)
from unionfs.cli.arguments import Grammar
from unionfs.fuse import SESSION_NAMES

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [
    "unionfs.1",
    "unionfs-run.1",
    "unionfs-snapshot.1",
    "unionfs-image.1",
    "unionfs-volume.1",
    "unionfs-plugin.1",
    "mount.unionfs.8",
]
COMPLETIONS = ["unionfs.bash", "_unionfs", "unionfs.fish"]

#: Of no use to somebody who types; taken because programs send them.
FOR_PROGRAMS = {"remount", *optwords._SETTLED, "default_permissions"}

#: What every command takes.
ASKING = {"h", "help", "V", "version"}

OWN = set(optwords._FLAGS) | set(optwords._VALUED)


def text_of(name: str) -> str:
    """Return the page as it reads, near enough: without requests and escapes."""
    text = (DOCS / name).read_text(encoding="utf-8")
    text = re.sub(r"\\\n", "", text)
    text = re.sub(r"\\f.", "", text).replace("\\-", "-").replace("\\e", "\\")
    return re.sub(r"^\.[A-Z]{1,2} ", "", text, flags=re.MULTILINE).replace('"', "")


def names(text: str) -> set[str]:
    return set(re.findall(r"[\w+]+", text))


def test_the_manual_describes_every_mount_option() -> None:
    missing = OWN | set(options.MOUNT_WORDS) | optwords._IGNORED | set(optwords._SETTLED)
    missing -= names(text_of("unionfs.1"))
    # Four that nobody gives, and whose opposites are there.
    assert missing <= {"norelatime", "nostrictatime"}


@pytest.mark.parametrize("name", COMPLETIONS)
def test_completions_offer_every_option_that_a_person_gives(name: str) -> None:
    text = (DOCS / "completions" / name).read_text(encoding="utf-8")
    wanted = (OWN | set(options.EFFECTIVE) | {"ro", "rw"}) - FOR_PROGRAMS
    assert wanted - names(text) == set()
    for word in (
        "mount",
        "umount",
        "ls",
        "diff",
        "run",
        "snapshot",
        "image",
        "volume",
        "plugin",
        *plugin.VERBS,
        *volume.VERBS,
        *snapshot.VERBS,
        *image.VERBS,
        *SESSION_NAMES,
    ):
        assert word in names(text)
    for flag in run._GRAMMAR.aliases.keys() | {"rm", "tmpfs", "entrypoint", "hostname", "name"}:
        assert flag in names(text)
    for flag in (
        *("lazy", "json", "foreground", "debug", "verbose", "session", "help", "version"),
        "socket",
    ):
        assert flag in names(text)


@pytest.mark.parametrize(
    ("page", "grammars"),
    [
        ("unionfs.1", [fuse_overlayfs._GRAMMAR]),
        ("unionfs.1", [mount_command._GRAMMAR, umount._GRAMMAR, ls._GRAMMAR, diff._GRAMMAR]),
        ("unionfs-run.1", [run._GRAMMAR]),
        ("unionfs-snapshot.1", [verb.grammar for verb in snapshot.VERBS.values()]),
        ("unionfs-image.1", [verb.grammar for verb in image.VERBS.values()]),
        ("unionfs-volume.1", [verb.grammar for verb in volume.VERBS.values()]),
        ("unionfs-plugin.1", [verb.grammar for verb in plugin.VERBS.values()]),
        ("mount.unionfs.8", [mount8._GRAMMAR]),
    ],
)
def test_the_manuals_describe_every_argument(page: str, grammars: list[Grammar]) -> None:
    text = text_of(page)
    for grammar in grammars:
        for name in grammar.flags | grammar.valued | set(grammar.aliases):
            if name == "session" and page == "mount.unionfs.8":
                continue  # as an option, session=
            if page not in ("unionfs.1", "mount.unionfs.8") and name in ASKING:
                continue  # as of every command
            assert re.search(rf"(?<!\S)--?{name}\b" if len(name) > 1 else rf"-\w*{name}", text), (
                name
            )


def test_the_help_describes_the_options_of_a_union() -> None:
    assert OWN - names(usage.MOUNT) == {"remount", "lowerdir+"}


@pytest.mark.parametrize("page", PAGES)
def test_the_manuals_are_of_this_version(page: str) -> None:
    assert f'"unionfs {__version__}"' in (DOCS / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_the_manuals_are_set_without_a_warning(page: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    command = ["groff", "-man", "-Tutf8", "-wall", "-Wbreak", "-z", str(DOCS / page)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    # A file of the administrator's, which not every user may read.
    assert [line for line in done.stderr.splitlines() if "man.local" not in line] == []


COMPLETE = r"""
compopt() { :; }
. "$1"
shift
COMP_LINE=$1 COMP_POINT=${#1}
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_unionfs
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["unionfs ", "um"], ["umount"]),
        (["unionfs ", "umount ", "--l"], ["--lazy"]),
        (["unionfs ", "ls ", "-"], ["--json", "--help", "--version"]),
        (["unionfs ", "mount ", "--session ", "p"], ["pyfuse3"]),
        (["unionfs ", "mount ", "-o ", "session", "="], ["auto", "device", "pyfuse3"]),
        (["unionfs ", "mount ", "-o ", "ro,passthrough", "=", "o"], ["on", "off"]),
        (["unionfs ", "mount ", "-o ", "placement", "=", "s"], ["spread"]),
        (["unionfs ", "mount ", "-o ", "low"], ["lowerdir=", "lowerdir+="]),
        (["unionfs ", "mount ", "-o ", "lowerdir", "=", "da"], ["data"]),
        (["unionfs ", "mount ", "-o ", "lowerdir", "=", "data", ":", "da"], ["data"]),
        (["unionfs ", "mount ", "-o ", "lowerdir", "=", "data,upp"], ["data,upperdir="]),
        (["unionfs ", "mount ", "-o ", "ro,redirect_dir", "=", "o"], ["on", "off"]),
        (["unionfs ", "diff ", "da"], ["data"]),
        (["unionfs ", "run ", "--re"], ["--read-only"]),
        (["unionfs ", "run ", "--rm ", "-v ", "da"], ["data"]),
        (["unionfs ", "run ", "--rm ", "-i ", "image ", "da"], ["data"]),
        (["unionfs ", "snap"], ["snapshot"]),
        (["unionfs ", "snapshot ", "c"], ["commit", "capture", "cleanup"]),
        (["unionfs ", "snapshot ", "umount ", "--l"], ["--lazy"]),
        (["unionfs ", "snapshot ", "ls ", "--driver ", "o"], ["overlay"]),
        (["unionfs ", "snapshot ", "ls ", "--root ", "da"], ["data"]),
        (["unionfs ", "image ", "i"], ["import", "inspect"]),
        (["unionfs ", "image ", "import ", "da"], ["data"]),
        (["unionfs ", "image ", "export ", "--format ", "d"], ["docker-archive"]),
        (["unionfs ", "volume ", "cl"], ["clone", "cleanup"]),
        (["unionfs ", "volume ", "create ", "--opt ", "t"], ["type="]),
        (["unionfs ", "volume ", "backup ", "--compression ", "z"], ["zstd"]),
        (["unionfs ", "volume ", "umount ", "da"], ["data"]),
        (["unionfs ", "plugin ", "v"], ["volume"]),
        (["unionfs ", "plugin ", "volume ", "--s"], ["--socket", "--storage-opt"]),
        (["unionfs ", "plugin ", "volume ", "--socket ", "da"], ["data"]),
        (["unionfs ", "data ", "da"], ["data"]),
    ],
)
def test_bash_completes(tmp_path: Path, pieces: list[str], expected: list[str]) -> None:
    """The words as readline cuts them, at "=" and ":"."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    (tmp_path / "data").mkdir()
    script = DOCS / "completions/unionfs.bash"
    words = [piece.strip() for piece in pieces]
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", str(script), "".join(pieces), *words],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
    )
    assert (done.stdout.splitlines(), done.stderr) == (expected, "")
