"""Engines under test: dockerd and drayd as objects that start, answer, die and start again.

An engine has a folder of its own:

    BASE/
     engine.sock   the API
     data/         --data-root
     exec/         --exec-root
     engine.pid    --pidfile
     engine.log    what the daemon wrote
     client/       the client's configuration (DOCKER_CONFIG)

It is driven by the official client (`docker`), over HTTP (`api`), by docker-py (`sdk`) and at a terminal
(`terminal`). Both kinds may run at once: each has its own bridge and addresses.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from support.terminal import Terminal


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, *, timeout: float = 60) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise


class EngineFailed(Exception):
    """The daemon did not come up; the message carries the end of its log."""


def until(condition: Callable[[], Any], *, timeout: float = 20, what: str = "") -> Any:
    """Wait until `condition()` is true and return its value; AssertionError when it never is."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s in vain for {what or condition}")
        time.sleep(0.02)


class Engine(ABC):
    """A daemon with its own socket, folders and bridge. Subclasses say how it is started."""

    name = ""
    subnet = ""  # of the default bridge, as a prefix "172.30.0."

    def __init__(self, base: Path | None = None, *, flags: Sequence[str] = (), client: str = "docker") -> None:
        self.base = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/var/tmp")) if base is None else base
        self.base.mkdir(exist_ok=True, parents=True)
        self.socket = self.base / "engine.sock"
        self.data_root = self.base / "data"
        self.exec_root = self.base / "exec"
        self.pidfile = self.base / "engine.pid"
        self.log = self.base / "engine.log"
        self.flags = list(flags)
        self.client = client
        self.variables: dict[str, str] = {}  # further variables of the daemon's environment
        self.host = f"unix://{self.socket}"
        self.daemon: subprocess.Popen[bytes] | None = None
        config = self.base / "client"
        config.mkdir(exist_ok=True)
        (config / "config.json").write_text("{}")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")}
        self.env.update(DOCKER_HOST=self.host, DOCKER_CONFIG=str(config), LC_ALL="C.UTF-8", TERM="xterm")

    # -- the daemon's life

    @abstractmethod
    def command(self) -> list[str]:
        """The daemon's command line."""

    def common_flags(self) -> list[str]:
        return [
            *("-H", self.host, "--data-root", str(self.data_root), "--exec-root", str(self.exec_root)),
            *("--pidfile", str(self.pidfile)),
        ]

    def environment(self) -> dict[str, str]:
        """What the daemon's process gets beside the machine's environment."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")}
        # The machine's firewalld is not to be told of bridges in a private world.
        return kept | {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"} | self.variables

    def start(self, *, timeout: float = 30, extra: Sequence[str] = ()) -> None:
        """Start the daemon and wait until it answers `_ping`."""
        self.launch(extra=extra)
        deadline = time.monotonic() + timeout
        while not self.answers():
            if self.daemon is None or self.daemon.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
                raise EngineFailed(f"{self.name} did not answer: {' '.join(self.command())}\n{tail}")
            time.sleep(0.005)

    def launch(self, *, extra: Sequence[str] = ()) -> None:
        """Start the daemon's process without waiting."""
        assert self.daemon is None, "the daemon is running"
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [*self.command(), *self.flags, *extra],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
            )

    def answers(self) -> bool:
        """Whether the daemon answers `_ping` now."""
        try:
            return self.api("GET", "/_ping", timeout=10)[0] == 200
        except OSError:
            return False

    @property
    def pid(self) -> int:
        assert self.daemon is not None
        return self.daemon.pid

    def kill(self) -> None:
        """kill -9 of the daemon, and of nothing else."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()
        self.daemon = None

    def stop(self, *, timeout: float = 30) -> int:
        """SIGTERM, and wait for the daemon's end; returns its exit status."""
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGTERM)
        try:
            return self.daemon.wait(timeout)
        finally:
            if self.daemon.poll() is None:
                self.daemon.kill()
                self.daemon.wait()
            self.daemon = None

    def restart(self, *, extra: Sequence[str] = ()) -> None:
        """Stop politely, start again."""
        if self.daemon is not None:
            self.stop()
        self.start(extra=extra)

    def destroy(self) -> None:
        """Stop the daemon and remove its folder. The containers must have been removed before."""
        if self.daemon is not None:
            self.stop()
        for mount in reversed(self.mounts()):
            subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
        shutil.rmtree(self.base, ignore_errors=True)

    def mounts(self) -> list[str]:
        """Mount points in this engine's folders."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [point for line in lines if (point := line.split(" ")[4]).startswith(f"{self.base}/")]

    # -- the official client

    def argv(self, *arguments: str) -> list[str]:
        return [self.client, *arguments]

    def docker(
        self, *arguments: str, input: str | None = None, timeout: float = 60, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the client to its end; output as text."""
        # Not text=True: that would turn "\r\n", which a terminal gives, into "\n".
        done = subprocess.run(
            self.argv(*arguments),
            input=b"" if input is None else input.encode(),
            capture_output=True,
            timeout=timeout,
            env={**self.env, **(env or {})},
            check=False,
        )
        out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def ok(self, *arguments: str, input: str | None = None, timeout: float = 60) -> str:
        """Run the client, insist on success, return what it printed without the last line end."""
        done = self.docker(*arguments, input=input, timeout=timeout)
        if done.returncode != 0:
            words = " ".join(arguments)
            raise AssertionError(f"docker {words} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout.rstrip("\n")

    def fails(self, *arguments: str, status: int = 1) -> str:
        """Run the client, insist on this exit status, return its standard error."""
        done = self.docker(*arguments)
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        return done.stderr

    @contextlib.contextmanager
    def spawn(self, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """The client running beside the test; killed at the end of the block. Streams are pipes unless given."""
        streams = {name: options.pop(name, subprocess.PIPE) for name in ("stdin", "stdout", "stderr")}
        with subprocess.Popen(self.argv(*arguments), env=self.env, **streams, **options) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def terminal(self, *arguments: str, rows: int = 24, columns: int = 80) -> Terminal:
        """The client at a terminal."""
        return Terminal(self.argv(*arguments), env=self.env, rows=rows, columns=columns)

    def inspect(self, *names: str, kind: str = "container") -> dict[str, Any]:
        """`docker inspect`, one object."""
        found: list[dict[str, Any]] = json.loads(self.ok(kind, "inspect", *names))
        return found[0]

    def state(self, name: str) -> dict[str, Any]:
        """The `State` of a container."""
        value: dict[str, Any] = self.inspect(name)["State"]
        return value

    def until_state(self, name: str, status: str, *, timeout: float = 20) -> dict[str, Any]:
        """Wait until a container is in this state."""

        def current() -> dict[str, Any] | None:
            done = self.docker("container", "inspect", "-f", "{{json .State}}", name)
            state: dict[str, Any] | None = json.loads(done.stdout) if done.returncode == 0 else None
            return state if state is not None and state["Status"] == status else None

        found: dict[str, Any] = until(current, timeout=timeout, what=f"{name} {status}")
        return found

    def address(self, name: str) -> str:
        """A container's address on the default bridge."""
        settings = self.inspect(name)["NetworkSettings"]
        return str(settings["Networks"]["bridge"]["IPAddress"])

    def ports(self, name: str) -> dict[str, Any]:
        """`NetworkSettings.Ports` of a container."""
        value: dict[str, Any] = self.inspect(name)["NetworkSettings"]["Ports"]
        return value

    # -- HTTP and docker-py

    def api(
        self, method: str, path: str, body: Any = None, *, timeout: float = 60
    ) -> tuple[int, dict[str, str], bytes]:
        """One request: (status, headers with lower-case names, body)."""
        connection = UnixConnection(self.socket, timeout=timeout)
        try:
            payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            kind = "application/x-tar" if isinstance(body, bytes) else "application/json"
            connection.request(method, path, payload, {"Content-Type": kind} if payload is not None else {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def told(self, since: float, *flags: str) -> str:
        """What `docker events` tells from a moment (Unix seconds) until now, with these flags."""
        until = str(int(time.time()) + 1)  # the whole second: the client waits for its end
        return self.ok("events", "--since", str(since), "--until", until, *flags)

    def get(self, path: str) -> Any:
        """GET and decode; insists on 200."""
        status, _, body = self.api("GET", path)
        assert status == 200, (status, body)
        return json.loads(body)

    @contextlib.contextmanager
    def sdk(self) -> Iterator[Any]:
        """A docker-py client, with the version negotiated."""
        import docker

        client = docker.DockerClient(base_url=self.host, version="auto", timeout=60)
        try:
            yield client
        finally:
            client.close()

    def load(self, *archives: Path) -> None:
        """`docker load` of archives."""
        for archive in archives:
            self.ok("load", "-q", "-i", str(archive), timeout=300)

    def remove_everything(self) -> None:
        """All containers, with their anonymous volumes, and all named volumes."""
        ids = [c["Id"] for c in self.get("/containers/json?all=1")]
        for one in ids:
            with contextlib.suppress(OSError):
                self.api("DELETE", f"/containers/{one}?force=1&v=1")
        for volume in self.get("/volumes").get("Volumes") or []:
            self.api("DELETE", f"/volumes/{volume['Name']}?force=1")


class Dockerd(Engine):
    """Debian's dockerd, with its own containerd."""

    name = "dockerd"
    subnet = "172.30.0."
    bridge = "docker0"

    def command(self) -> list[str]:
        return ["dockerd", *self.common_flags(), "--bip", f"{self.subnet}1/24"]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class Drayd(Engine):
    """The engine of this project, run from the interpreter that runs the tests."""

    name = "drayd"
    subnet = "172.31.0."
    bridge = "dray0"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "dray.daemon.main", *self.common_flags(), "--bip", f"{self.subnet}1/24"]

    def environment(self) -> dict[str, str]:
        source = Path(__file__).resolve().parents[2] / "src"
        kept = super().environment() | {"PYTHONPATH": str(source)}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode, too
        return kept


ENGINES: dict[str, type[Engine]] = {"dockerd": Dockerd, "drayd": Drayd}


SOURCE = Path(__file__).resolve().parents[2] / "src"


def dray(engine: Engine, *words: str, status: int = 0) -> str:
    """Run the client `dray` against an engine; return what it prints, on both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "dray.cli", *words],
        env=engine.env | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr
