"""Ephemeral: what a container writes lives as long as the container, unless it is committed."""

from __future__ import annotations

from tests.walkthrough.lesson import ID, Lesson


def run(lesson: Lesson) -> None:
    """Write, restart, remove; then commit first."""
    gone_with_the_container(lesson)
    kept_by_commit(lesson)


def gone_with_the_container(lesson: Lesson) -> None:
    lesson.engine("run --name C1 base sh -c 'echo precious >/data/new'")
    shown = lesson.engine("start C1")
    lesson.check("the container can be started again", shown, "C1")
    lesson.engine("cp C1:/data/new new")
    lesson.check("and still has what it wrote", lesson.host("cat new"), "precious")
    lesson.remove("C1")
    shown = lesson.engine("run --name C1 base ls /data")
    lesson.check("a new one of that name has only what the image has", shown, "old")
    lesson.remove("C1")


def kept_by_commit(lesson: Lesson) -> None:
    lesson.say("A commit makes the container's layer one of an image.")
    lesson.engine("run --name C1 base sh -c 'echo precious >/data/new; rm /data/old'")
    lesson.check("it is an image now", lesson.engine("commit C1 kept"), ID)
    lesson.remove("C1")
    shown = lesson.engine("run --rm kept sh -c 'ls /data; cat /data/new'")
    lesson.check("containers of that image have it", shown, "new\nprecious")
    shown = lesson.engine("image inspect -f '{{len .RootFS.Layers}}' kept")
    lesson.check("which is base and one layer more", shown, "2")
    shown = lesson.engine("run --rm base ls /data")
    lesson.check("base is as it was", shown, "old")
