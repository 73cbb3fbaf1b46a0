"""The volume plugin: what volumes of the engine cannot, and what happens when it is killed."""

from __future__ import annotations

import os
import re

from tests.walkthrough.lesson import Lesson
from tests.walkthrough.machine import PLACE


def run(lesson: Lesson) -> None:
    """Views, limits, a restart, and the same volume without Docker."""
    lesson.need(os.path.exists("/dev/loop-control"), "this kernel has no loop devices")
    by_name(lesson)
    view(lesson)
    limits(lesson)
    restarts(lesson)
    without_docker(lesson)


def create(lesson: Lesson, name: str, *options: str) -> None:
    """Make the volume *name*."""
    words = "".join(f" -o {option}" for option in options)
    lesson.check("made", lesson.engine(f"volume create -d unionfs{words} {name}"), name)


def by_name(lesson: Lesson) -> None:
    lesson.say("Docker finds the plugin by its socket's name.")
    shown = lesson.host("ls /run/docker/plugins")
    lesson.check("there it is", shown, "unionfs.sock")
    lesson.engine("run --rm --volume-driver unionfs -v auto:/v base sh -c 'echo kept >/v/file'")
    shown = lesson.engine("volume inspect -f '{{.Driver}}' auto")
    lesson.check("a volume is made when it is first used", shown, "unionfs")


def view(lesson: Lesson) -> None:
    lesson.say("A view of a directory: what is changed in it stays in the volume.")
    lesson.host("mkdir site; echo of the host >site/page")
    create(lesson, "view", f"from={PLACE}/site")
    script = "cat /v/page; echo changed >/v/page; touch /v/new"
    shown = lesson.engine(f"run --rm -v view:/v base sh -c '{script}'")
    lesson.check("it begins with the directory's files", shown, "of the host")
    shown = lesson.engine("run --rm -v view:/v base sh -c 'ls /v; cat /v/page'")
    lesson.check("the volume keeps the changes", shown, "new\npage\nchanged")
    lesson.check(
        "the directory has none", lesson.host("ls site; cat site/page"), "page\nof the host"
    )


def limits(lesson: Lesson) -> None:
    lesson.say("Volumes with a limit: in memory, and on a disk of their own.")
    create(lesson, "memory", "type=tmpfs", "o=size=16m")
    create(lesson, "disk", "driver=block", "size=64m")
    for name, most in (("memory", 16), ("disk", 64)):
        fill = f"dd if=/dev/zero of=/v/big bs=1M count={most * 2}"
        lesson.engine(f"run --rm -v {name}:/v base {fill}", status=1)
        full = "No space left on device" in lesson.said
        lesson.check_that(f"{name} does not take {most * 2} MiB", full, lesson.said)


def restarts(lesson: Lesson) -> None:
    lesson.say("The plugin is killed and started again, while a container uses a volume.")
    lesson.start("user", "-v auto:/v base sleep 999")
    plugin = lesson.machine.plugin
    plugin.stop("KILL")
    shown = lesson.engine("exec user sh -c 'echo more >>/v/file; cat /v/file'")
    lesson.check("the container goes on without it", shown, "kept\nmore")
    plugin.start()
    shown = lesson.engine("run --rm -v auto:/v base cat /v/file")
    lesson.check("after it, others use the volume, too", shown, "kept\nmore")
    lesson.engine("volume rm auto", status=1)
    lesson.check_that("it is known to be used", "in use" in lesson.said, lesson.said)
    lesson.remove("user")


def without_docker(lesson: Lesson) -> None:
    lesson.say("The same volumes by our own command.")
    shown = lesson.host("unionfs volume ls -q")
    lesson.check("all four", shown.split(), ["auto", "disk", "memory", "view"])
    lesson.host("unionfs volume backup -q auto auto.tar")
    shown = lesson.host("tar -xOf auto.tar --wildcards '*file'")
    lesson.check("a backup", shown, "kept\nmore")
    lesson.check("it is removed", lesson.engine("volume rm auto"), "auto")
    shown = lesson.engine("volume ls -q")
    lesson.check("in both", shown, "disk\nmemory\nview")
    shown = lesson.host("unionfs volume ls --filter driver=block")
    lesson.check("one is on the block driver", shown, re.compile(r"DRIVER.*\nblock +disk"))
