"""Bind mounts: a directory of the host in a container, in both directions."""

from __future__ import annotations

from tests.walkthrough.lesson import Lesson
from tests.walkthrough.machine import PLACE

SITE = f"{PLACE}/site"


def run(lesson: Lesson) -> None:
    """A directory that the host and a container both write, then one that is only read."""
    both_directions(lesson)
    read_only(lesson)


def both_directions(lesson: Lesson) -> None:
    lesson.host("mkdir site && echo from the host >site/page")
    lesson.start("web", f"-v {SITE}:/site base sleep 999")
    shown = lesson.engine("exec web cat /site/page")
    lesson.check("the container sees the host's file", shown, "from the host")
    lesson.host("echo changed on the host >site/page")
    shown = lesson.engine("exec web cat /site/page")
    lesson.check("and its change, at once", shown, "changed on the host")
    lesson.engine("exec web sh -c 'echo from the container >/site/new'")
    lesson.check("and the host the container's", lesson.host("cat site/new"), "from the container")
    shown = lesson.engine("diff web")
    lesson.check_that("the container's layer has none of it", "/site/" not in shown, shown)
    lesson.remove("web")
    lesson.check("the files outlive it", lesson.host("ls site"), "new\npage")


def read_only(lesson: Lesson) -> None:
    read_only = f"-v {SITE}:/site:ro base"
    shown = lesson.engine(f"run --rm {read_only} cat /site/page")
    lesson.check("with :ro it is read", shown, "changed on the host")
    lesson.engine(f"run --rm {read_only} sh -c 'echo no >/site/page'", status=1)
    lesson.check_that("but not written", "Read-only file system" in lesson.said, lesson.said)
    lesson.engine(f"run --rm {read_only} rm /site/new", status=1)
    lesson.check_that("nor removed", "Read-only file system" in lesson.said, lesson.said)
    shown = lesson.host("cat site/page site/new")
    lesson.check("it is as it was", shown, "changed on the host\nfrom the container")
