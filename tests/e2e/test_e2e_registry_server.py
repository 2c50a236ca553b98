"""The official client through dockerd at our registry: login, push, pull, with TLS and passwords and by tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import cache
from support.engines import Dockerd, Engine
from support.registries import Authority, DrayRegistry
from support.world import World

pytestmark = pytest.mark.skipif(shutil.which("dockerd") is None, reason="dockerd is not installed")

USER, PASSWORD = "alice", "a secret"


class NoNetwork(Dockerd):
    """Debian's engine without a bridge or rules, which it would leave behind."""

    def command(self) -> list[str]:
        flags = ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        return ["dockerd", *self.common_flags(), *flags]


@pytest.fixture(scope="module")
def dockerd(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    """An engine that verifies no certificate of loopback, which it takes for insecure."""
    engine = NoNetwork()
    engine.start()
    engine.load(cache.busybox_archive())
    yield engine
    engine.destroy()


def test_through_drayd(engine: Engine, tmp_path: Path) -> None:
    with DrayRegistry(tmp_path / "registry", htpasswd={USER: PASSWORD}) as registry:
        name = f"{registry.address}/team/busybox:v1"
        engine.ok("tag", "busybox", name)
        engine.ok("login", "-u", USER, "--password-stdin", registry.address, input=PASSWORD)
        engine.ok("push", name)
        digest = registry_digest(registry)
        engine.ok("rmi", name)
        assert digest in engine.ok("pull", name)
        engine.ok("logout", registry.address)
        engine.ok("rmi", name)


def registry_digest(registry: DrayRegistry) -> str:
    """The digest of team/busybox:v1, as the registry tells it to whoever has the password."""
    from base64 import b64encode

    header = {"Authorization": "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
    return registry.request("HEAD", "/v2/team/busybox/manifests/v1", headers=header)[1]["docker-content-digest"]


@pytest.mark.parametrize("auth", ["htpasswd", "token"])
def test_login_push_pull(dockerd: Dockerd, tmp_path: Path, auth: str) -> None:
    authority = Authority(tmp_path / "ca")
    options = [f"--auth={auth}"]
    with DrayRegistry(
        tmp_path / "registry", tls=authority, htpasswd={USER: PASSWORD}, options=options
    ) as registry:
        name = f"{registry.address}/team/busybox:v1"
        dockerd.ok("tag", "busybox", name)
        assert "denied" in dockerd.fails("push", name) or "no basic auth" in dockerd.fails("push", name)
        wrong = dockerd.docker("login", "-u", USER, "--password-stdin", registry.address, input="wrong")
        assert wrong.returncode == 1
        dockerd.ok("login", "-u", USER, "--password-stdin", registry.address, input=PASSWORD)
        pushed = dockerd.ok("push", name)
        identifier = dockerd.inspect("busybox", kind="image")["Id"]
        dockerd.ok("rmi", name)
        pulled = dockerd.ok("pull", name)
        image = dockerd.inspect(name, kind="image")
        assert image["Id"] == identifier
        digest = image["RepoDigests"][-1].partition("@")[2]
        assert digest in pushed
        assert digest in pulled
        # A push of layers that are there mounts or skips them.
        other = f"{registry.address}/team/other:v1"
        dockerd.ok("tag", name, other)
        assert "ounted from" in dockerd.ok("push", other) or auth == "token"
        dockerd.ok("logout", registry.address)
        dockerd.ok("rmi", name, other)
        assert dockerd.docker("pull", name).returncode == 1


def test_all_tags(dockerd: Dockerd, tmp_path: Path) -> None:
    with DrayRegistry(tmp_path / "registry") as registry:
        for tag in ("v1", "v2"):
            dockerd.ok("tag", "busybox", f"{registry.address}/b:{tag}")
        dockerd.ok("push", "--all-tags", f"{registry.address}/b")
        assert json.loads(registry.request("GET", "/v2/b/tags/list")[2])["tags"] == ["v1", "v2"]
        dockerd.ok("rmi", f"{registry.address}/b:v1", f"{registry.address}/b:v2")
        dockerd.ok("pull", "--all-tags", f"{registry.address}/b")
        dockerd.ok("rmi", f"{registry.address}/b:v1", f"{registry.address}/b:v2")
