"""Standard input, attach, detach keys and terminals."""

from __future__ import annotations

import hashlib
import select
import subprocess
import time

import pytest

from support.engines import Engine, until


def test_input_is_piped(engine: Engine) -> None:
    done = engine.docker("run", "-i", "--rm", "busybox", "cat", input="hello\n")
    assert (done.returncode, done.stdout) == (0, "hello\n")


def test_input_without_i_is_not_read(engine: Engine) -> None:
    done = engine.docker("run", "--rm", "busybox", "sh", "-c", "wc -c", input="hello\n")
    assert done.stdout == "0\n"


def test_end_of_input_is_not_the_end_of_output(engine: Engine) -> None:
    done = engine.docker("run", "-i", "--rm", "busybox", "sh", "-c", "cat; sleep 0.3; echo late", input="early\n")
    assert done.stdout == "early\nlate\n"


def test_binary_round_trip(engine: Engine) -> None:
    data = hashlib.shake_256(b"stream").digest(8_000_000)
    with engine.spawn("run", "-i", "--rm", "busybox", "cat") as client:
        out, _ = client.communicate(data, timeout=60)
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
    assert client.returncode == 0


def test_both_streams_large(engine: Engine) -> None:
    script = "head -c 3000000 /dev/zero & head -c 2000000 /dev/zero >&2; wait"
    with engine.spawn("run", "--rm", "busybox", "sh", "-c", script) as client:
        out, err = client.communicate(timeout=60)
    assert (len(out), len(err), client.returncode) == (3_000_000, 2_000_000, 0)


def test_closed_output_ends_the_program(engine: Engine) -> None:
    """`docker run … yes | head -1` ends."""
    with engine.spawn("run", "--name", "box", "busybox", "yes", stderr=subprocess.DEVNULL) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"y\n"
        client.stdout.close()
        engine.ok("kill", "box")
        client.wait(20)


def test_two_clients_see_the_same_output(engine: Engine) -> None:
    script = "while read line; do [ $line = end ] && break; echo $line; done; seq 1000"
    engine.ok("run", "-di", "--name", "box", "busybox", "sh", "-c", script)
    with engine.spawn("attach", "--no-stdin", "box") as one, engine.spawn("attach", "box") as two:
        assert two.stdin is not None
        waiting = {one.stdout, two.stdout}
        deadline = time.monotonic() + 20
        while waiting and time.monotonic() < deadline:
            two.stdin.write(b"both?\n")
            two.stdin.flush()
            waiting -= set(select.select(list(waiting), [], [], 0.2)[0])
        two.stdin.write(b"end\n")
        two.stdin.flush()
        assert one.stdout is not None
        assert two.stdout is not None
        # Its input stays open until it has all: without StdinOnce the end of a client's input detaches it.
        seen = two.stdout.read()
        expected = "".join(f"{n}\n" for n in range(1, 1001)).encode()
        assert seen.replace(b"both?\n", b"") == expected
        assert one.stdout.read().replace(b"both?\n", b"") == expected
        assert (one.wait(20), two.wait(20)) == (0, 0)


def test_attach_gives_the_exit_status(engine: Engine) -> None:
    engine.ok("run", "-di", "--name", "box", "busybox", "sh", "-c", "read n; exit $n")
    done = engine.docker("attach", "box", input="9\n")
    assert done.returncode == 9


def test_attach_to_a_stopped_container_is_refused(engine: Engine) -> None:
    engine.ok("create", "--name", "box", "busybox")
    assert "cannot attach to a stopped container" in engine.fails("attach", "box").lower()


def test_start_attached(engine: Engine) -> None:
    engine.ok("create", "-i", "--name", "box", "busybox", "sh", "-c", "cat; exit 3")
    done = engine.docker("start", "-ai", "box", input="x\n")
    assert (done.returncode, done.stdout) == (3, "x\n")


def test_signal_is_passed_on(engine: Engine) -> None:
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    with engine.spawn("run", "--rm", "busybox", "sh", "-c", script) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.terminate()
        assert client.stdout.read() == b"caught\n"
        assert client.wait(20) == 5


def test_terminal(engine: Engine) -> None:
    with engine.terminal("run", "-it", "--rm", "--name", "box", "busybox", "sh", rows=30, columns=100) as tty:
        tty.expect("/ # ")
        tty.send("tty; stty size\n")
        tty.expect("/dev/pts/0")
        tty.expect("30 100")
        tty.resize(40, 120)
        tty.process.send_signal(28)  # SIGWINCH, which a terminal emulator's kernel side sends
        until(lambda: _size(engine) == "40 120", what="the new size")
        tty.send("exit 4\n")
        assert tty.wait() == 4


def _size(engine: Engine) -> str:
    return engine.ok("exec", "box", "stty", "size", "-F", "/dev/pts/0")


def test_interrupt_at_the_terminal(engine: Engine) -> None:
    with engine.terminal(
        "run", "-it", "--rm", "busybox", "sh", "-c", "trap 'echo got it; exit 6' INT; echo ready; sleep 5"
    ) as tty:
        tty.expect("ready")
        tty.send("\x03")
        tty.expect("got it")
        assert tty.wait() == 6


def test_terminal_output_has_line_ends(engine: Engine) -> None:
    done = engine.docker("run", "-t", "--rm", "busybox", "echo", "x")
    assert done.stdout == "x\r\n"


def test_detach_keys(engine: Engine) -> None:
    with engine.terminal("run", "-it", "--name", "box", "busybox", "sh") as tty:
        tty.expect("/ # ")
        tty.send("\x10\x11")
        assert tty.wait() == 0
    assert engine.state("box")["Status"] == "running"
    with engine.terminal("attach", "--detach-keys", "ctrl-x,x", "box") as tty:
        tty.send("echo again$((1+1))\n")
        tty.expect("again2")
        tty.send("\x18x")
        tty.wait()
    assert engine.state("box")["Status"] == "running"


def test_attach_at_the_terminal_from_two_clients(engine: Engine) -> None:
    engine.ok("run", "-dit", "--name", "box", "busybox", "sh")
    with engine.terminal("attach", "box") as one, engine.terminal("attach", "box") as two:
        one.send("\n")
        two.send("\n")
        one.expect("#")
        two.expect("#")
        one.send("echo both$((40+2))\n")
        one.expect("both42")
        two.expect("both42")
        one.send("exit 8\n")
        assert one.wait() == 8
        assert two.wait() == 8


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_attach_one_stream(engine: Engine, stream: str) -> None:
    done = engine.docker("run", "--rm", "-a", stream, "busybox", "sh", "-c", "echo out; echo err >&2")
    seen = (done.stdout, done.stderr)
    assert seen == (("out\n", "") if stream == "stdout" else ("", "err\n"))
