"""The host's own network, and none at all."""

from __future__ import annotations

import re

from tests.walkthrough.lesson import Lesson

ASK = "curl -s --max-time 5 --retry 9 --retry-connrefused --retry-delay 1"


def run(lesson: Lesson) -> None:
    """``--network host``, then ``--network none``."""
    host(lesson)
    none(lesson)


def host(lesson: Lesson) -> None:
    lesson.say("host: the container has the host's interfaces, names and ports.")
    outside = lesson.host("readlink /proc/self/ns/net")
    lesson.check("the host's network", outside, re.compile(r"net:\[\d+\]"))
    inside = lesson.engine("run --rm --network host base readlink /proc/self/ns/net")
    lesson.check("the container's network is the host's", inside, outside)
    serve = "mkdir /www; echo on the host >/www/index.html; exec httpd -f -p 8088 -h /www"
    lesson.start("web", f"--network host base sh -c '{serve}'")
    shown = lesson.host(f"{ASK} http://127.0.0.1:8088/")
    lesson.check("what it serves is on the host's port", shown, "on the host")
    lesson.remove("web")


def none(lesson: Lesson) -> None:
    lesson.say("none: the container has nothing but a loopback of its own.")
    shown = lesson.engine("run --rm --network none base ls /sys/class/net")
    lesson.check("one interface", shown, "lo")
    lesson.engine("run --rm --network none base ping -c 1 -W 1 192.0.2.1", status=1)
    lesson.check_that("nobody is reached", "unreachable" in lesson.said, lesson.said)
