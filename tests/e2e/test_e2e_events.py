"""events: what is told, in which order, filtered, replayed."""

from __future__ import annotations

import json
import time
from typing import Any

from support.engines import Engine


def replay(engine: Engine, *flags: str, since: float) -> list[dict[str, Any]]:
    out = engine.ok(
        "events", "--since", f"{since:.9f}", "--until", f"{time.time():.9f}", "--format", "{{json .}}", *flags
    )
    return [json.loads(line) for line in out.splitlines()]


def actions(events: list[dict[str, Any]]) -> list[str]:
    return [event["Action"] for event in events]


def test_a_containers_life(engine: Engine) -> None:
    begin = time.time()
    engine.docker("run", "--rm", "--name", "box", "-l", "a=1", "busybox", "sh", "-c", "exit 3")
    events = replay(engine, "-f", "type=container", since=begin)
    assert actions(events) == ["create", "attach", "start", "die", "destroy"]
    made = events[0]["Actor"]["ID"]
    assert {event["Actor"]["ID"] for event in events} == {made}
    assert events[0]["Actor"]["Attributes"] == {"a": "1", "image": "busybox", "name": "box"}
    assert events[3]["Actor"]["Attributes"]["exitCode"] == "3"
    stamps = [event["timeNano"] for event in events]
    assert stamps == sorted(stamps)
    assert all(event["time"] == event["timeNano"] // 10**9 for event in events)
    assert all(event["scope"] == "local" for event in events)


def test_stop_kill_pause_rename_exec(engine: Engine) -> None:
    begin = time.time()
    obeys = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", obeys)
    engine.ok("exec", "box", "true")
    engine.ok("pause", "box")
    engine.ok("unpause", "box")
    engine.ok("rename", "box", "other")
    engine.ok("kill", "other")
    engine.ok("wait", "other")
    engine.ok("start", "other")
    engine.ok("restart", "other")
    engine.ok("stop", "other")
    engine.ok("rm", "other")
    seen = [one.split(":")[0] for one in actions(replay(engine, "-f", "type=container", since=begin))]
    assert seen == [
        *("create", "start", "exec_create", "exec_start", "exec_die", "pause", "unpause", "rename", "kill", "die"),
        *("start", "kill", "die", "stop", "start", "restart", "kill", "die", "stop", "destroy"),
    ]


def test_filters(engine: Engine) -> None:
    begin = time.time()
    engine.ok("run", "--name", "one", "-l", "tier=front", "busybox", "true")
    engine.ok("run", "--name", "two", "busybox", "true")
    assert {e["Actor"]["Attributes"]["name"] for e in replay(engine, "-f", "container=one", since=begin)} == {
        "one"
    }
    assert set(actions(replay(engine, "-f", "event=die", since=begin))) == {"die"}
    assert len(replay(engine, "-f", "event=die", "-f", "event=start", since=begin)) == 4
    assert len(replay(engine, "-f", "event=die", "-f", "label=tier=front", since=begin)) == 1
    assert len(replay(engine, "-f", "event=die", "-f", "image=busybox", since=begin)) == 2
    assert replay(engine, "-f", "type=volume", since=begin) == []


def test_network_and_volume_events(engine: Engine) -> None:
    begin = time.time()
    engine.ok("run", "--rm", "-v", "named:/a", "busybox", "true")
    kinds = [(e["Type"], e["Action"]) for e in replay(engine, since=begin)]
    for wanted in [
        ("volume", "create"),
        ("network", "connect"),
        ("volume", "mount"),
        ("container", "start"),
        ("network", "disconnect"),
        ("volume", "unmount"),
    ]:
        assert wanted in kinds, wanted
    assert kinds.index(("network", "connect")) < kinds.index(("container", "start"))


def test_image_events(engine: Engine) -> None:
    begin = time.time()
    engine.ok("tag", "busybox", "mine/box:1")
    engine.ok("rmi", "mine/box:1")
    assert actions(replay(engine, "-f", "type=image", since=begin)) == ["tag", "untag"]


def test_live(engine: Engine) -> None:
    with engine.spawn(
        "events", "-f", "type=container", "--format", "{{.Action}} {{.Actor.Attributes.name}}"
    ) as client:
        assert client.stdout is not None
        time.sleep(0.3)
        engine.ok("run", "--name", "box", "busybox", "true")
        lines = [client.stdout.readline() for _ in range(4)]
    assert lines[0] == b"create box\n"
    assert lines[-1] == b"die box\n"


def test_until_ends_the_stream(engine: Engine) -> None:
    begin = time.monotonic()
    assert engine.docker("events", "--until", f"{time.time() + 0.5:.3f}", timeout=20).returncode == 0
    assert time.monotonic() - begin > 0.3


def test_headers_come_before_the_first_event(engine: Engine) -> None:
    from support.engines import UnixConnection

    connection = UnixConnection(engine.socket, timeout=5)
    try:
        connection.request("GET", "/events")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.getheader("Content-Type") in ("application/json", "application/jsonl")  # since API 1.52
        answer.close()
    finally:
        connection.close()


def test_the_epoch_is_a_bound(engine: Engine) -> None:
    engine.ok("create", "--name", "box", "busybox", "true")
    told = engine.told(0, "--filter", "container=box")
    assert " container create " in told
    assert engine.ok("events", "--until", "0", "--filter", "container=box") == ""


def test_a_containers_image_is_known_without_its_tag(engine: Engine) -> None:
    begin = time.time()
    engine.ok("create", "--name", "box", "busybox:latest", "true")
    told = engine.told(begin, "--filter", "image=busybox")
    assert "name=box" in told
