"""Registries under test: Debian's `docker-registry`, and our own, as objects that start, answer, die and start again.

A registry has a folder of its own:

    FOLDER/
     config.yml    what it was started with
     data/         its blobs and names, kept over a kill and a start
     registry.log  what it wrote: its own log, and one access line per request
     htpasswd      with `htpasswd=`
     tls.crt, .key with `tls=`

`Authority` is a certificate authority of the test's own; what trusts it gets its `certificate` file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("docker-registry")


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Authority:
    """A certificate authority in a folder: `ca.crt`, `ca.key`."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.certificate, self.key = folder / "ca.crt", folder / "ca.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", str(self.key), "-out", str(self.certificate)),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )

    def issue(self, folder: Path, name: str, *, hosts: tuple[str, ...] = ("localhost",)) -> tuple[Path, Path]:
        """Make `NAME.crt` and `NAME.key` in a folder, good for servers and clients; return both paths."""
        certificate, key, request = (folder / f"{name}{end}" for end in (".crt", ".key", ".csr"))
        names = ",".join(f"{'IP' if re.fullmatch(r'[0-9.]+|.*:.*', host) else 'DNS'}:{host}" for host in hosts)
        extensions = folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", str(key), "-out", str(request)),
        )
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self.key)),
            *("-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(certificate)),
        )
        return certificate, key


CERTIFICATES = Path("/etc/docker/certs.d")


@contextlib.contextmanager
def trusted(address: str, authority: Authority) -> Iterator[Path]:
    """Trust an authority for a host, by certs.d, during the block; yields the host's folder."""
    folder = CERTIFICATES / address
    folder.mkdir(parents=True)
    try:
        (folder / "ca.crt").write_bytes(authority.certificate.read_bytes())
        yield folder
    finally:
        shutil.rmtree(folder)
        for one in (CERTIFICATES, CERTIFICATES.parent):
            with contextlib.suppress(OSError):
                one.rmdir()


@dataclass(frozen=True, slots=True)
class Access:
    """One line of the access log. `size`: bytes of the body sent."""

    method: str
    path: str
    status: int
    size: int
    agent: str
    range: str = ""  # the Range asked for (our own registry's log has it)


_LINE = re.compile(
    r'^\S+ - - \[[^]]*\] "(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[\d.]+" (?P<status>\d+) (?P<size>\d+) '
    r'"[^"]*" "(?P<agent>.*)"$'
)


class DebianRegistry:
    """`docker-registry serve`, started by the constructor on loopback; a context manager that stops it.

    `tls`: serve HTTPS with a certificate of this authority; `client_ca` also demands the clients'. `htpasswd`:
    {user: password}. `config` is laid over the configuration file (nested), e.g. {"proxy": {"remoteurl": …}}.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tls: Authority | None = None,
        client_ca: Authority | None = None,
        htpasswd: Mapping[str, str] | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        assert PROGRAM is not None, "docker-registry is not installed"
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.host, self.port = folder, host, port
        self.data, self.log = folder / "data", folder / "registry.log"
        self.tls = tls
        self.process: subprocess.Popen[bytes] | None = None
        self._config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.data)},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {"secret": "of-the-test"},
        }
        if tls is not None:
            certificate, key = tls.issue(folder, "tls", hosts=("localhost", "127.0.0.1", "::1", host))
            self._config["http"]["tls"] = {"certificate": str(certificate), "key": str(key)}
            if client_ca is not None:
                self._config["http"]["tls"]["clientcas"] = [str(client_ca.certificate)]
        if htpasswd is not None:
            write_htpasswd(folder / "htpasswd", htpasswd)
            self._config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        _overlay(self._config, config or {})
        self.start()

    @property
    def address(self) -> str:
        """`host:port`, as it stands in references."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Its address with the scheme."""
        return f"{'http' if self.tls is None else 'https'}://{self.address}"

    def start(self, *, timeout: float = 20) -> None:
        """Start it (again), on the port of before, and wait until it takes connections."""
        assert self.process is None, "the registry is running"
        self._config["http"]["addr"] = f"{self.host}:{self.port}"
        file = self.folder / "config.yml"
        file.write_text(json.dumps(self._config))  # JSON is YAML
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(PROGRAM), "serve", str(file)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + timeout
        while True:
            text = self.log.read_bytes()[before:].decode(errors="replace")
            found = re.search(r'msg="listening on [^"]*:(\d+)(?:, tls)?"', text)
            if found:
                self.port = int(found[1])
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"docker-registry did not start: {text[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait; `start` brings it back with its data."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def access_log(self) -> list[Access]:
        """Every request that was answered so far, oldest first."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if match := _LINE.match(line):
                status, size = int(match["status"]), int(match["size"])
                found.append(Access(match["method"], match["path"], status, size, match["agent"]))
        return found

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request past any engine: (status, headers with lower-case names, body)."""
        import http.client

        if self.tls is None:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        else:
            context = ssl.create_default_context(cafile=str(self.tls.certificate))
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=20, context=context)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def __enter__(self) -> DebianRegistry:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


_OUR_LINE = re.compile(
    r'^\S+ - \S+ \[[^]]*\] "(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[\d.]+" (?P<status>\d+) (?P<size>\d+) '
    r'"[^"]*" "(?P<agent>[^"]*)" "(?P<range>[^"]*)" [\d.]+$'
)


class DrayRegistry(DebianRegistry):
    """`dray registry serve`, with the same interface. `options`: further flags (`--gc-interval=0`, …)."""

    def __init__(
        self,
        folder: Path,
        *,
        tls: Authority | None = None,
        client_ca: Authority | None = None,
        htpasswd: Mapping[str, str] | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
        options: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.host, self.port = folder, host, port
        self.data, self.log = folder / "data", folder / "registry.log"
        self.tls = tls
        self.process = None
        self.options = [f"--root={self.data}"]
        if tls is not None:
            certificate, key = tls.issue(folder, "tls", hosts=("localhost", "127.0.0.1", "::1", host))
            self.options += [f"--tls-cert={certificate}", f"--tls-key={key}"]
            if client_ca is not None:
                self.options.append(f"--tls-client-ca={client_ca.certificate}")
        if htpasswd is not None:
            write_htpasswd(folder / "htpasswd", htpasswd)
            self.options.append(f"--htpasswd={folder / 'htpasswd'}")
            if not any(option.startswith("--auth=") for option in options):
                self.options.append("--auth=htpasswd")
        self.options += options
        self.start()

    def start(self, *, timeout: float = 20) -> None:
        """Start it (again), on the port of before, and wait until it takes connections."""
        assert self.process is None, "the registry is running"
        before = self.log.stat().st_size if self.log.exists() else 0
        source = str(Path(__file__).resolve().parents[2] / "src")
        command = [sys.executable, "-m", "dray.registry.server", "serve", f"--listen={self.host}:{self.port}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": source},
            )
        deadline = time.monotonic() + timeout
        while True:
            text = self.log.read_bytes()[before:].decode(errors="replace")
            if found := re.search(r"^Listening on \S+:(\d+)$", text, re.MULTILINE):
                self.port = int(found[1])
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the registry did not start: {text[-2000:]}")
            time.sleep(0.01)

    def access_log(self) -> list[Access]:
        """Every request that was answered so far, oldest first."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if match := _OUR_LINE.match(line):
                status, size = int(match["status"]), int(match["size"])
                wanted = "" if match["range"] == "-" else match["range"]
                found.append(Access(match["method"], match["path"], status, size, match["agent"], wanted))
        return found


def write_htpasswd(path: Path, users: Mapping[str, str]) -> None:
    """Write a file of users with cheap bcrypt hashes."""
    import bcrypt

    lines = [f"{u}:{bcrypt.hashpw(p.encode()[:72], bcrypt.gensalt(4)).decode()}\n" for u, p in users.items()]
    path.write_text("".join(lines))


def _overlay(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _overlay(base[key], value)
        else:
            base[key] = value


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now (for a registry that is not there)."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
