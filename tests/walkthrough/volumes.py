"""Volumes: files that outlive containers, and that several share."""

from __future__ import annotations

import json
import re

from tests.walkthrough.lesson import Lesson


def run(lesson: Lesson) -> None:
    """From create to prune."""
    create(lesson)
    write_and_read(lesson)
    remove(lesson)
    prune(lesson)


def create(lesson: Lesson) -> None:
    lesson.check("made", lesson.engine("volume create --driver unionfs data"), "data")
    shown = lesson.engine("volume ls --format '{{.Driver}} {{.Name}}'")
    lesson.check("ours is the only one", shown, "unionfs data")
    (found,) = json.loads(lesson.engine("volume inspect data"))
    lesson.check("the driver is ours", (found["Name"], found["Driver"]), ("data", "unionfs"))
    shown = lesson.host("unionfs volume ls")
    lesson.check_that("the same volume, asked for without the engine", "data" in shown, shown)


def write_and_read(lesson: Lesson) -> None:
    lesson.say("A writer, and a reader at the same time.")
    script = "echo one >/data/log; echo two >>/data/log; sleep 999"
    lesson.start("writer", f"-v data:/data base sh -c '{script}'")
    script = "until test $(wc -l </log/log) = 2; do sleep 0.1; done; cat /log/log"
    shown = lesson.engine(f"run --rm -v data:/log:ro base sh -c '{script}' 2>&1")
    lesson.check("the reader sees what is written", shown, "one\ntwo")
    lesson.engine("run --rm -v data:/log:ro base touch /log/no", status=1)
    lesson.check_that("but may not write", "Read-only file system" in lesson.said, lesson.said)
    lesson.remove("writer")
    shown = lesson.engine("run --rm -v data:/data base cat /data/log")
    lesson.check("what it wrote is still there", shown, "one\ntwo")


def remove(lesson: Lesson) -> None:
    lesson.say("A volume that somebody uses is not removed.")
    lesson.start("user", "-v data:/data base sleep 999")
    lesson.engine("volume rm data", status=2 if lesson.machine.name == "podman" else 1)
    lesson.check_that("it is in use", re.search("in use|being used", lesson.said), lesson.said)
    lesson.remove("user")
    lesson.check("now it goes", lesson.engine("volume rm data"), "data")
    lesson.check("none is left", lesson.engine("volume ls -q"), "")
    lesson.engine("volume inspect data", status=125 if lesson.machine.name == "podman" else 1)
    lesson.check_that("there is none", "no such volume" in lesson.said.lower(), lesson.said)


def prune(lesson: Lesson) -> None:
    lesson.say("Prune removes those that nobody uses.")
    for name in ("used", "unused"):
        lesson.check("made", lesson.engine(f"volume create --driver unionfs {name}"), name)
    lesson.engine("run --name user -v used:/data base true")
    shown = lesson.engine("volume prune -f")
    if lesson.machine.name == "docker":
        lesson.check("Docker prunes none of a plugin", shown, "Total reclaimed space: 0B")
        shown = lesson.engine("volume rm unused")
    lesson.check("the one is removed", shown, "unused")
    lesson.check("the other is there", lesson.engine("volume ls -q"), "used")
