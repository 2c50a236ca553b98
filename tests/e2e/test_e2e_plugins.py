"""Plugins of volumes, networks and authorization, with real clients: a small plugin beside the daemon."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import Engine
from support.plugin import FakePlugin, Wires, running, volume_handlers

SOCKETS = Path("/run/docker/plugins")
pytestmark = pytest.mark.drayd_only("dockerd looks for plugins when it starts, and in the machine's own folder")


@pytest.fixture
def sockets(engine: Engine) -> Iterator[Path]:
    """The folder of plugins' sockets, empty and this test's own (the test runs in its own mount namespace)."""
    made = [path for path in (SOCKETS, *SOCKETS.parents) if not path.exists()]
    SOCKETS.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "plugins", SOCKETS], check=True)
    try:
        yield SOCKETS
    finally:
        subprocess.run(["umount", "-l", SOCKETS], check=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


@pytest.fixture
def plugin(sockets: Path, engine: Engine) -> Iterator[FakePlugin]:
    with running(sockets / "far.sock", ["VolumeDriver"], volume_handlers(engine.base / "far")) as found:
        yield found
        engine.remove_everything()


def test_volume_of_a_plugin(engine: Engine, plugin: FakePlugin) -> None:
    assert engine.ok("volume", "create", "-d", "far", "-o", "size=5", "data") == "data"
    shown = engine.inspect("data", kind="volume")
    assert (shown["Driver"], shown["Scope"], shown["Status"]) == ("far", "global", {"kind": "test"})
    assert shown["Mountpoint"] == str(engine.base / "far/data")
    engine.ok("run", "--rm", "-v", "data:/m", "busybox", "sh", "-c", "echo kept > /m/x")
    assert engine.ok("run", "--rm", "-v", "data:/m", "busybox", "cat", "/m/x") == "kept"
    engine.ok(
        "run", "--rm", "-v", "filled:/data", "--volume-driver", "far", "variants:volume", "cat", "/data/file"
    )
    assert (engine.base / "far/filled/file").read_text() == "from the image\n"
    rows = engine.ok("volume", "ls", "--format", "{{.Driver}} {{.Name}}").splitlines()
    assert sorted(rows) == ["far data", "far filled"]
    assert engine.get("/info")["Plugins"]["Volume"] == ["far", "local"]
    engine.ok("volume", "rm", "data", "filled")
    assert len(plugin.asked("VolumeDriver.Mount")) == len(plugin.asked("VolumeDriver.Unmount"))


def test_volumes_without_a_name_are_the_drivers_too(engine: Engine, plugin: FakePlugin) -> None:
    engine.ok("run", "--name", "box", "-v", "/m", "--volume-driver", "far", "busybox", "touch", "/m/x")
    ((mount),) = engine.inspect("box")["Mounts"]
    assert (mount["Driver"], mount["Destination"]) == ("far", "/m")
    assert (engine.base / "far" / mount["Name"] / "x").exists()
    engine.ok("rm", "-v", "box")
    assert plugin.asked("VolumeDriver.Remove") == [{"Name": mount["Name"]}]


def test_a_volume_that_was_deleted_behind_the_daemons_back_is_made_again(
    engine: Engine, plugin: FakePlugin
) -> None:
    engine.ok("volume", "create", "-d", "far", "data")
    assert "volume name must be unique" in engine.fails("volume", "create", "-d", "local", "data")
    shutil.rmtree(engine.base / "far/data")
    engine.ok("volume", "create", "-d", "far", "data")
    assert engine.inspect("data", kind="volume")["Mountpoint"] == str(engine.base / "far/data")
    shutil.rmtree(engine.base / "far/data")
    engine.ok("volume", "create", "-d", "local", "data")
    assert engine.inspect("data", kind="volume")["Driver"] == "local"


def test_mounted_again_after_a_restart_of_the_daemon(engine: Engine, plugin: FakePlugin) -> None:
    engine.ok("run", "-d", "--name", "box", "-v", "data:/m", "--volume-driver", "far", "busybox", "sleep", "300")
    (mounted,) = plugin.asked("VolumeDriver.Mount")[-1:]
    engine.kill()
    engine.start()
    engine.ok("rm", "-f", "box")
    engine.ok("volume", "rm", "data")
    assert plugin.asked("VolumeDriver.Unmount")[-1] == mounted, "the same id is given back"


def test_a_plugin_that_is_missing_or_refuses(engine: Engine, plugin: FakePlugin) -> None:
    message = engine.fails("volume", "create", "-d", "nosuch", "data")
    assert 'error looking up volume plugin nosuch: plugin "nosuch" not found' in message
    plugin.handlers["VolumeDriver.Mount"] = lambda _: {"Err": "the disk is on fire"}
    message = engine.fails("run", "--rm", "-v", "data:/m", "--volume-driver", "far", "busybox", "true", status=125)
    assert "error while mounting volume 'data': VolumeDriver.Mount: the disk is on fire" in message


def test_a_plugin_that_hangs_does_not_hang_the_daemon(engine: Engine, plugin: FakePlugin) -> None:
    engine.ok("volume", "create", "-d", "far", "data")
    plugin.hang("VolumeDriver.Mount")
    plugin.hang("VolumeDriver.List")
    engine.ok("create", "--name", "stuck", "-v", "data:/m", "busybox", "true")
    starting = [threading.Thread(target=engine.docker, args=("start", "stuck")) for _ in range(3)]
    for thread in starting:
        thread.start()
    while not plugin.asked("VolumeDriver.Mount"):
        time.sleep(0.01)
    assert engine.ok("run", "--rm", "-v", "plain:/m", "busybox", "echo", "on") == "on"
    assert engine.ok("ps", "-q") == ""
    answer = engine.get("/volumes")
    assert sorted(one["Name"] for one in answer["Volumes"]) == ["data", "plain"]
    assert 'plugin "far": VolumeDriver.List: no answer within 5 s' in answer["Warnings"][0]
    plugin.released.set()
    for thread in starting:
        thread.join()
    engine.ok("rm", "-f", "stuck")


# -- authorization


@pytest.fixture
def guard(sockets: Path, engine: Engine) -> Iterator[FakePlugin]:
    allow = {"AuthZPlugin.AuthZReq": lambda _: {"Allow": True}, "AuthZPlugin.AuthZRes": lambda _: {"Allow": True}}
    with running(sockets / "guard.sock", ["authz"], allow) as found:
        engine.restart(extra=["--authorization-plugin", "guard"])
        try:
            yield found
        finally:
            engine.stop()
            engine.start()


def test_every_request_is_shown(engine: Engine, guard: FakePlugin) -> None:
    assert engine.ok("run", "--rm", "-e", "SECRET=1", "busybox", "echo", "allowed") == "allowed"
    shown = {
        one["RequestUri"].partition("?")[0].rpartition("/")[2]: one for one in guard.asked("AuthZPlugin.AuthZReq")
    }
    assert {"_ping", "create", "start"} <= shown.keys()
    body = json.loads(base64.b64decode(shown["create"]["RequestBody"]))
    assert body["Env"] == ["SECRET=1"]
    assert shown["create"]["RequestMethod"] == "POST"
    created = [one for one in guard.asked("AuthZPlugin.AuthZRes") if "/create" in one["RequestUri"]]
    assert "Id" in json.loads(base64.b64decode(created[0]["ResponseBody"]))
    assert created[0]["ResponseStatusCode"] == 201
    assert engine.get("/info")["Plugins"]["Authorization"] == ["guard"]


def test_a_denial(engine: Engine, guard: FakePlugin) -> None:
    def decide(asked: dict[str, str]) -> dict[str, object]:
        return {"Allow": "/containers/create" not in asked["RequestUri"], "Msg": "no containers today"}

    guard.handlers["AuthZPlugin.AuthZReq"] = decide
    message = engine.fails("create", "busybox")
    assert "authorization denied by plugin guard: no containers today" in message
    assert engine.api("POST", "/containers/create", {"Image": "busybox"})[0] == 403
    assert engine.ok("ps", "-aq") == ""


def test_an_answer_that_is_denied_is_not_shown(engine: Engine, guard: FakePlugin) -> None:
    guard.handlers["AuthZPlugin.AuthZRes"] = lambda asked: {
        "Allow": "/info" not in asked["RequestUri"],
        "Msg": "hm",
    }
    status, _, body = engine.api("GET", "/info")
    assert status == 403
    assert json.loads(body) == {"message": "authorization denied by plugin guard: hm"}


@pytest.mark.parametrize(
    "answer", [{}, {"Allow": "yes"}, {"Allow": 1}, {"Allow": True, "Err": "broken"}, b"nonsense"]
)
def test_only_a_clear_yes_is_a_yes(engine: Engine, guard: FakePlugin, answer: object) -> None:
    guard.handlers["AuthZPlugin.AuthZReq"] = lambda _: answer
    assert engine.api("GET", "/info")[0] in (403, 500)
    guard.handlers["AuthZPlugin.AuthZReq"] = lambda _: {"Allow": True}


def test_a_body_too_large_to_be_shown_fails(engine: Engine, guard: FakePlugin) -> None:
    status, _, body = engine.api("POST", "/containers/create", {"Image": "busybox", "Env": ["x" * (5 << 20)]})
    assert status == 400
    assert b"request body is larger than" in body
    assert not guard.asked("AuthZPlugin.AuthZReq") or "create" not in guard.calls[-1][1].get("RequestUri", "")


def test_a_dead_plugin_denies_in_clear_words(engine: Engine, guard: FakePlugin) -> None:
    guard.close()
    status, _, body = engine.api("GET", "/info")
    assert status == 500
    assert 'plugin guard failed with error: plugin "guard"' in json.loads(body)["message"]
    assert os.path.exists(engine.socket)


# -- networks and addresses


@pytest.fixture
def wires(sockets: Path, engine: Engine) -> Iterator[tuple[FakePlugin, Wires]]:
    made = Wires()
    with running(sockets / "wires.sock", ["NetworkDriver", "IpamDriver"], made.handlers()) as found:
        yield found, made
        engine.remove_everything()


def test_network_of_a_plugin(engine: Engine, wires: tuple[FakePlugin, Wires]) -> None:
    plugin, made = wires
    made.gateway = "10.9.0.1"
    options = ("-o", "colour=red", "--ipam-driver", "wires", "--ipam-opt", "k=v")
    network = engine.ok("network", "create", "-d", "wires", *options, "--subnet", "10.9.0.0/24", "shop")
    shown = engine.inspect("shop", kind="network")
    assert (shown["Driver"], shown["Scope"], shown["Options"]) == ("wires", "local", {"colour": "red"})
    assert (shown["IPAM"]["Driver"], shown["IPAM"]["Options"]) == ("wires", {"k": "v"})
    assert shown["IPAM"]["Config"] == [{"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1"}]
    assert plugin.asked("NetworkDriver.CreateNetwork")[0]["NetworkID"] == network
    assert "wires" in engine.get("/info")["Plugins"]["Network"]
    engine.ok("run", "-d", "--name", "box", "--network", "shop", "--ip", "10.9.0.7", "busybox", "sleep", "300")
    assert "inet 10.9.0.7/24" in engine.ok("exec", "box", "ip", "address", "show", "wire0")
    assert "default via 10.9.0.1" in engine.ok("exec", "box", "ip", "route")
    assert engine.ok("run", "--rm", "--network", "shop", "busybox", "nslookup", "-type=a", "box.").count(
        "10.9.0.7"
    )
    engine.ok("run", "-d", "--name", "other", "busybox", "sleep", "300")
    engine.ok("network", "connect", "shop", "other")
    assert "inet 10.9.0.2/24" in engine.ok("exec", "other", "ip", "address", "show", "wire0")
    engine.ok("network", "disconnect", "shop", "other")
    assert "wire0" not in engine.ok("exec", "other", "ip", "address")
    engine.kill()
    engine.start()
    assert engine.inspect("box")["NetworkSettings"]["Networks"]["shop"]["IPAddress"] == "10.9.0.7"
    assert "has active endpoints" in engine.fails("network", "rm", "shop")
    engine.ok("rm", "-f", "box", "other")
    engine.ok("network", "rm", "shop")
    assert (made.networks, made.endpoints, made.addresses) == ({}, {}, set())


def test_a_network_plugin_that_dies(engine: Engine, wires: tuple[FakePlugin, Wires]) -> None:
    plugin, _ = wires
    engine.ok("network", "create", "-d", "wires", "--subnet", "10.9.0.0/24", "shop")
    plugin.handlers["NetworkDriver.CreateEndpoint"] = lambda _: {"Err": "out of wire"}
    message = engine.fails("run", "--name", "box", "--network", "shop", "busybox", "true", status=125)
    assert 'plugin "wires": NetworkDriver.CreateEndpoint: out of wire' in message
    plugin.close()
    assert 'plugin "wires" not found' in engine.fails("start", "box")
    assert engine.ok("run", "--rm", "busybox", "echo", "on") == "on"
    assert 'network shop cannot be removed without its plugin: plugin "wires" not found' in engine.fails(
        "network", "rm", "-f", "shop"
    )
    engine.ok("rm", "box")
    engine.ok("network", "create", "unused")
    assert engine.ok("network", "prune", "-f") == "Deleted Networks:\nunused"  # the other one hinders none
    with running(plugin.path, ["NetworkDriver"], Wires().handlers()):
        engine.ok("network", "rm", "shop")
