"""The API under attack: slow clients, clients that leave at once, containers that look for it, damaged files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import Engine, until
from support.leaks import descriptors, state
from support.world import HOST_ADDRESS

pytestmark = pytest.mark.drayd_only("the protections are ours")

# 10,000 for the long run; every kind of abort gets a share.
ABORTS = int(os.environ.get("DRAY_ABORTS", "600"))


def memory(pid: int) -> int:
    """Private memory, KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@contextlib.contextmanager
def sent(engine: Engine, data: bytes) -> Iterator[socket.socket]:
    """A connection on which `data` was sent."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(engine.socket))
        client.sendall(data)
        yield client


def post(path: str, body: bytes = b"{}", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: docker", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def flat(engine: Engine, before: int) -> None:
    until(
        lambda: sum(descriptors(engine.pid).values()) <= before + 4,
        what=f"{before} descriptors, now {descriptors(engine.pid)}",
    )


SLOW = [
    b"",
    b"GET /_pi",
    b"GET /_ping HTTP/1.1\r\nHost: do",
    b"POST /containers/create HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{",
    b"POST /images/load HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
]


def test_slow_clients_keep_nobody_waiting(engine: Engine) -> None:
    before = sum(descriptors(engine.pid).values())
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(sent(engine, part)) for part in SLOW for _ in range(40)]
        assert engine.ok("run", "--rm", "busybox", "echo", "served") == "served"
        for client in clients:  # byte after byte
            with contextlib.suppress(OSError):
                client.send(b"x")
        assert engine.api("GET", "/_ping", timeout=10)[0] == 200
    flat(engine, before)


def test_clients_that_do_not_read_cost_no_memory(engine: Engine) -> None:
    """What they asked for waits in the container, in the file or in the kernel, not in the daemon."""
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", "yes $(head -c 1000 /dev/zero | tr '\\0' x)")
    engine.ok("run", "--name", "big", "busybox", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=64")
    fds, begin = sum(descriptors(engine.pid).values()), memory(engine.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            for path in (
                "/containers/box/logs?follow=1&stdout=1",
                "/containers/big/export",
                "/images/busybox/get",
            ):
                stack.enter_context(sent(engine, f"GET {path} HTTP/1.1\r\nHost: docker\r\n\r\n".encode()))
            stack.enter_context(sent(engine, post("/containers/box/attach?stream=1&stdout=1")))
        time.sleep(1.5)
        assert memory(engine.pid) < begin + (40 << 10)
        assert engine.api("GET", "/_ping", timeout=10)[0] == 200
    engine.ok("rm", "-f", "box")
    flat(engine, fds)


def test_clients_that_leave_at_once(engine: Engine) -> None:
    """Attach, exec and resize, cut off before, in, and after the answer: descriptors and memory stay flat."""
    engine.ok("run", "-d", "-i", "--name", "box", "busybox", "cat")
    pid = engine.state("box")["Pid"]
    shim = int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])

    def one(number: int) -> None:
        match number % 4:
            case 0:
                query = "stream=1&stdin=1&stdout=1&stderr=1"
                request = post(f"/containers/box/attach?{query}", b"", "Connection: Upgrade", "Upgrade: tcp")
            case 1:
                made = engine.api("POST", "/containers/box/exec", {"Cmd": ["true"], "AttachStdout": True})[2]
                request = post(f"/exec/{json.loads(made)['Id']}/start", b'{"Detach":false}')
            case 2:
                request = post("/containers/box/resize?h=20&w=70", b"")
            case _:
                request = post("/containers/box/attach?stream=1&logs=1&stdout=1")[: number % 60]
        with sent(engine, request) as client:
            if number % 3 == 0 and number % 4 != 3:
                client.recv(10)

    for number in range(60):
        one(number)
    time.sleep(0.5)
    before = [sum(descriptors(each).values()) for each in (engine.pid, shim)]
    begin = [memory(each) for each in (engine.pid, shim)]
    for number in range(ABORTS):
        one(number)
    flat(engine, before[0])
    until(lambda: sum(descriptors(shim).values()) <= before[1] + 4, what="the shim's descriptors")
    assert memory(engine.pid) < begin[0] + (16 << 10)
    assert memory(shim) < begin[1] + (4 << 10)
    assert engine.ok("exec", "box", "echo", "well") == "well"
    assert engine.state("box")["Pid"] == pid


def test_sockets_are_private_and_none_is_abstract(engine: Engine) -> None:
    """CVE-2020-15257: an abstract socket has no mode and is seen from every container in the host's network."""
    engine.ok("network", "create", "named")
    engine.ok("run", "-d", "--name", "box", "--network", "named", "-p", "127.0.0.1::80", "busybox", "sleep", "600")
    try:
        found = [path for root in (engine.base, engine.exec_root) for path in root.rglob("*") if path.is_socket()]
        assert {path.name for path in found} >= {"engine.sock", "shim.sock", "dns.sock"}
        for path in found:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            if path != engine.socket:
                above = [
                    stat.S_IMODE(one.stat().st_mode)
                    for one in path.parents
                    if one.is_relative_to(engine.exec_root)
                ]
                assert 0o700 in above, path
        lines = Path("/proc/net/unix").read_text().splitlines()[1:]
        assert not [line for line in lines if line.split()[-1].startswith("@")]
    finally:
        engine.ok("rm", "-f", "box")
        engine.ok("network", "rm", "named")


def test_containers_do_not_reach_an_api_on_the_hosts_loopback(engine: Engine) -> None:
    """CVE-2025-9074: neither by the gateway nor by any other address of the host."""
    from test_e2e_daemon import free_port

    port = free_port()
    engine.restart(extra=["-H", f"tcp://127.0.0.1:{port}"])
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass  # it is there
        script = "for a in $(ip route | awk '/default/{print $3}') 127.0.0.1 $HOST $GATEWAY; do wget -T 2 -qO- http://$a:$PORT/_ping; done; true"
        words = ["-e", f"PORT={port}", "-e", f"HOST={HOST_ADDRESS}", "-e", f"GATEWAY={engine.subnet}1"]
        for more in ([], ["--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW"]):
            assert "OK" not in engine.ok("run", "--rm", *words, *more, "busybox", "sh", "-c", script)
        # With an own route to 127.0.0.0/8 over the gateway, its packets are martians.
        route = (
            "ip addr del 127.0.0.1/8 dev lo; ip link set lo down; ip route add 127.0.0.1/32 via $GATEWAY;"
            "printf 'GET /_ping HTTP/1.0\\r\\n\\r\\n' | nc -w 2 127.0.0.1 $PORT; true"  # without lo, wget dies
        )
        # With --sysctl it takes the answer; the bridge's own setting lets the question through to the firewall.
        for more in ([], ["--sysctl", "net.ipv4.conf.all.route_localnet=1"]):
            admin = ["--cap-add", "NET_ADMIN", *more]
            assert "OK" not in engine.ok("run", "--rm", *words, *admin, "busybox", "sh", "-c", route)
    finally:
        engine.restart()


LOADED = (
    *("/etc/nsswitch.conf", "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/localtime", "/etc/gai.conf"),
    *("/lib/x86_64-linux-gnu/libnss_files.so.2", "/lib/x86_64-linux-gnu/libnss_compat.so.2", "/lib64/libc.so.6"),
    *("/usr/lib/python3.11/os.py", "/usr/lib/python3.11/encodings/idna.py", "/usr/lib/python3.11/tarfile.py"),
)


def test_nothing_is_loaded_from_the_containers_root(engine: Engine, tmp_path: Path) -> None:
    """CVE-2019-14271: what a process in the container's root would read by itself is a pipe here that nobody writes
    to, and the verbs that look into that root do not wait for it."""
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    making = "for f in $@; do mkdir -p ${f%/*}; rm -f $f; mkfifo $f; done"
    engine.ok("exec", "box", "sh", "-c", making, "sh", *LOADED)
    (tmp_path / "in").write_text("in")
    for _ in ("running", "stopped"):
        engine.ok("cp", str(tmp_path / "in"), "box:/tmp/in", timeout=20)
        engine.ok("cp", "box:/tmp/in", str(tmp_path / "out"), timeout=20)
        assert (tmp_path / "out").read_text() == "in"
        engine.ok("export", "-o", str(tmp_path / "all.tar"), "box", timeout=40)
        assert "A /etc/nsswitch.conf" in engine.ok("diff", "box", timeout=20)
        if engine.state("box")["Running"]:
            assert engine.ok("exec", "-u", "daemon", "box", "id", "-un", timeout=20) == "daemon"
            engine.ok("top", "box", timeout=20)
            engine.ok("kill", "box")
    engine.ok("start", "box", timeout=20)


DAMAGED = [
    b"",
    b"{",
    b"\0" * 100,
    b'{"exit_code":3,"finished_at":1,"error":"\xff"}',
    b'{"x":' + b"[" * 100_000,
    b'{"exit_code":[]}',
    b'{"exit_code":3}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_exit_file_at_boot(engine: Engine, content: bytes) -> None:
    """The daemon comes up, and shows the container as ended."""
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    known = engine.inspect("box")
    folder = Path(known["LogPath"]).parent
    engine.kill()
    os.kill(known["State"]["Pid"], 9)
    until(lambda: state(known["State"]["Pid"]) == "" and (folder / "exit.json").exists(), what="the end")
    tasks = engine.exec_root / "tasks" / known["Id"]
    until(lambda: not shim_lives(tasks), what="the shim's end")
    (folder / "exit.json").write_bytes(content)
    engine.start()
    after = engine.state("box")
    assert (after["Status"], after["ExitCode"]) == ("exited", 137)
    engine.ok("start", "box")


def shim_lives(tasks: Path) -> bool:
    try:
        return state(int((tasks / "shim.pid").read_text())) not in ("", "Z")
    except FileNotFoundError:
        return False


CALLS = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    ctypes.set_errno(0)
    return "open" if libc.syscall(*args) >= 0 else errno.errorcode[ctypes.get_errno()]
def family(number):
    try:
        socket.socket(number, socket.SOCK_SEQPACKET if number == 38 else socket.SOCK_STREAM, 0).close()
        return "open"
    except OSError as error:
        return errno.errorcode[error.errno]
buffer = ctypes.create_string_buffer(128)
print("add_key", call(248, b"user", b"k", b"v", 1, -3))
print("request_key", call(249, b"user", b"k", None, -3))
print("keyctl", call(250, 0, -3, 0))
print("bpf", call(321, 0, buffer, 128))
print("userfaultfd", call(323, 0))
print("perf_event_open", call(298, buffer, 0, -1, -1, 0))
print("io_uring_setup", call(425, 1, buffer))
print("unshare", call(272, 0x10000000))
print("mount", call(165, b"none", b"/mnt", b"tmpfs", 0, None))
print("open_by_handle_at", call(304, -100, buffer, 0))
print("AF_ALG", family(38))
print("AF_VSOCK", family(40))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the calls' numbers are x86-64's")
def test_calls_that_reach_the_kernel_past_the_container(engine: Engine, tmp_path: Path) -> None:
    """keyctl and friends, bpf, AF_ALG: refused from inside a container of default rights."""
    python = shutil.which("python3", path="/usr/bin") or os.path.realpath(sys.executable)
    roots = {"/usr", "/lib", "/lib64", str(Path(python).resolve().parents[1])}
    mounts = [word for root in sorted(roots) if Path(root).exists() for word in ("-v", f"{root}:{root}:ro")]
    (tmp_path / "calls.py").write_text(CALLS)
    command = ["busybox", python, "-I", "/calls.py"]
    printed = engine.ok("run", "--rm", *mounts, "-v", f"{tmp_path}/calls.py:/calls.py:ro", *command)
    found = dict(line.split() for line in printed.splitlines())
    assert len(found) == 12
    assert {
        name: word for name, word in found.items() if word not in ("EPERM", "EACCES", "ENOSYS", "EAFNOSUPPORT")
    } == {}
