"""Storage drivers: one image and one test on each, with the time and the space that each takes."""

from __future__ import annotations

import json
import os
import re
import time
from typing import Final, NamedTuple

from tests.walkthrough.lesson import ID, Lesson

MIB: Final = 1 << 20
BIG: Final = 32 * MIB

DOCKERFILE: Final = f"""FROM base
RUN head -c {BIG} /dev/urandom >/data/big && echo layer >/home/user/two
RUN rm -r /data/old /home/user && mkdir /home/user && echo layer >/home/user/three
"""

#: What is done in each container: a byte is added to a large file, one is removed, one is made.
TEST: Final = (
    "echo >>/data/big; rm /etc/words; echo made >/data/new;"
    " ls /data /etc /home/user; md5sum </data/big"
)
SAME: Final = "the same as in the engine"


class Figures(NamedTuple):
    """Of one form of storage: seconds, and bytes on the disk."""

    name: str
    #: Until the image is there, until a container has come and gone, and until one with the test.
    layers: float
    start: float
    test: float
    #: What the image takes, and what the test has added.
    image: int
    change: int


def run(lesson: Lesson) -> None:
    """Import, start, change."""
    lesson.need(os.path.exists("/dev/loop-control"), "this kernel has no loop devices")
    archive(lesson)
    expected = in_engine(lesson)
    overlay = in_store(lesson, "overlay", expected)
    lesson.check("whiteouts are devices", lesson.host("find overlay -type c | wc -l"), "3")
    aufs = as_aufs(lesson, expected)
    block = in_store(lesson, "block", expected)
    newest = "block/block/images/$(ls -t block/block/images | head -n 1)"
    shown = lesson.host(f"qemu-img info --backing-chain {newest} | grep -c '^image: '")
    lesson.check_that("the container's image lies over those of the layers", int(shown) > 3, shown)
    table(lesson, overlay, aufs, block)


def archive(lesson: Lesson) -> None:
    lesson.say("The image: a large file, a deleted one and a replaced directory, in three layers.")
    (lesson.machine.directory / "Dockerfile").write_text(DOCKERFILE)
    lesson.check("built", lesson.engine("build -q -t app ."), ID)
    lesson.engine("save -o app.tar app 2>/dev/null")
    shown = lesson.host("stat -c %s app.tar")
    lesson.check_that("saved with its data", int(shown) > BIG, shown)


def in_engine(lesson: Lesson) -> str:
    """What the test shows in a container of the engine, which must be the same everywhere."""
    shown = lesson.engine(f"run --rm app sh -c '{TEST}'")
    wanted = r"/data:\nbig\nnew\n\n/etc:\n(?:.+\n)+\n/home/user:\nthree\n[0-9a-f]{32}  -"
    lesson.check("the test, in a container of the engine", shown, re.compile(wanted))
    (words,) = (part for part in shown.split("\n\n") if part.startswith("/etc:"))
    lesson.check_that("without what it removes", "words" not in words, words)
    # Engines have files of their own in /etc.
    return shown.replace(words, "")


def without_etc(shown: str) -> str:
    return "\n\n".join("" if part.startswith("/etc:") else part for part in shown.split("\n\n"))


def in_store(lesson: Lesson, driver: str, expected: str) -> Figures:
    """The image in a store of ours with that driver."""
    lesson.say(f"{driver}: a store of ours, without an engine.")
    store = f"--root {driver} --driver {driver}"
    bring = f"unionfs image import -q {store} app.tar app"
    layers = timed(lesson, bring, "the image is there", "app:latest")
    image = space(lesson, driver)
    start = timed(lesson, f"unionfs run {store} --rm app true", "a container came and went", "")
    test = timed(lesson, f"unionfs run {store} --name C1 app sh -c '{TEST}'", SAME, expected)
    return Figures(driver, layers, start, test, image, space(lesson, driver) - image)


def as_aufs(lesson: Lesson, expected: str) -> Figures:
    """The image's layers as they are in its archive, where a file `.wh.NAME` hides NAME."""
    lesson.say("AUFS's form: the archive's layers as they are, under a union.")
    lesson.host("mkdir -p app aufs/1 aufs/2 aufs/3 upper work merged; tar -xf app.tar -C app")
    (manifest,) = json.loads(lesson.host("cat app/manifest.json"))
    archives = manifest["Layers"]
    lesson.check("the archive has three layers", len(archives), 3)
    unpack = "; ".join(
        f"tar -xf app/{archive} -C aufs/{number}" for number, archive in enumerate(archives, 1)
    )
    layers = timed(lesson, unpack, "unpacked", "")
    shown = lesson.host("cd aufs && find . -name '.wh.*' | sort")
    lesson.check("whiteouts are files", shown, "./3/data/.wh.old\n./3/home/user/.wh.two")
    mount = "unionfs mount -o lowerdir=aufs/3:aufs/2:aufs/1,upperdir=upper,workdir=work merged"
    umount = "unionfs umount merged"
    image = space(lesson, "aufs")
    start = timed(lesson, f"{mount} && chroot merged true && {umount}", "mounted and unmounted", "")
    test = timed(lesson, f"{mount} && chroot merged sh -c '{TEST}' && {umount}", SAME, expected)
    return Figures("aufs", layers, start, test, image, space(lesson, "upper"))


def timed(lesson: Lesson, script: str, fact: str, expected: str) -> float:
    """Run *script*, which must show what is *expected*; the seconds it took."""
    began = time.monotonic()
    shown = lesson.host(script)
    seconds = time.monotonic() - began
    lesson.check(fact, without_etc(shown), expected)
    return seconds


def space(lesson: Lesson, directory: str) -> int:
    """The bytes that *directory* takes on the disk."""
    shown = lesson.host(f"du -s -B1 {directory}")
    lesson.check(f"on the disk: {directory}", shown, re.compile(rf"\d+\t{directory}"))
    return int(shown.split()[0])


def table(lesson: Lesson, overlay: Figures, aufs: Figures, block: Figures) -> None:
    rows = [f"{'':10}{'layers':>9}{'start':>9}{'test':>9}{'image':>11}{'change':>11}"]
    for one in (overlay, aufs, block):
        seconds = "".join(f"{value:7.2f} s" for value in one[1:4])
        sizes = "".join(f"{value / MIB:7.1f} MiB" for value in one[4:])
        rows.append(f"{one.name:10}{seconds}{sizes}")
    lesson.say("The same image and the same test:", *rows)
    for one in (overlay, aufs):
        whole = BIG < one.change < BIG + 2 * MIB
        lesson.check_that(f"{one.name}: a changed file is copied whole", whole, one.change)
    lesson.check_that("block: only its clusters", 0 < block.change < 4 * MIB, block.change)
