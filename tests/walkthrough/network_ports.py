"""Published ports: a port of the host leads into a container."""

from __future__ import annotations

import re

from tests.walkthrough.lesson import Lesson

SERVE = "mkdir /www; echo published >/www/index.html; exec httpd -f -h /www"
ASK = "curl -s --max-time 5 --retry 9 --retry-connrefused --retry-delay 1"


def run(lesson: Lesson) -> None:
    """Port 8080 of the host is port 80 of a web server; two servers cannot have one."""
    lesson.start("web", f"-p 8080:80 base sh -c '{SERVE}'")
    shown = lesson.engine("port web")
    lesson.check_that("80 is published as 8080", shown.startswith("80/tcp -> 0.0.0.0:8080"), shown)
    shown = lesson.host(f"{ASK} http://127.0.0.1:8080/")
    lesson.check("the host reaches the server", shown, "published")
    lesson.engine(
        "run -d --name other -p 8080:80 base httpd -f",
        status=126 if lesson.machine.name == "podman" else 125,
    )
    text = lesson.said
    lesson.check_that("the port is taken", re.search("in use|already allocated", text), text)
    lesson.remove("web")
    shown = lesson.host("curl -s --max-time 5 http://127.0.0.1:8080/", status=7)
    lesson.check("nobody answers any more", shown, "")
