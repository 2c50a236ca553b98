"""The daemon killed at each of its failpoints in turn: after its next start the kernel is as the records say.

Each verb is a scenario: how it stands before, what is done while the daemon dies, and how it is brought back. The
names come from `failpoints.names`, so that a new failpoint of a known verb is covered at once.
"""

from __future__ import annotations

import contextlib
import http.client
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from dray.base import failpoints
from support.engines import Engine
from support.netstate import agree

pytestmark = pytest.mark.drayd_only("it has the failpoints")

NET, OTHER = "alpha", "zeta"  # by their names, `alpha` takes the default route over from the default bridge
TMPFS = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m")
RUN = ("run", "-d", "--init=false", "--stop-signal", "KILL")


@dataclass
class Scenario:
    """One verb. `act` is a request (method, path, body), `again` makes it possible once more without passing the
    verb's failpoints; a daemon that starts passes them itself if `at_boot`."""

    prepare: Callable[[Engine], None]
    act: tuple[str, str, Any]
    again: Callable[[Engine], None]
    at_boot: bool = False


def nothing(engine: Engine) -> None:
    """Nothing."""


def quiet(engine: Engine, *words: str) -> None:
    """A command that may have nothing to do."""
    engine.docker(*words)


def peers(engine: Engine) -> None:
    """Two networks with a container each, which are in nobody's way."""
    for name in (NET, OTHER):
        engine.ok("network", "create", name)
        words = ("--dns", f"{engine.subnet}1", "--network", name)  # nobody listens there: refused at once
        engine.ok("run", "-d", "--name", f"peer-{name}", *words, "busybox", "sleep", "600")


def box(engine: Engine) -> None:
    peers(engine)
    engine.ok(
        *(*RUN, "--name", "box", "-p", "18080:80", "-p", "127.0.0.1:18053:53/udp", "--network", OTHER),
        *("busybox", "sleep", "600"),
    )


def connected(engine: Engine) -> None:
    box(engine)
    engine.ok("network", "connect", NET, "box")


def made(engine: Engine) -> None:
    """A container ready to start: two networks, ports, a volume that needs mounting."""
    if "peer-alpha" not in engine.ok("ps", "--format", "{{.Names}}"):
        peers(engine)
        engine.ok("volume", "create", *TMPFS, "scratch")
    engine.ok("rm", "-f", "box")
    engine.ok(
        *("create", "--name", "box", "-p", "18080:80", "-p", "127.0.0.1:18053:53/udp", "--network", NET),
        *("-v", "scratch:/scratch", "--ipc", "shareable", "busybox", "sleep", "600"),
    )
    engine.ok("network", "connect", OTHER, "box")


def running(engine: Engine) -> None:
    made(engine)
    engine.ok("start", "box")


def start(engine: Engine) -> None:
    quiet(engine, "start", "box")


VOLUME = {"Name": "vol", "DriverOpts": {"type": "tmpfs", "device": "tmpfs"}}

SCENARIOS: dict[str, Scenario] = {
    "network-create": Scenario(
        nothing,
        ("POST", "/networks/create", {"Name": "made", "Driver": "bridge"}),
        lambda engine: quiet(engine, "network", "rm", "made"),
    ),
    "network-remove": Scenario(
        lambda engine: quiet(engine, "network", "create", "made"),
        ("DELETE", "/networks/made", None),
        lambda engine: quiet(engine, "network", "create", "made"),
    ),
    "connect": Scenario(
        box,
        ("POST", f"/networks/{NET}/connect", {"Container": "box"}),
        lambda engine: quiet(engine, "network", "disconnect", NET, "box"),
    ),
    "disconnect": Scenario(
        connected,
        ("POST", f"/networks/{NET}/disconnect", {"Container": "box"}),
        lambda engine: quiet(engine, "network", "connect", NET, "box"),
    ),
    "start": Scenario(made, ("POST", "/containers/box/start", None), made),
    "stop": Scenario(running, ("POST", "/containers/box/stop?t=0", None), start, at_boot=True),
    "volume-create": Scenario(
        nothing, ("POST", "/volumes/create", VOLUME), lambda engine: quiet(engine, "volume", "rm", "-f", "vol")
    ),
    "volume-mount": Scenario(made, ("POST", "/containers/box/start", None), made),
    "volume-remove": Scenario(
        lambda engine: quiet(engine, "volume", "create", "vol"),
        ("DELETE", "/volumes/vol", None),
        lambda engine: quiet(engine, "volume", "create", "vol"),
    ),
}


def test_every_verb_has_a_scenario() -> None:
    elsewhere = {"edit", "discard", "restore"}  # test_e2e_edit.py, test_e2e_discarded_layers.py
    assert {name.partition(".")[0] for name in failpoints.names()} == set(SCENARIOS) | elsewhere


def dies(engine: Engine, act: tuple[str, str, Any]) -> None:
    """Do it, and see the daemon die of it."""
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        engine.api(*act)
    assert engine.daemon is not None
    assert engine.daemon.wait(20) == -signal.SIGKILL
    engine.daemon = None


def names_agree(engine: Engine) -> None:
    """The resolver gives the address of the record, or none."""
    memberships = engine.inspect("box")["NetworkSettings"]["Networks"]
    for network in (NET, OTHER):
        address = memberships.get(network, {}).get("IPAddress", "")
        told = engine.docker("exec", f"peer-{network}", "nslookup", "box", "127.0.0.11")
        if address:
            assert f"Address: {address}\n" in told.stdout, told
        else:
            assert told.returncode != 0, told


def hosts_agree(engine: Engine) -> None:
    """The container's /etc/hosts names itself by the addresses of its record, in whatever order."""
    shown = engine.inspect("box")
    addresses = [one["IPAddress"] for one in shown["NetworkSettings"]["Networks"].values()]
    lines = [line.split() for line in engine.ok("exec", "box", "cat", "/etc/hosts").splitlines()]
    assert sorted(words[0] for words in lines if shown["Config"]["Hostname"] in words[1:]) == sorted(addresses)


def newcomer_gets_a_free_address(engine: Engine) -> None:
    """Whoever comes next is given nobody's address (`agree` sees one given twice)."""
    for network in (NET, OTHER):
        engine.ok("run", "-d", "--name", f"new-{network}", "--network", network, "busybox", "sleep", "600")
    agree(engine, after="newcomers")
    engine.ok("rm", "-f", *(f"new-{network}" for network in (NET, OTHER)))


@pytest.fixture
def tidy(engine: Engine) -> Iterator[Engine]:
    """The engine, unarmed and without networks of ours afterwards."""
    yield engine
    if engine.daemon is None:
        engine.start()
    engine.remove_everything()
    engine.ok("network", "prune", "-f")


def restart(engine: Engine, name: str) -> None:
    """Start the daemon, armed with this failpoint or, without a name, with none."""
    if engine.daemon is not None:
        engine.kill()
    if name:
        engine.variables[failpoints.VARIABLE] = name
    try:
        engine.start()
    finally:
        engine.variables.pop(failpoints.VARIABLE, None)


@pytest.mark.parametrize("verb", SCENARIOS)
def test_killed_at_every_step(tidy: Engine, verb: str) -> None:
    engine, scenario = tidy, SCENARIOS[verb]
    scenario.prepare(engine)
    names = failpoints.names(verb)
    restart(engine, names[0])
    for name, following in zip(names, [*names[1:], ""], strict=True):
        dies(engine, scenario.act)
        restart(engine, "" if scenario.at_boot else following)
        agree(engine, after=name)
        here = engine.ok("ps", "--format", "{{.Names}}").split()
        with_peers = "peer-alpha" in here
        if with_peers:
            names_agree(engine)
        if "box" in here:
            hosts_agree(engine)
        scenario.again(engine)
        agree(engine, after=f"{name}, and once more")
        if scenario.at_boot:
            restart(engine, following)
    if with_peers:
        newcomer_gets_a_free_address(engine)
