"""An ordinary user for tests: who has no privilege, and what must be done to be that user."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Callable
from typing import Any

from tests import system
from tests.mounts import Layers
from tests.system import in_child

#: An ordinary user, and one that fusermount3 finds in /etc/passwd.
USER = pwd.getpwnam("nobody").pw_uid


def own(layers: Layers) -> None:
    """Give all layers to the user; what is in them too."""
    directories = [*layers.lowers, layers.upper, layers.work, layers.merged]
    command = ["chown", "-hR", f"{USER}:{USER}"]
    subprocess.run([*command, *(each for each in directories if each)], check=True)


def become_user() -> None:
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)
    system.die_with_parent()


def as_user(function: Callable[[], Any]) -> Any:
    return in_child(function, uid=USER, gid=USER)
