"""Bridge networks: containers of one reach each other, by name in a network of one's own."""

from __future__ import annotations

import json
import re

from tests.walkthrough.lesson import Lesson

SERVE = "mkdir /www; echo hello >/www/index.html; exec httpd -f -h /www"


def run(lesson: Lesson) -> None:
    """The default bridge, then ``my_bridge``."""
    default(lesson)
    own(lesson)
    connect(lesson)
    remove(lesson)


def address(lesson: Lesson, container: str, interface: str = "eth0") -> str:
    """The address of *container*, as its own ``ip`` tells."""
    shown = lesson.engine(f"exec {container} ip -4 -o addr show {interface}")
    pattern = re.compile(rf"\d+: {interface} +inet (\d+\.\d+\.\d+\.\d+)/\d+ .*")
    lesson.check(f"{container} has an address", shown, pattern)
    found = pattern.fullmatch(shown)
    assert found is not None
    return found[1]


def default(lesson: Lesson) -> None:
    lesson.say("The default bridge: containers reach each other by address.")
    shown = lesson.engine("network ls --format '{{.Name}} {{.Driver}}'")
    name = "podman" if lesson.machine.name == "podman" else "bridge"
    lesson.check_that("it is there", f"{name} bridge" in shown.splitlines(), shown)
    lesson.start("C1", "base sleep 999")
    lesson.start("C2", "base sleep 999")
    first, second = address(lesson, "C1"), address(lesson, "C2")
    lesson.check_that("in one network", first.split(".")[:3] == second.split(".")[:3], second)
    reaches(lesson, "C1", second)
    unknown(lesson, "C1", "C2")


def reaches(lesson: Lesson, container: str, other: str) -> None:
    shown = lesson.engine(f"exec {container} ping -c 1 -W 5 {other}")
    answered = "1 packets received" in shown
    lesson.check_that(f"{container} reaches {other}", answered, shown)


def unknown(lesson: Lesson, container: str, name: str) -> None:
    lesson.engine(f"exec {container} ping -c 1 -W 1 {name}", status=1)
    lesson.check_that(f"{container} knows no {name}", "bad address" in lesson.said, lesson.said)


def own(lesson: Lesson) -> None:
    lesson.say("A network of one's own: names resolve.")
    shown = lesson.engine("network create my_bridge")
    lesson.check("made", shown, re.compile("my_bridge|[0-9a-f]{64}"))
    shown = lesson.engine("network ls --format '{{.Name}} {{.Driver}}'")
    lesson.check_that("it is a bridge", "my_bridge bridge" in shown.splitlines(), shown)
    lesson.start("web", f"--network my_bridge base sh -c '{SERVE}'")
    lesson.start("client", "--network my_bridge base sleep 999")
    reaches(lesson, "client", "web")
    shown = lesson.engine("exec client wget -q -O - http://web/")
    lesson.check("and its page, by name", shown, "hello")


def connect(lesson: Lesson) -> None:
    lesson.say("A container that runs is connected to one more network.")
    lesson.engine("network connect my_bridge C1")
    shown = lesson.engine("exec C1 wget -q -O - http://web/")
    lesson.check("now C1 reaches web by name", shown, "hello")
    found = json.loads(lesson.engine("inspect -f '{{json .NetworkSettings.Networks}}' C1"))
    name = "podman" if lesson.machine.name == "podman" else "bridge"
    lesson.check("C1 is in both", sorted(found), sorted([name, "my_bridge"]))
    lesson.engine("network disconnect my_bridge C1")
    unknown(lesson, "C1", "web")


def remove(lesson: Lesson) -> None:
    lesson.say("A network in use is not removed; afterwards it is.")
    podman = lesson.machine.name == "podman"
    lesson.engine("network rm my_bridge", status=2 if podman else 1)
    text = lesson.said
    lesson.check_that("it is in use", re.search("being used|has active endpoints", text), text)
    for name in ("web", "client"):
        lesson.remove(name)
    lesson.check("it goes", lesson.engine("network rm my_bridge"), "my_bridge")
