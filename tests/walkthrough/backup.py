"""Backup and restore: a temporary container writes a volume's files to a directory of the host."""

from __future__ import annotations

from tests.walkthrough.lesson import Lesson
from tests.walkthrough.machine import PLACE

#: What a restore must bring back: name, mode, owner, size, time.
LIST = "find . -type f -exec stat -c '%n %a %u:%g %s %Y' {} + | sort"


def run(lesson: Lesson) -> None:
    """Backup, loss, restore into a new volume, and a look at both."""
    before = make(lesson)
    back_up(lesson)
    restore(lesson, before)


def make(lesson: Lesson) -> str:
    lesson.check("made", lesson.engine("volume create --driver unionfs data"), "data")
    script = "mkdir sub; echo one >one; seq 9999 >sub/many; chown 5:7 one; chmod 600 sub/many"
    lesson.engine(f'run --rm -v data:/v -w /v base sh -c "{script}"')
    shown = lesson.engine(f'run --rm -v data:/v -w /v base sh -c "{LIST}"')
    names = [line.split()[0] for line in shown.splitlines()]
    lesson.check("it has two files", names, ["./one", "./sub/many"])
    return shown


def back_up(lesson: Lesson) -> None:
    lesson.say("A temporary container has both, the volume and the host's directory.")
    lesson.host("mkdir backup")
    both = f"-v data:/v:ro -v {PLACE}/backup:/backup"
    lesson.engine(f"run --rm {both} base tar czf /backup/data.tar.gz -C /v .")
    shown = lesson.host("tar tzf backup/data.tar.gz | sort")
    lesson.check("the archive has them", shown, "./\n./one\n./sub/\n./sub/many")
    lesson.check("the volume is lost", lesson.engine("volume rm data"), "data")


def restore(lesson: Lesson, before: str) -> None:
    lesson.check("a new one", lesson.engine("volume create --driver unionfs restored"), "restored")
    both = f"-v restored:/v -v {PLACE}/backup:/backup:ro"
    lesson.engine(f"run --rm {both} base tar xzf /backup/data.tar.gz -C /v")
    shown = lesson.engine(f'run --rm -v restored:/v -w /v base sh -c "{LIST}"')
    lesson.check("modes, owners, sizes and times are those of the old", shown, before)
    shown = lesson.engine("run --rm -v restored:/v base sh -c 'cat /v/one; tail -n 1 /v/sub/many'")
    lesson.check("and so are the contents", shown, "one\n9999")
