"""`dray inspect --as-run`: the line it prints is run, and makes a container of the same ask."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from support.engines import Engine, dray

SOURCE = Path(__file__).resolve().parents[2] / "src"

ASKS = {
    "plain": ["busybox", "echo", "it's $HOME"],
    "image": ["variants:web"],
    "much": [
        *(
            "-d",
            "-e",
            "A=b c",
            "-l",
            "x=y z",
            "-p",
            "127.0.0.1::80",
            "-m",
            "64m",
            "--cpus",
            "0.5",
            "--pids-limit",
            "50",
        ),
        *(
            "--restart",
            "on-failure:3",
            "--tmpfs",
            "/t:size=4m",
            "-v",
            "named:/v:ro",
            "--cap-drop",
            "ALL",
            "--init",
        ),
        *("--mount", "type=tmpfs,target=/u,tmpfs-size=1m", "--ulimit", "nofile=100:200", "-w", "/w", "-u", "app"),
        *("--health-cmd", "true", "--health-interval", "90s", "--stop-timeout", "0", "--log-opt", "max-size=1m"),
        *("--device", "/dev/null:/dev/x:r", "--sysctl", "net.core.somaxconn=9", "--add-host", "db:192.0.2.1"),
        *(
            "--security-opt",
            "no-new-privileges",
            "--security-opt",
            "systempaths=unconfined",
            "--dns",
            "192.0.2.53",
        ),
        *("--hostname", "h", "--entrypoint", "sleep", "busybox", "600"),
    ],
    "network": ["-d", "--network", "name=own,alias=other,ip=172.29.6.7", "busybox", "sleep", "600"],
}


def ask(engine: Engine, name: str) -> dict[str, Any]:
    found = engine.inspect(name)
    config = {key: value for key, value in found["Config"].items() if value != found["Id"][:12]}
    network = found["NetworkSettings"]["Networks"].get("own") or {}
    return {
        "config": config,
        "host": found["HostConfig"],
        "aliases": network.get("Aliases"),
        "ip": network.get("IPAMConfig"),
    }


@pytest.mark.drayd_only("the line is told by dray's own client, whose defaults are drayd's")
@pytest.mark.parametrize("kind", sorted(ASKS))
def test_the_line_makes_the_same_container(engine: Engine, kind: str) -> None:
    engine.ok("network", "create", "--subnet", "172.29.6.0/24", "own")
    try:
        engine.ok("run", "--name", "box", *ASKS[kind]) if kind != "image" else engine.ok(
            "run", "-d", "--name", "box", *ASKS[kind]
        )
        first = ask(engine, "box")
        line = shlex.split(dray(engine, "inspect", "--as-run", "box"))
        assert line[:3] == ["dray", "run", "--name=box"]
        assert len(line) <= len(ASKS[kind]) + 5  # nothing but what was asked
        engine.ok("rm", "-f", "box")
        dray(engine, *line[1:])
        assert ask(engine, "box") == first
    finally:
        engine.ok("rm", "-f", "box")
        engine.ok("network", "rm", "own")
