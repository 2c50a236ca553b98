"""Containers of one user-defined network find each other by name."""

from __future__ import annotations

import pytest

from support.engines import Engine, until


@pytest.fixture
def network(engine: Engine) -> str:
    engine.ok("network", "create", "app")
    return "app"


def resolves(engine: Engine, box: str, name: str) -> str:
    done = engine.docker("exec", box, "ping", "-c", "1", "-W", "2", name)
    return done.stdout if done.returncode == 0 else ""


def test_by_name_alias_and_short_id(engine: Engine, network: str) -> None:
    engine.ok("run", "-d", "--name", "web", "--network", network, "busybox", "sleep", "600")
    identity = engine.ok(
        *(
            "run",
            "-d",
            "--name",
            "db",
            "--network",
            network,
            "--network-alias",
            "database",
            "busybox",
            "sleep",
            "600",
        )
    )
    for name in ("db", "database", identity[:12]):
        until(lambda name=name: resolves(engine, "web", name), what=name)
    assert resolves(engine, "db", "web")
    engine.ok("run", "-d", "--name", "alone", "busybox", "sleep", "600")
    assert not resolves(engine, "alone", "db")
    engine.ok("rm", "-f", "web", "db", "alone")
    engine.ok("network", "rm", network)


@pytest.mark.drayd_only("containers of dockerd end when it is killed")
def test_names_follow_restarts_connections_and_the_daemon(engine: Engine, network: str) -> None:
    engine.ok("run", "-d", "--name", "web", "--network", network, "busybox", "sleep", "600")
    engine.ok("run", "-d", "--name", "late", "busybox", "sleep", "600")
    engine.ok("network", "connect", "--alias", "found", network, "late")
    until(lambda: resolves(engine, "web", "found"), what="a container connected later")
    engine.ok("network", "disconnect", network, "late")
    until(lambda: not resolves(engine, "web", "found"), what="its name to go")
    engine.ok("network", "connect", network, "late")
    until(lambda: resolves(engine, "web", "late"), what="its name again")
    engine.kill()
    engine.start()
    assert resolves(engine, "web", "late")
    engine.ok("rm", "-f", "late")
    until(lambda: not resolves(engine, "web", "late"), what="the name of a removed container to go")
    engine.ok("rm", "-f", "web")
    engine.ok("network", "rm", network)
