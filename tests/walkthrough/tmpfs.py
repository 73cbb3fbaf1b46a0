"""tmpfs: files in memory, up to a limit, gone when the container stops."""

from __future__ import annotations

import re

from tests.walkthrough.lesson import Lesson


def run(lesson: Lesson) -> None:
    """A cache of 64 MiB."""
    lesson.start("cached", "--tmpfs /app/cache:size=64m base sleep 999")
    shown = lesson.engine("exec cached grep /app/cache /proc/mounts")
    lesson.check("a tmpfs of 64 MiB", shown, re.compile(r"tmpfs /app/cache tmpfs .*size=65536k.*"))
    lesson.engine("exec cached sh -c 'echo kept in memory >/app/cache/small; echo no >/app/disk'")
    fill = "dd if=/dev/zero of=/app/cache/big bs=1M count=100"
    lesson.engine(f"exec cached {fill}", status=1)
    lesson.check_that("it is full before 100 MiB", "No space left" in lesson.said, lesson.said)
    shown = lesson.engine("exec cached du -s -k /app/cache")
    lesson.check("at 64 MiB, to the page", shown, f"{64 << 10}\t/app/cache")
    upper = lesson.engine("inspect -f '{{.GraphDriver.Data.UpperDir}}' cached")
    lesson.check("the container's layer", upper, re.compile("/.*/diff"))
    shown = lesson.host(f"cd {upper}/app && find . -type f")
    lesson.check("has nothing of the cache", shown, "./disk")
    shown = lesson.engine("restart -t 0 cached")
    lesson.check("it starts anew", shown, re.compile("cached|[0-9a-f]{64}"))
    shown = lesson.engine("exec cached find /app -type f")
    lesson.check("the cache is empty, the layer is kept", shown, "/app/disk")
