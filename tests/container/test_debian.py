"""A whole Debian, brought in as an image and worked in."""

from __future__ import annotations

import pytest

from tests.container.runner import Runner
from tests.real import debian

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

WORK = r"""
set -e
useradd --create-home --shell /bin/bash someone
su someone -c 'id -un; echo mine >~/file; ls -l ~/file'
printf '%s\n' 'Package: made' 'Version: 1' 'Architecture: all' 'Maintainer: x <x@example.org>' \
    'Description: made here' >/control
mkdir -p /made/DEBIAN /made/usr/share/made
mv /control /made/DEBIAN/control
echo content >/made/usr/share/made/file
dpkg-deb --build /made /made.deb >/dev/null
dpkg -i /made.deb >/dev/null
dpkg -L made | tail -1
dpkg --remove made >/dev/null
dpkg --audit
perl -e 'print "perl\n"'
seq 1 200000 | sort -R | sort -n | tail -1
find / -xdev -name '*.so*' | wc -l | grep -qv '^0$'
"""


def test_work_in_a_debian(runner: Runner) -> None:
    runner.unionfs("image", "import", "-q", str(debian.root()), "debian")
    shown = runner.run("--name", "work", "debian", "bash", "-c", WORK).splitlines()
    assert shown[0] == "someone"
    assert shown[1].split()[2:4] == ["someone", "someone"]
    assert shown[2:] == ["/usr/share/made/file", "perl", "200000"]
    runner.unionfs("snapshot", "commit", "worked", "work")
    script = "cat /home/someone/file; test ! -e /usr/share/made/file && echo gone"
    assert runner.run("--rm", "-u", "someone", "worked", "bash", "-c", script) == "mine\ngone\n"
    assert runner.run("--rm", "debian", "ls", "/home") == ""
