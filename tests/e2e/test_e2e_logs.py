"""`docker logs` and the json-file driver."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from support.engines import Engine, UnixConnection, until


def test_streams(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "busybox", "sh", "-c", "echo out; sleep 0.05; echo err >&2")
    done = engine.docker("logs", "box")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_terminal_log_is_one_stream(engine: Engine) -> None:
    engine.ok("run", "-t", "--name", "box", "busybox", "sh", "-c", "echo out; echo err >&2")
    done = engine.docker("logs", "box")
    assert (done.stdout, done.stderr) == ("out\r\nerr\r\n", "")


def test_tail(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "busybox", "seq", "1000")
    assert engine.ok("logs", "--tail", "3", "box").split() == ["998", "999", "1000"]
    assert engine.ok("logs", "--tail", "0", "box") == ""
    assert len(engine.ok("logs", "--tail", "all", "box").split()) == 1000
    assert len(engine.ok("logs", "--tail", "5000", "box").split()) == 1000


def test_timestamps(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "busybox", "echo", "x")
    line = engine.ok("logs", "-t", "box")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z x", line)


def test_since_and_until(engine: Engine) -> None:
    engine.ok(
        "run", "--name", "box", "busybox", "sh", "-c", "echo one; sleep 0.2; echo two; sleep 0.2; echo three"
    )
    stamps = [line.split(" ")[0] for line in engine.ok("logs", "-t", "box").splitlines()]
    assert engine.ok("logs", "--since", stamps[1], "box").split() == ["two", "three"]
    assert engine.ok("logs", "--until", stamps[1], "box").split() == ["one", "two"]
    assert engine.ok("logs", "--since", stamps[1], "--until", stamps[1], "box").split() == ["two"]
    assert engine.ok("logs", "--since", "1h", "box").split() == ["one", "two", "three"]
    assert engine.ok("logs", "--until", "1h", "box") == ""


def test_details(engine: Engine) -> None:
    engine.ok(
        *("run", "--name", "box", "--log-opt", "labels=tier", "--log-opt", "env=A", "-l", "tier=front"),
        *("-e", "A=1", "busybox", "echo", "x"),
    )
    assert engine.ok("logs", "--details", "box") == "A=1,tier=front x"


def test_follow_ends_with_the_container(engine: Engine) -> None:
    engine.ok("run", "-di", "--name", "box", "busybox", "sh", "-c", "echo first; read x; echo last")
    with engine.spawn("logs", "-f", "box") as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"first\n"
        engine.docker("attach", "box", input="\n")
        assert client.stdout.read() == b"last\n"
        assert client.wait(20) == 0


def test_follow_with_tail(engine: Engine) -> None:
    engine.ok("run", "-di", "--name", "box", "busybox", "sh", "-c", "seq 100; read x; echo last")
    until(lambda: engine.ok("logs", "--tail", "1", "box") == "100", what="100 lines")
    with engine.spawn("logs", "-f", "--tail", "2", "box") as client:
        assert client.stdout is not None
        assert [client.stdout.readline() for _ in range(2)] == [b"99\n", b"100\n"]
        engine.docker("attach", "box", input="\n")
        assert client.stdout.read() == b"last\n"


def test_follow_goes_on_over_a_restart_of_the_client(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", "while :; do date +%s%N; sleep 0.02; done")
    for _ in range(3):
        with engine.spawn("logs", "-f", "--tail", "1", "box") as client:
            assert client.stdout is not None
            assert client.stdout.readline()
            assert client.stdout.readline()


def test_long_lines_come_whole(engine: Engine) -> None:
    engine.ok(
        "run", "--name", "box", "busybox", "sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end"
    )
    first, last = engine.ok("logs", "box").split("\n")
    assert (len(first), last) == (100_000, "end")


def test_odd_bytes(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "busybox", "printf", 'q"b\\\\t\\tc\\001\\342\\202\\254<&>\\n')
    assert engine.ok("logs", "box") == 'q"b\\t\tc\x01€<&>'


def test_unfinished_line(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "busybox", "printf", "no end")
    assert engine.docker("logs", "box").stdout == "no end"


def test_file(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "busybox", "sh", "-c", "echo a; sleep 0.05; echo b >&2")
    path = Path(engine.inspect("box")["LogPath"])
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["log"], first["stream"]) == ("a\n", "stdout")
    assert (second["log"], second["stream"]) == ("b\n", "stderr")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", first["time"])


def test_rotation(engine: Engine) -> None:
    engine.ok(
        *("run", "--name", "box", "--log-opt", "max-size=50k", "--log-opt", "max-file=3"),
        *("busybox", "sh", "-c", "seq 10000 | sed 's/^/line /'"),
    )
    path = Path(engine.inspect("box")["LogPath"])
    files = sorted(path.parent.glob(f"{path.name}*"))
    assert [one.name.removeprefix(path.name) for one in files] == ["", ".1", ".2"]
    assert all(one.stat().st_size < 70_000 for one in files)
    lines = engine.ok("logs", "box").splitlines()
    assert lines[-1] == "line 10000"
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers == list(range(numbers[0], 10001))
    assert engine.ok("logs", "--tail", "1200", "box").splitlines() == lines[-1200:]


@pytest.mark.drayd_only("dockerd keeps logs without limit unless told")
def test_rotation_is_the_default(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "busybox", "true")
    assert engine.inspect("box")["HostConfig"]["LogConfig"]["Type"] == "json-file"
    # 20 MB of text is more than 20 MB of JSON: at least one rotation.
    engine.ok(
        "run",
        "--name",
        "big",
        "busybox",
        "sh",
        "-c",
        "yes 0123456789012345678901234567890123456789 | head -n 550000",
    )
    path = Path(engine.inspect("big")["LogPath"])
    assert path.with_name(path.name + ".1").exists()
    assert path.stat().st_size <= 21_000_000


def test_none_driver(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "--log-driver", "none", "busybox", "echo", "x")
    assert "configured logging driver does not support reading" in engine.fails("logs", "box")


def test_unknown_driver_and_option(engine: Engine) -> None:
    assert "nosuch" in engine.fails("run", "--log-driver", "nosuch", "busybox", "true", status=125)
    assert "nosuch" in engine.fails("run", "--log-opt", "nosuch=1", "busybox", "true", status=125)


def test_log_of_several_runs(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "busybox", "echo", "x")
    for _ in range(2):
        engine.ok("start", "-a", "box")
    assert engine.ok("logs", "box").split() == ["x", "x", "x"]


def test_logs_of_a_created_container(engine: Engine) -> None:
    engine.ok("create", "--name", "box", "busybox")
    assert engine.ok("logs", "box") == ""
    assert "No such container: nosuch" in engine.fails("logs", "nosuch")


def test_detached_run_loses_nothing(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", "seq 200000")
    engine.ok("wait", "box")
    time.sleep(0.1)
    lines = engine.ok("logs", "box").splitlines()
    assert (len(lines), lines[-1]) == (200_000, "200000")


def test_follow_races_the_end(engine: Engine) -> None:
    """Following a container that is just ending ends too, with all it wrote."""
    for _ in range(30):
        made = engine.ok("run", "-d", "busybox", "echo", "x")
        assert engine.docker("logs", "-f", made, timeout=10).stdout == "x\n"
        made = engine.ok("create", "busybox", "echo", "x")
        assert engine.api("POST", f"/containers/{made}/start")[0] == 204
        status, _, body = engine.api("GET", f"/containers/{made}/logs?stdout=1&stderr=1&follow=1", timeout=10)
        assert (status, body[8:]) == (200, b"x\n")


def test_follow_of_a_container_that_is_removed(engine: Engine) -> None:
    """A log being followed comes whole and ends, though the container is removed before it is read."""
    for _ in range(20):
        made = engine.ok("create", "busybox", "echo", "x")
        assert engine.api("POST", f"/containers/{made}/start")[0] == 204
        connection = UnixConnection(engine.socket, timeout=5)
        try:
            connection.request("GET", f"/containers/{made}/logs?stdout=1&follow=1")
            answer = connection.getresponse()
            assert engine.api("POST", f"/containers/{made}/wait")[0] == 200
            assert engine.api("DELETE", f"/containers/{made}")[0] == 204
            assert answer.read()[8:] == b"x\n"
        finally:
            connection.close()
