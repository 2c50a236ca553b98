"""Registries as the official client meets them: login, TLS, certs.d, search, distribution, info, wrong addresses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from support.engines import Drayd, Engine
from support.fakehttp import FakeServer, Request
from support.registries import PROGRAM, Authority, DebianRegistry, free_port, trusted
from support.world import HOST_ADDRESS

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="docker-registry is not installed")


@pytest.fixture
def client(engine: Engine) -> Iterator[Path]:
    """The client's config.json, empty before and after."""
    file = Path(engine.env["DOCKER_CONFIG"]) / "config.json"
    file.write_text("{}")
    yield file
    file.write_text("{}")


@pytest.fixture
def trust(engine: Engine) -> Iterator[Callable[[str, Authority], Path]]:
    """Trust an authority for a host, by certs.d, until the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda address, authority: stack.enter_context(trusted(address, authority))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


# An address that is not loopback: nothing is insecure there by default.
OUTSIDE = HOST_ADDRESS


def test_login_is_tried_at_the_registry_and_kept_by_the_client(
    engine: Engine, client: Path, tmp_path: Path
) -> None:
    with DebianRegistry(tmp_path, htpasswd={"me": "secret"}) as registry:
        wrong = engine.docker("login", "-u", "me", "--password-stdin", registry.address, input="wrong")
        assert wrong.returncode == 1
        assert (
            f"login attempt to http://{registry.address}/v2/ failed with status: 401 Unauthorized" in wrong.stderr
        )
        assert json.loads(client.read_text()) == {}
        engine.ok("login", "-u", "me", "--password-stdin", registry.address, input="secret")
        assert list(json.loads(client.read_text())["auths"]) == [registry.address]
        assert "Login Succeeded" in engine.ok("login", registry.address)
        engine.ok("logout", registry.address)
        assert json.loads(client.read_text()).get("auths", {}) == {}


def test_an_unknown_image_a_missing_login_and_an_empty_address(
    engine: Engine, client: Path, tmp_path: Path
) -> None:
    with DebianRegistry(tmp_path / "open") as registry:
        words = f"manifest for {registry.address}/a/b:latest not found: manifest unknown: manifest unknown"
        assert words in engine.fails("pull", f"{registry.address}/a/b")
    with DebianRegistry(tmp_path / "closed", htpasswd={"me": "secret"}) as registry:
        assert "no basic auth credentials" in engine.fails("pull", f"{registry.address}/a/b")
    address = f"127.0.0.1:{free_port()}"
    words = f'Get "http://{address}/v2/'
    refused = engine.fails("pull", f"{address}/a/b")
    assert words in refused
    assert f"dial tcp {address}: connect: connection refused" in refused
    assert words in engine.fails("login", "-u", "me", "-p", "x", address)


def test_a_registry_of_an_unknown_authority(
    engine: Engine, client: Path, tmp_path: Path, authority: Authority, trust: Callable[[str, Authority], Path]
) -> None:
    with DebianRegistry(tmp_path, tls=authority, host=OUTSIDE, htpasswd={"me": "secret"}) as registry:
        login = ("login", "-u", "me", "-p", "secret", registry.address)
        assert "x509: certificate signed by unknown authority" in engine.fails(*login)
        trust(registry.address, authority)
        engine.ok(*login)
        assert registry.access_log()[-1].status == 200


def test_a_client_certificate(
    engine: Engine, client: Path, tmp_path: Path, authority: Authority, trust: Callable[[str, Authority], Path]
) -> None:
    theirs = Authority(tmp_path / "theirs")
    with DebianRegistry(tmp_path, tls=authority, client_ca=theirs, host=OUTSIDE) as registry:
        login = ("login", "-u", "me", "-p", "x", registry.address)
        folder = trust(registry.address, authority)
        assert "tls" in engine.fails(*login)
        theirs.issue(folder, "client")
        (folder / "client.crt").rename(folder / "client.cert")
        engine.ok(*login)


def test_plain_http_is_for_insecure_registries_alone(engine: Engine, client: Path, tmp_path: Path) -> None:
    with DebianRegistry(tmp_path, host=OUTSIDE) as registry:
        said = engine.fails("pull", f"{registry.address}/a/b")
        assert "server gave HTTP response to HTTPS client" in said
        assert registry.access_log() == []


class TokenService:
    """A registry behind a token service, which knows one user; it hands out identity tokens."""

    url = ""

    def __call__(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(request.path)
        if parts.path == "/token":
            if request.method == "POST":
                good = parse_qs(request.body.decode())["refresh_token"] == ["identity"]
            else:
                good = request.headers.get("authorization") == "Basic bWU6c2VjcmV0"
            if not good:
                return 401, {}, b'{"details":"incorrect username or password"}'
            offline = "offline_token=true" in parts.query
            return (
                200,
                {},
                json.dumps({"token": "t", **({"refresh_token": "identity"} if offline else {})}).encode(),
            )
        if request.headers.get("authorization") != "Bearer t":
            return 401, {"WWW-Authenticate": f'Bearer realm="{self.url}/token",service="s"'}, b""
        if parts.path == "/v2/":
            return 200, {}, b"{}"
        return 404, {}, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'


def test_an_identity_token_is_kept_and_used(engine: Engine, client: Path) -> None:
    service = TokenService()
    with FakeServer(service) as server:
        service.url = server.url
        wrong = engine.fails("login", "-u", "me", "-p", "wrong", server.address)
        assert "unauthorized: incorrect username or password" in wrong
        engine.ok("login", "-u", "me", "-p", "secret", server.address)
        assert json.loads(client.read_text())["auths"][server.address]["identitytoken"] == "identity"
        assert "manifest unknown" in engine.fails("pull", f"{server.address}/a/b")
        assert server.requests[-1].headers["authorization"] == "Bearer t"
        posted = parse_qs(server.asked("POST", "/token")[0].body.decode())
        assert posted["scope"] == ["repository:a/b:pull"]


FOUND = {
    "results": [
        {"name": "one", "description": "the first", "star_count": 7, "is_official": True, "is_automated": False},
        {"name": "me/two", "description": "x" * 99, "star_count": 3, "is_official": False, "is_automated": False},
        {"nonsense": 1},
    ]
}


def test_search(engine: Engine, client: Path) -> None:
    with FakeServer(lambda request: (200, {}, json.dumps(FOUND).encode())) as server:
        out = engine.ok("search", "--format", "{{.Name}} {{.StarCount}} {{.IsOfficial}}", f"{server.address}/on")
        assert out.splitlines() == [f"{server.address}/one 7 [OK]", f"{server.address}/me/two 3 "]
        assert server.requests[-1].path == "/v1/search?q=on&n=25"
        only = ("search", "--format", "{{.Name}}", "--limit", "5", "--filter")
        assert engine.ok(*only, "stars=5", f"{server.address}/x") == f"{server.address}/one"
        assert engine.ok(*only, "is-official=false", f"{server.address}/x") == f"{server.address}/me/two"
        assert server.requests[-1].path == "/v1/search?q=x&n=5"
        assert "outside the range of [1, 100]" in engine.fails("search", "--limit", "101", "x")
        assert "invalid filter" in engine.fails("search", "--filter", "stars=many", "x")
        assert "invalid filter" in engine.fails("search", "--filter", "colour=red", "x")


@pytest.mark.drayd_only("dockerd 20.10 words it differently")
def test_a_registry_without_search(engine: Engine, client: Path, tmp_path: Path) -> None:
    with DebianRegistry(tmp_path) as registry:
        assert "no search" in engine.fails("search", f"{registry.address}/x")


def test_what_a_registry_knows_of_an_image(engine: Engine, client: Path, tmp_path: Path) -> None:
    with DebianRegistry(tmp_path) as registry:
        name = f"{registry.address}/a/busybox:1"
        engine.ok("tag", "busybox", name)
        try:
            engine.ok("push", "-q", name)
        finally:
            engine.ok("rmi", name)
        found = engine.get(f"/distribution/{name}/json")
        status, headers, body = registry.request(
            "GET", "/v2/a/busybox/manifests/1", headers={"Accept": found["Descriptor"]["mediaType"]}
        )
        assert status == 200
        assert found["Descriptor"]["digest"] == headers["docker-content-digest"]
        assert found["Descriptor"]["size"] == len(body)
        (platform,) = found["Platforms"]
        assert (platform["os"], platform["architecture"]) == ("linux", engine.get("/version")["Arch"])
        status, _, body = engine.api("GET", f"/distribution/{registry.address}/a/none/json")
        assert status == 404
        assert "manifest unknown" in json.loads(body)["message"]


@pytest.mark.drayd_only("flags of the daemon")
def test_the_daemons_registries_are_shown_by_info(engine: Engine, client: Path) -> None:
    flags = [
        *("--registry-mirror", "https://mirror.example", "--insecure-registry", "r.example:5000"),
        *("--insecure-registry", "10.0.0.0/8", "--https-proxy", "http://me:secret@proxy.example:3128"),
        *("--no-proxy", "r.example"),
    ]
    engine.restart(extra=flags)
    try:
        info = engine.get("/info")
        config = info["RegistryConfig"]
        assert config["Mirrors"] == ["https://mirror.example/"]
        assert config["InsecureRegistryCIDRs"] == ["::1/128", "127.0.0.0/8", "10.0.0.0/8"]
        assert config["IndexConfigs"]["r.example:5000"]["Secure"] is False
        assert config["IndexConfigs"]["docker.io"]["Official"] is True
        assert (info["HttpsProxy"], info["NoProxy"]) == ("http://xxxxx:xxxxx@proxy.example:3128", "r.example")
        assert "secret" not in json.dumps(info)
        assert "mirror.example" in engine.ok("info")
    finally:
        engine.restart()


@pytest.mark.drayd_only("dray's own client")
def test_drays_own_client_logs_in_and_out(engine: Engine, client: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    assert isinstance(engine, Drayd)

    def dray(*words: str, text: str = "") -> tuple[int, str, str]:
        argv = [sys.executable, "-m", "dray.cli.main", *words]
        env = {**engine.environment(), **engine.env, "PYTHONPATH": engine.environment()["PYTHONPATH"]}
        done = subprocess.run(argv, input=text, capture_output=True, text=True, env=env, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr

    with DebianRegistry(tmp_path, htpasswd={"me": "secret"}) as registry:
        status, _, err = dray("login", "-u", "me", "--password-stdin", registry.address, text="wrong")
        assert (status, "401 Unauthorized" in err) == (1, True)
        status, out, err = dray("login", "-u", "me", "--password-stdin", registry.address, text="secret\n")
        assert (status, out) == (0, "Login Succeeded\n"), err
        assert "stored unencrypted" in err
        status, out, _ = dray("login", registry.address)
        assert (status, "existing credentials" in out) == (0, True)
        assert dray("pull", f"{registry.address}/a/b")[0] == 1
        assert registry.access_log()[-1].status == 404  # and not 401: the credentials were sent
        assert dray("logout", registry.address)[1] == f"Removing login credentials for {registry.address}\n"
        assert json.loads(client.read_text()).get("auths", {}) == {}
