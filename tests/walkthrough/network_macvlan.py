"""macvlan: a container is a device of its own on the network of the machine."""

from __future__ import annotations

import re

from tests.walkthrough.lesson import Lesson

MAC = "02:00:00:00:00:55"
#: Another machine on the wire, which is no more than a network namespace.
NEIGHBOUR = "ip netns exec neighbour"


def run(lesson: Lesson) -> None:
    """A container with a MAC address that its neighbours see."""
    wire(lesson)
    try:
        lesson.need_link("macvlan", "link wire0 type macvlan")
        device_of_its_own(lesson)
    finally:
        lesson.machine.shell("ip netns del neighbour; ip link del wire0", status=None)


def wire(lesson: Lesson) -> None:
    lesson.say("A wire from this machine to a neighbour.")
    lesson.host("ip netns add neighbour")
    lesson.host("ip link add wire0 type veth peer name wire1 netns neighbour")
    lesson.host("ip link set wire0 up && ip addr add 198.51.100.1/24 dev wire0")
    lesson.host(f"{NEIGHBOUR} ip addr add 198.51.100.2/24 dev wire1")
    lesson.host(f"{NEIGHBOUR} ip link set wire1 up")


def device_of_its_own(lesson: Lesson) -> None:
    subnet = "--subnet 198.51.100.0/24 --gateway 198.51.100.1"
    shown = lesson.engine(f"network create -d macvlan -o parent=wire0 {subnet} lan")
    lesson.check("made", shown, re.compile("lan|[0-9a-f]{64}"))
    lesson.start("device", f"--network lan --ip 198.51.100.55 --mac-address {MAC} base sleep 999")
    shown = lesson.engine("exec device cat /sys/class/net/eth0/address")
    lesson.check("it has the MAC address that it was given", shown, MAC)
    shown = lesson.host(f"{NEIGHBOUR} busybox ping -c 1 -W 5 198.51.100.55")
    lesson.check_that("the neighbour reaches it", "1 packets received" in shown, shown)
    shown = lesson.host(f"{NEIGHBOUR} ip neigh show 198.51.100.55")
    lesson.check_that("as a device with that address", f"lladdr {MAC}" in shown, shown)
    shown = lesson.host("ip -o link show wire0")
    lesson.check_that("which is not the machine's", f"link/ether {MAC}" not in shown, shown)
    shown = lesson.engine("exec device ping -c 1 -W 1 198.51.100.1", status=1)
    lesson.check_that("to the machine itself there is no way", "100% packet loss" in shown, shown)
