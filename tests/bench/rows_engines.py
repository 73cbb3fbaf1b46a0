"""Rows about engines: what a container's life on a union takes Podman, and its builds."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.bench.arena import Missing
from tests.bench.case import Case
from tests.bench.model import ENGINES, FREE, Goal, Row, Scale, Scenario
from tests.engines.ground import Ground
from tests.engines.images import busybox_tar
from tests.engines.ours import UNIONFS, linked
from tests.engines.podman import Podman

#: Those that Podman can be told of.
UNIONS = ("unionfs", "overlay", "fuse-overlayfs", "fuse-overlayfs-1")

#: For `--uidmap`: an image for which a chown of every file would be seen.
FILES = 5000
MAPPED = ("--uidmap", "0:20000:10000", "--gidmap", "0:20000:10000")

NO_SLOWER = Goal(1.0)

STEPS = """
FROM base
RUN mkdir /app && for n in $(seq 200); do echo $n >/app/$n; done
COPY context /app/context
RUN cat /app/* >/all 2>/dev/null || true
RUN chown -R 5:7 /app/context
RUN mv /app /srv
RUN rm /srv/1*
RUN tar cf /context.tar -C /srv context
RUN mkdir /unpacked && tar xf /context.tar -C /unpacked
RUN find / -xdev -type f >/list
RUN rm -r /unpacked /context.tar
"""


def nothing(_base: Path, _aside: Path, _scale: Scale) -> list[str]:
    """The engine has images of its own."""
    return []


@contextlib.contextmanager
def podman(case: Case, *, user: bool = False) -> Iterator[Podman]:
    """Podman on the union of *case*, with an image ``base``. Raises `Missing`."""
    for needed in ("podman", "runc", "tini", "busybox"):
        if shutil.which(needed) is None:
            raise Missing(f"{needed} is not installed")
    system = case.system
    program = UNIONFS if system.is_ours else Path(system.program)
    with contextlib.closing(Ground(case.ground.root)) as ground:
        made = Podman(
            ground, None if system.kind == "kernel" else linked(ground, program), user=user
        )
        made("import", str(busybox_tar(ground.base)), "base")
        yield made


def milliseconds(engine: Podman, case: Case, *words: str, times: int = 1) -> float:
    """What ``podman WORDS`` takes each time, *times* times, started by one shell."""
    script = 'for n in $(seq "$0"); do "$@" >/dev/null || exit; done'
    left = case.deadline - time.monotonic()
    begin = time.monotonic_ns()
    engine("-c", script, str(times), "podman", *words, program="sh", seconds=left)
    return (time.monotonic_ns() - begin) / 1e6 / times


def _start(row: str, case: Case, *, user: bool = False) -> dict[str, float]:
    run = ("run", "--rm", "--network", "none", "base", "true")
    with podman(case, user=user) as engine:
        engine(*run)  # the first one makes its directories and locks
        return {row: milliseconds(engine, case, *run, times=case.scale.count(10, 2))}


def _mapped_start(case: Case) -> dict[str, float]:
    """Of an image with many files; the first with its mapping, and others."""
    run = ("run", "--rm", "--network", "none", *MAPPED, "many", "true")
    with podman(case) as engine:
        make = f"mkdir /many; cd /many; for n in $(seq {FILES}); do echo $n >$n; done"
        engine("run", "--name", "making", "--network", "none", "base", "sh", "-c", make)
        engine("commit", "--quiet", "making", "many")
        first = milliseconds(engine, case, *run)
        return {
            "uidmap-first": first,
            "uidmap-start": milliseconds(engine, case, *run, times=case.scale.count(10, 2)),
        }


def _build(case: Case) -> dict[str, float]:
    with podman(case) as engine:
        directory = engine.ground.base / "build"
        (directory / "context").mkdir(parents=True)
        (directory / "Containerfile").write_text(STEPS)
        for number in range(100):
            (directory / "context" / f"file{number}").write_bytes(bytes(4096))
        command = ("build", "--quiet", "--network", "none", "--no-cache", str(directory))
        return {"build": milliseconds(engine, case, *command) / 1000}


def _commit(case: Case) -> dict[str, float]:
    count = case.scale.count(500, 20)
    with podman(case) as engine:
        change = (
            f"mkdir /new; for n in $(seq {count}); do head -c 1048576 /dev/urandom >/new/$n; done"
        )
        engine(
            *("run", "--name", "changed", "--network", "none", "base", "sh", "-c", change),
            seconds=case.seconds,
        )
        engine.ground.run("sync")
        return {"commit": milliseconds(engine, case, "commit", "--quiet", "changed", "kept") / 1000}


def scenario(
    name: str,
    rows: tuple[Row, ...],
    run: Callable[[Case], dict[str, float]],
    *,
    rounds: int = 1000,
    quick: bool = True,
) -> Scenario:
    """A scenario that each union does below Podman, in one that is new."""
    return Scenario(
        name,
        "engines",
        rows,
        nothing,
        run,
        rounds=rounds,
        seconds=300.0,
        only=UNIONS,
        quick=quick,
        modes=(FREE,),
        part=ENGINES,
    )


SCENARIOS = (
    scenario(
        "engine-start",
        (Row("start", "`podman run --rm`, from its start to its end", "ms", (NO_SLOWER,)),),
        partial(_start, "start"),
    ),
    scenario(
        "engine-rootless",
        (Row("rootless-start", "the same by an ordinary user", "ms", (NO_SLOWER,)),),
        partial(_start, "rootless-start", user=True),
    ),
    scenario(
        "engine-uidmap",
        (
            Row("uidmap-first", f"the same with `--uidmap`, {FILES} files: the first", "ms"),
            Row("uidmap-start", "and those after it", "ms", (NO_SLOWER,)),
        ),
        _mapped_start,
    ),
    scenario(
        "engine-build",
        (Row("build", "`podman build --no-cache`, ten steps", "s", (NO_SLOWER,)),),
        _build,
        rounds=3,
    ),
    scenario(
        "engine-commit",
        (Row("commit", "`podman commit` of 500 files of 1 MiB", "s", (NO_SLOWER,)),),
        _commit,
        rounds=3,
        quick=False,
    ),
)
