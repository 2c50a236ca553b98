"""Our registry as clients meet it: the official one through drayd and through dockerd, skopeo and podman.

Login, push, pull and logout, with TLS, by passwords and by tokens; digests are equal on all sides.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import cache
from support.engines import Dockerd, Engine
from support.registries import Authority, DrayRegistry, trusted
from support.world import HOST_ADDRESS, World

NEEDS_DOCKERD = pytest.mark.skipif(shutil.which("dockerd") is None, reason="dockerd is not installed")
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


class Served:
    """A registry of ours with TLS and passwords, at an address where nothing is insecure by default."""

    def __init__(self, folder: Path, auth: str) -> None:
        self.authority = Authority(folder / "ca")
        self.registry = DrayRegistry(
            folder / "registry",
            tls=self.authority,
            htpasswd={USER: PASSWORD},
            host=HOST_ADDRESS,
            options=[f"--auth={auth}"],
        )
        self.address = self.registry.address
        self.certificates = folder / "certificates"  # skopeo and podman take no folder with a key in it
        self.certificates.mkdir()
        shutil.copy(self.authority.certificate, self.certificates)

    def login(self, engine: Engine, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
        return engine.docker("login", "-u", USER, "--password-stdin", self.address, input=password)

    def skopeo(self, verb: str, *words: str, side: str = "") -> str:
        flags = [f"--{side}creds={USER}:{PASSWORD}", f"--{side}cert-dir={self.certificates}"]
        return run("skopeo", "--insecure-policy", verb, *flags, *words)

    def digest(self, name: str) -> str:
        return self.skopeo("inspect", "--format={{.Digest}}", f"docker://{name}")


@pytest.fixture(params=["htpasswd", "token"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path, request.param)
    with one.registry:
        yield one


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


def digest_of(engine: Engine, name: str) -> str:
    """The digest under which an engine knows an image of a repository."""
    (found,) = [
        one for one in engine.inspect(name, kind="image")["RepoDigests"] if name.startswith(one.split("@")[0])
    ]
    return str(found.partition("@")[2])


def refused(engine: Engine, verb: str, name: str) -> bool:
    said = engine.fails(verb, name)
    return any(
        words in said
        for words in ("no basic auth credentials", "denied", "unauthorized", "authentication required")
    )


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_through_drayd(engine: Engine, served: Served) -> None:
    name = f"{served.address}/team/busybox:v1"
    engine.ok("tag", "busybox", name)
    try:
        assert "x509: certificate signed by unknown authority" in served.login(engine).stderr
        with trusted(served.address, served.authority):
            assert refused(engine, "push", name)
            assert served.login(engine, "wrong").returncode == 1
            assert refused(engine, "push", name)
            assert served.login(engine).returncode == 0
            pushed = engine.ok("push", name)
            digest = served.digest(name)
            assert f"digest: {digest}" in pushed
            engine.ok("rmi", name)
            assert f"Digest: {digest}" in engine.ok("pull", name)
            assert digest_of(engine, name) == digest
            engine.ok("logout", served.address)
            engine.ok("rmi", name)
            assert refused(engine, "pull", name)
            engine.ok("tag", "busybox", name)
            assert refused(engine, "push", name)
    finally:
        engine.docker("logout", served.address)
        engine.docker("rmi", name)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
@pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed")
def test_what_one_client_pushes_all_others_pull(engine: Engine, served: Served, tmp_path: Path) -> None:
    names = [f"{served.address}/team/busybox:{tag}" for tag in ("drayd", "podman", "skopeo")]
    folder = tempfile.mkdtemp(prefix="dray-podman-")  # podman takes no long path
    podman = ["podman", f"--root={folder}/p", f"--runroot={folder}/r", "--storage-driver=vfs"]
    secret = [f"--creds={USER}:{PASSWORD}", f"--cert-dir={served.certificates}", "--quiet"]
    same = ("--quiet", "--preserve-digests")

    def pulled_by_all(name: str) -> set[str]:
        tag = name.rpartition(":")[2]
        engine.ok("pull", name)
        run(*podman, "pull", *secret, name)
        by_podman = run(*podman, "image", "inspect", "--format={{.Digest}}", name)
        served.skopeo("copy", *same, f"docker://{name}", f"dir:{tmp_path}/{tag}", side="src-")
        copy = "sha256:" + hashlib.sha256((tmp_path / tag / "manifest.json").read_bytes()).hexdigest()
        return {digest_of(engine, name), by_podman, copy, served.digest(name)}

    try:
        with trusted(served.address, served.authority):
            assert served.login(engine).returncode == 0
            engine.ok("tag", "busybox", names[0])
            engine.ok("push", names[0])
            engine.ok("rmi", names[0])
            digest = served.digest(names[0])
            assert pulled_by_all(names[0]) == {digest}
            run(*podman, "push", *secret, f"--digestfile={tmp_path}/digest", names[0], names[1])
            assert pulled_by_all(names[1]) == {(tmp_path / "digest").read_text()}
            served.skopeo("copy", *same, f"dir:{tmp_path}/drayd", f"docker://{names[2]}", side="dest-")
            assert pulled_by_all(names[2]) == {digest}
    finally:
        engine.docker("logout", served.address)
        for name in names:
            engine.docker("rmi", name)
        subprocess.run([*podman, "system", "reset", "--force"], capture_output=True, timeout=60, check=False)
        shutil.rmtree(folder, ignore_errors=True)


@NEEDS_DOCKERD
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


@NEEDS_DOCKERD
def test_all_tags(dockerd: Dockerd, tmp_path: Path) -> None:
    with DrayRegistry(tmp_path / "registry") as registry:
        for tag in ("v1", "v2"):
            dockerd.ok("tag", "busybox", f"{registry.address}/b:{tag}")
        dockerd.ok("push", "--all-tags", f"{registry.address}/b")
        assert json.loads(registry.request("GET", "/v2/b/tags/list")[2])["tags"] == ["v1", "v2"]
        dockerd.ok("rmi", f"{registry.address}/b:v1", f"{registry.address}/b:v2")
        dockerd.ok("pull", "--all-tags", f"{registry.address}/b")
        dockerd.ok("rmi", f"{registry.address}/b:v1", f"{registry.address}/b:v2")
