"""An overlay network: containers of two hosts in one network, which vxlan carries."""

from __future__ import annotations

import re
from contextlib import closing

from tests.walkthrough.lesson import ID, Lesson
from tests.walkthrough.machine import Machine, join

SERVE = "mkdir /www; hostname >/www/index.html; exec httpd -f -h /www"


def run(lesson: Lesson) -> None:
    """Two dockerds, which are the nodes of a swarm."""
    lesson.need_link("vxlan", "type vxlan id 42 dstport 4789")
    one = lesson.machine
    with closing(Machine("docker", "two ")) as two:
        one.prompt = "one "
        try:
            addresses = join(one, two, "192.0.2")
            swarm(lesson, two, addresses)
            network(lesson)
            containers(lesson, two)
            service(lesson, two)
        finally:
            one.prompt = ""
            for node in (two, one):
                node.shell("docker rm -f $(docker ps -aq); docker swarm leave --force", status=None)
            one.shell("ip link del wire", status=None)


def swarm(lesson: Lesson, two: Machine, addresses: tuple[str, str]) -> None:
    lesson.say(f"Two hosts, {addresses[0]} and {addresses[1]}, become one swarm.")
    shown = lesson.engine(f"swarm init --advertise-addr {addresses[0]}")
    lesson.check_that("the first is its manager", "is now a manager" in shown, shown)
    token = lesson.engine("swarm join-token -q worker")
    lesson.check("what a worker needs to know", token, re.compile("SWMTKN-1-[0-9a-z-]+"))
    join_it = f"swarm join --token {token} --advertise-addr {addresses[1]} {addresses[0]}:2377"
    shown = lesson.engine(join_it, on=two)
    lesson.check("the second joins", shown, "This node joined a swarm as a worker.")
    shown = lesson.engine("node ls --format '{{.Status}} {{.Availability}} {{.ManagerStatus}}.'")
    nodes = ["Ready Active .", "Ready Active Leader."]
    lesson.check("both are ready", sorted(shown.splitlines()), nodes)


def network(lesson: Lesson) -> None:
    shown = lesson.engine("network create -d overlay --attachable my_overlay")
    lesson.check("a network of the swarm", shown, re.compile("[0-9a-z]{25}"))
    shown = lesson.engine("network ls --filter driver=overlay --format '{{.Name}} {{.Scope}}'")
    lesson.check("beside its own, for published ports", shown, "ingress swarm\nmy_overlay swarm")


def containers(lesson: Lesson, two: Machine) -> None:
    lesson.say("A container on each host.")
    serve = f"run -d --name web --hostname web --network my_overlay base sh -c '{SERVE}'"
    lesson.check("a server on the first", lesson.engine(serve), ID)
    client = "run -d --name client --network my_overlay base sleep 999"
    lesson.check("a client on the second", lesson.engine(client, on=two), ID)
    shown = lesson.engine("exec client ping -c 1 -W 5 web", on=two)
    lesson.check_that("the client reaches the server by name", "1 packets received" in shown, shown)
    shown = lesson.engine("exec client wget -q -O - http://web/", on=two)
    lesson.check("and its page", shown, "web")
    script = "for net in $HOME/exec/netns/1-*; do nsenter --net=$net ip -d link show; done"
    shown = lesson.host(f"{script} | grep -o 'vxlan id .* dstport [0-9]*'", on=two)
    carried = re.compile(r"(vxlan id \d+ .*dstport 4789\n?)+")
    lesson.check("what carries it between the hosts is vxlan", shown, carried)


def service(lesson: Lesson, two: Machine) -> None:
    lesson.say("A service, of which the swarm runs a task on each host.")
    options = "--mode global --network my_overlay --endpoint-mode dnsrr --no-resolve-image -d"
    command = f"service create {options} --name tasks base sh -c '{SERVE}'"
    shown = lesson.engine(command)
    lesson.check("it is made", shown, re.compile("[0-9a-z]{25}"))
    ask = f"{lesson.machine.name} service ls --format '{{{{.Name}}}} {{{{.Replicas}}}}'"
    shown = lesson.host(f"until {ask} | grep 2/2; do sleep 0.2; done")
    lesson.check("two tasks run", shown, "tasks 2/2")
    for machine in (lesson.machine, two):
        shown = lesson.engine("ps --filter name=tasks -q", on=machine)
        lesson.check("one is here", shown, re.compile("[0-9a-f]{12}"))
    pages = "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://tasks/; done"
    shown = lesson.engine(f'exec client sh -c "{pages}" | sort -u', on=two)
    lesson.check("both answer to its name", len(shown.split()), 2)
    lesson.check("it is removed", lesson.engine("service rm tasks"), "tasks")
