"""Rows about whole trees: listed, walked, unpacked, copied, removed; builds and checkouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bench import fixtures
from tests.bench.case import Case
from tests.bench.model import Goal, Row, Scale, Scenario
from tests.bench.rows_names import TRIP, plain

WHEELS = 6
MODULES = 60

FO_AND_KERNEL = (Goal(0.4), Goal(3.0, "kernel"))


def _entries(scale: Scale) -> int:
    return scale.count(20_000, 1000)


def _small(scale: Scale) -> int:
    """Files of an archive, in directories of a hundred."""
    return scale.count(10_000, 1000)


def _one_directory(base: Path, _aside: Path, scale: Scale) -> list[str]:
    return fixtures.one_directory(base, _entries(scale))


def _checkout(base: Path, _aside: Path, scale: Scale) -> list[str]:
    lowers = fixtures.tree(base, scale.count(10, 2), scale.count(20, 5), 100)
    fixtures.repository(base / "low" / "tree")
    return lowers


def _archive(base: Path, aside: Path, scale: Scale) -> list[str]:
    lowers = fixtures.grid(base, _small(scale) // 100, 100, 1000)
    fixtures.archive(aside / "pack.tar", _small(scale) // 100, 100)
    return lowers


def _origin(base: Path, aside: Path, scale: Scale) -> list[str]:
    (base / "low").mkdir()
    fixtures.tree(aside, scale.count(5, 1), scale.count(8, 3), 50)
    root = aside / "low" / "tree"
    for path in root.rglob("*.txt"):
        path.write_text(f"{path}\n" * 20)
    fixtures.repository(root)
    return ["f/low"]


def _environment(base: Path, aside: Path, scale: Scale) -> list[str]:
    lowers = fixtures.virtual_environment(base)
    (aside / "wheels").mkdir()
    for package in range(WHEELS):
        fixtures.wheel(aside / "wheels", package, scale.count(MODULES, 10))
    return lowers


def _list(case: Case) -> dict[str, float]:
    with case.mounted() as root:
        done = case.measure("list", root / "big", _entries(case.scale))
    return {f"list-{label}": phase.each for label, phase in done.items()}


def _walk(case: Case) -> dict[str, float]:
    with case.mounted() as root:
        done = case.measure("walk", root / "tree", _entries(case.scale))
    return {f"walk-{label}": phase.each for label, phase in done.items()}


def _command(name: str, *argv: str) -> Callable[[Case], dict[str, float]]:
    """A command over the checkout `{tree}`, on a fresh mount and again."""

    def run(case: Case) -> dict[str, float]:
        with case.mounted() as root:
            words = [word.format(tree=root / "tree") for word in argv]
            done = case.measure("command-twice", *words)
        return {f"{name}-{label}": phase.milliseconds for label, phase in done.items()}

    return run


def _untar(case: Case) -> dict[str, float]:
    files = _small(case.scale)
    with case.mounted() as root:
        made = case.command("tar", "xf", case.aside / "pack.tar", "-C", root)
        removed = case.command("rm", "-rf", root / "pack")
    return {
        "untar": made.nanoseconds / 1000 / files,
        "rm-rf": removed.nanoseconds / 1000 / files,
    }


def _copy(case: Case) -> dict[str, float]:
    with case.mounted() as root:
        # Half of the tree, into a directory that is new.
        half = [root / f"d{number:03d}" for number in range(_small(case.scale) // 200)]
        done = case.measure("copy", root / "copy", *half)["run"]
    return {"cp-a": done.nanoseconds / 1000 / (len(half) * 101)}


def _clone(case: Case) -> dict[str, float]:
    with case.mounted() as root:
        safe = ("git", "-c", "safe.directory=*", "clone", "-q", "--no-hardlinks")
        done = case.command(*safe, case.aside / "low" / "tree", root / "clone")
    return {"git-clone": done.milliseconds}


def _pip(case: Case) -> dict[str, float]:
    packages = [f"bench_package_{number}" for number in range(WHEELS)]
    union = case.union()
    python = union.root / "venv" / "bin" / "python"
    options = ("--no-index", "--no-deps", "--no-cache-dir", "--disable-pip-version-check")
    where = ("--find-links", case.aside / "wheels")
    with case.mounted(union):
        install = (python, "-I", "-m", "pip", "install", "-q", *options, *where)
        installed = case.command(*install, *packages)
    with case.mounted(union):
        code = f"import {', '.join(packages)}"
        done = case.measure("command-twice", python, "-I", "-c", code)
    return {
        "pip-install": installed.milliseconds,
        "import-cold": done["cold"].milliseconds,
        "import-warm": done["warm"].milliseconds,
    }


def _over_checkout(name: str, what: str, *argv: str) -> Scenario:
    rows = (
        plain(f"{name}-cold", f"{what} over 20,000 files", *FO_AND_KERNEL, unit="ms"),
        plain(f"{name}-warm", "the same again", *FO_AND_KERNEL, unit="ms"),
    )
    return Scenario(name, "trees", rows, _checkout, _command(name, *argv), writes=False)


GIT_STATUS = ("git", "--no-optional-locks", "-c", "safe.directory=*", "-C", "{tree}", "status")

SCENARIOS = (
    Scenario(
        "list",
        "trees",
        (
            Row(
                "list-cold",
                "list and lstat of 20,000 entries, each",
                goals=(Goal(0.6), *TRIP),
                trips=True,
            ),
            plain("list-warm", "the same again", Goal(1.2, "kernel")),
        ),
        _one_directory,
        _list,
        writes=False,
    ),
    Scenario(
        "walk",
        "trees",
        (
            Row(
                "walk-cold",
                "walk of a tree of 20,000 files, each",
                goals=(*FO_AND_KERNEL, *TRIP),
                trips=True,
            ),
            plain("walk-warm", "the same again", *FO_AND_KERNEL),
        ),
        _checkout,
        _walk,
        writes=False,
    ),
    _over_checkout("find", "`find -type f`", "find", "{tree}", "-type", "f"),
    _over_checkout("du", "`du -s`", "du", "-s", "{tree}"),
    _over_checkout("git-status", "`git status`", *GIT_STATUS),
    Scenario(
        "untar",
        "trees",
        (
            Row("untar", "`tar xf` of 10,000 files, each", goals=(Goal(0.5), *TRIP), trips=True),
            Row("rm-rf", "`rm -rf` of them, each", goals=(Goal(0.5), *TRIP), trips=True),
        ),
        _archive,
        _untar,
    ),
    Scenario(
        "cp-a",
        "trees",
        (Row("cp-a", "`cp -a` of a lower tree, each", goals=(Goal(0.5), *TRIP), trips=True),),
        _archive,
        _copy,
    ),
    Scenario(
        "venv",
        "trees",
        (
            plain(
                "pip-install", "`pip install` of 6 wheels with 360 modules", Goal(0.7), unit="ms"
            ),
            plain("import-cold", "a process that imports them", Goal(0.7), unit="ms"),
            plain("import-warm", "the same again", Goal(1.2, "kernel"), unit="ms"),
        ),
        _environment,
        _pip,
        quick=False,
        seconds=180.0,
    ),
    Scenario(
        "git-clone",
        "trees",
        (plain("git-clone", "`git clone` of 2,000 files", Goal(0.7), unit="ms"),),
        _origin,
        _clone,
    ),
)
