"""Layers: an image is read-only and stored once; each container has a writable layer over it."""

from __future__ import annotations

import re

from tests.walkthrough.lesson import ID, Lesson

DOCKERFILE = r"""FROM base
RUN echo of the image >/etc/motd
RUN head -c 8388608 /dev/urandom >/data/big && rm /data/old
"""


def run(lesson: Lesson) -> None:
    """Three containers over one image."""
    build(lesson)
    start_three(lesson)
    write_in_one(lesson)
    look_at_the_disk(lesson)


def build(lesson: Lesson) -> None:
    lesson.say("An image is a stack of layers: one for each step that changes files.")
    (lesson.machine.directory / "Dockerfile").write_text(DOCKERFILE)
    shown = lesson.host("cat Dockerfile")
    lesson.check("two steps over base", shown.count("RUN"), 2)
    lesson.check("an image is built", lesson.engine("build -q -t app ."), ID)
    shown = lesson.engine("image inspect -f '{{len .RootFS.Layers}}' base app")
    lesson.check("base has one layer, app that one and two more", shown, "1\n3")


def start_three(lesson: Lesson) -> None:
    lesson.say("Three containers of it, each with a writable layer of its own.")
    for name in ("C1", "C2", "C3"):
        lesson.start(name, "app sleep 999")
    shown = lesson.engine("exec C1 sh -c 'head -n 1 /proc/self/mountinfo'")
    lesson.check("its root file system is ours", shown, re.compile(r".* / / .* - fuse\.unionfs .*"))


def write_in_one(lesson: Lesson) -> None:
    lesson.say("What C1 writes, the others do not see.")
    lesson.engine("exec C1 sh -c 'echo changed by C1 >>/etc/motd; rm /data/big'")
    shown = lesson.engine("exec C1 cat /etc/motd")
    lesson.check("C1 sees its change", shown, "of the image\nchanged by C1")
    for name in ("C2", "C3"):
        shown = lesson.engine(f"exec {name} sh -c 'cat /etc/motd; stat -c %s /data/big'")
        lesson.check(f"{name} sees the image as it was", shown, "of the image\n8388608")
    shown = lesson.engine("diff C1")
    lesson.check_that(
        "C1's layer changes a file and deletes one",
        {"C /etc/motd", "D /data/big"} <= set(shown.splitlines()),
        shown,
    )


def look_at_the_disk(lesson: Lesson) -> None:
    lesson.say("On the disk: the write copied the file up, into C1's layer.")
    upper = lesson.engine("inspect -f '{{.GraphDriver.Data.UpperDir}}' C1")
    lesson.check("this is $upper, what C1 has written", upper, re.compile(r"/.*/diff"))
    lesson.keep("upper", upper)
    shown = lesson.host("cat $upper/etc/motd")
    lesson.check("the whole file, changed", shown, "of the image\nchanged by C1")
    shown = lesson.host("stat -c '%F %t:%T' $upper/data/big")
    lesson.check("and a whiteout for the deleted one", shown, "character special file 0:0")
    other = lesson.engine("inspect -f '{{.GraphDriver.Data.UpperDir}}' C2")
    lesson.check_that("C2 has one of its own", other not in {upper, ""}, other)
    lesson.keep("other", other)
    lesson.check("which has no files", lesson.host("find $other -type f -size +0"), "")
    one_base(lesson)


def one_base(lesson: Lesson) -> None:
    lesson.say("Below are the image's layers, the same for all three.")
    below = "inspect -f '{{.GraphDriver.Data.LowerDir}}' C1 C2 C3"
    shown = lesson.engine(f"{below} | tr : '\\n' | sort | uniq -c")
    layers = [path for count, path in map(str.split, shown.splitlines()) if count == "3"]
    lesson.check("three layers are below each of them", len(layers), 3)
    lesson.keep("layers", " ".join(layers))
    shown = lesson.host("find $layers -path '*/diff/etc/motd' -exec cat {} +")
    lesson.check("where the file is as it was", shown, "of the image")
    lesson.keep("storage", str(lesson.machine.storage))
    shown = lesson.host("find $storage -xdev -name big -type f | wc -l")
    lesson.check("the image's data is on the disk once", shown, "1")
