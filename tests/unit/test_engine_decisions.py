"""The engine's pure decisions, by tables of values."""

import pytest

from dray.api import models as api
from dray.base.errors import InvalidParameter
from dray.engine import clock, detachkeys, merge, restart, signals, top, updating, views
from dray.engine.health import after_probe, probe_command
from dray.engine.model import Health, HealthProbe, State
from dray.engine.sandbox import parse_port, port_asks

SECOND = 10**9


@pytest.mark.parametrize(
    ("policy", "code", "count", "by_hand", "at_boot", "again"),
    [
        ("no", 1, 0, False, False, False),
        ("", 1, 0, False, False, False),
        ("always", 0, 0, False, False, True),
        ("always", 0, 0, True, False, False),
        ("always", 0, 0, True, True, True),
        ("unless-stopped", 0, 0, False, True, True),
        ("unless-stopped", 0, 0, True, True, False),
        ("on-failure", 0, 0, False, False, False),
        ("on-failure", 1, 0, False, False, True),
        ("on-failure", 1, 3, False, False, False),
        ("on-failure", 1, 2, False, False, True),
    ],
)
def test_restart_policies(policy, code, count, by_hand, at_boot, again):
    policy = api.RestartPolicy(name=policy, maximum_retry_count=3)
    decided = restart.should_restart(
        policy, exit_code=code, restart_count=count, manually_stopped=by_hand, at_boot=at_boot
    )
    assert decided is again


def test_the_pause_between_restarts_doubles_until_a_good_run():
    back_off = restart.BackOff()
    assert [back_off.after_run_of(1) for _ in range(4)] == [0.1, 0.2, 0.4, 0.8]
    assert back_off.after_run_of(11) == 0.1
    for _ in range(20):
        longest = back_off.after_run_of(0)
    assert longest == 60.0


@pytest.mark.parametrize(
    ("text", "number"), [("KILL", 9), ("sigterm", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)]
)
def test_signals(text, number):
    assert signals.parse(text) == number


@pytest.mark.parametrize("text", ["", "NOPE", "0", "65", "SIG", "-1", "_DFL"])
def test_unknown_signals(text):
    with pytest.raises(InvalidParameter, match="invalid signal"):
        signals.parse(text)


@pytest.mark.parametrize(
    ("text", "keys"),
    [("", b"\x10\x11"), ("ctrl-a,b", b"\x01b"), ("ctrl-@", b"\0"), ("q", b"q"), ("ctrl-[", b"\x1b")],
)
def test_detach_keys(text, keys):
    assert detachkeys.parse(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "foo", "ctrl-p,,q"])
def test_wrong_detach_keys(text):
    with pytest.raises(InvalidParameter, match="Unknown character"):
        detachkeys.parse(text)


@pytest.mark.parametrize(
    ("entry", "cmd", "image_entry", "image_cmd", "line"),
    [
        (None, None, None, ["sh"], ["sh"]),
        (None, ["ls"], ["e"], ["c"], ["e", "ls"]),
        (None, None, ["e"], ["c"], ["e", "c"]),
        (["x"], None, ["e"], ["c"], ["x"]),
        (["x"], ["y"], ["e"], ["c"], ["x", "y"]),
        ([""], ["y"], ["e"], ["c"], ["y"]),
        ([], ["y"], ["e"], ["c"], ["y"]),
    ],
)
def test_the_command_line_of_ask_and_image(entry, cmd, image_entry, image_cmd, line):
    merged = merge.merged(
        api.ContainerConfig(entrypoint=entry, cmd=cmd), api.ContainerConfig(entrypoint=image_entry, cmd=image_cmd)
    )
    path, args = merge.command(merged)
    assert [path, *args] == line


def test_no_command_at_all():
    with pytest.raises(InvalidParameter, match="no command specified"):
        merge.command(merge.merged(api.ContainerConfig(), api.ContainerConfig()))


def test_environment_of_the_ask_wins():
    merged = merge.merged(api.ContainerConfig(env=["A=1"]), api.ContainerConfig(env=["PATH=/bin", "A=0"]))
    assert merged.env == ["A=1", "PATH=/bin"]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1700000000", 1700000000 * SECOND),
        ("1700000000.5", 1700000000 * SECOND + SECOND // 2),
        ("2023-11-14T22:13:20Z", 1700000000 * SECOND),
        ("2023-11-14T23:13:20+01:00", 1700000000 * SECOND),
        ("1h30m", 1700000000 * SECOND - 5400 * SECOND),
    ],
)
def test_timestamps(text, moment):
    assert clock.parse_timestamp(text, reference=1700000000 * SECOND) == moment


def test_times_are_written_as_go_writes_them():
    assert clock.rfc3339(0) == "0001-01-01T00:00:00Z"
    assert clock.rfc3339(1700000000 * SECOND) == "2023-11-14T22:13:20Z"
    assert clock.rfc3339(1700000000 * SECOND + 120) == "2023-11-14T22:13:20.00000012Z"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State(), "Created"),
        (State(status="running", started_at=1), "Up 5 minutes"),
        (State(status="running", started_at=1, health=Health()), "Up 5 minutes (health: starting)"),
        (State(status="paused", started_at=1), "Up 5 minutes (Paused)"),
        (State(status="exited", started_at=1, finished_at=1, exit_code=3), "Exited (3) 5 minutes ago"),
        (State(status="exited"), "Created"),
    ],
)
def test_status_column(state, text):
    assert views.status_text(state, now=300 * SECOND + 1) == text


def test_ports_of_an_ask():
    host = api.HostConfig(
        port_bindings={
            "80/tcp": [api.PortBinding(host_port="8080"), api.PortBinding(host_ip="127.0.0.1", host_port="90-92")],
            "53/udp": None,
        }
    )
    shown = [(ask.protocol, ask.container_port, ask.host_ip, ask.first, ask.last) for ask in port_asks(host)]
    assert shown == [("tcp", 80, "", 8080, 8080), ("tcp", 80, "127.0.0.1", 90, 92), ("udp", 53, "", 0, 0)]


@pytest.mark.parametrize("text", ["x/tcp", "80/icmp", "70000", "-1"])
def test_wrong_ports(text):
    with pytest.raises(InvalidParameter, match="invalid port specification"):
        parse_port(text)


def test_health_needs_retries_in_a_row_and_forgives_the_start():
    def probe(code):
        return HealthProbe(start=0, end=1, exit_code=code, output="")

    health = Health()
    after_probe(health, probe(1), retries=2, in_start_period=True)
    assert (health.status, health.failing_streak) == ("starting", 0)
    after_probe(health, probe(0), retries=2, in_start_period=False)
    after_probe(health, probe(1), retries=2, in_start_period=False)
    assert (health.status, health.failing_streak) == ("healthy", 1)
    after_probe(health, probe(1), retries=2, in_start_period=False)
    assert health.status == "unhealthy"
    for _ in range(9):
        after_probe(health, probe(0), retries=2, in_start_period=False)
    assert (health.status, len(health.log)) == ("healthy", 5)


@pytest.mark.parametrize(
    ("test", "command"),
    [
        (["NONE"], None),
        ([], None),
        (["CMD", "a", "b"], ["a", "b"]),
        (["CMD-SHELL", "x | y"], ["/bin/sh", "-c", "x | y"]),
    ],
)
def test_health_commands(test, command):
    assert probe_command(api.ContainerConfig(healthcheck=api.HealthConfig(test=test))) == command


def test_an_update_changes_what_it_names_and_nothing_else():
    host = api.HostConfig(memory=1 << 30, cpu_shares=512)
    changed = updating.apply(host, api.ContainerUpdateRequest(cpu_shares=1024))
    assert (changed.memory, changed.cpu_shares, host.cpu_shares) == (1 << 30, 1024, 512)
    with pytest.raises(InvalidParameter, match="ulimits cannot be updated"):
        updating.apply(host, api.ContainerUpdateRequest(ulimits=[api.Ulimit(name="nofile")]))


def test_arguments_of_ps_that_no_program_can_be_given_are_refused():
    with pytest.raises(InvalidParameter, match="NUL"):
        top.processes([1], "a\0b")
