"""Foreign clients at our registry: skopeo and podman, in the clear and with TLS and passwords; digests are equal."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import cache
from support.registries import PROGRAM, Authority, DebianRegistry, DrayRegistry

USER, PASSWORD = "alice", "a secret"


@pytest.fixture(params=["plain", "tls"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DrayRegistry]:
    if request.param == "plain":
        one = DrayRegistry(tmp_path / "registry")
    else:
        one = DrayRegistry(tmp_path / "registry", tls=Authority(tmp_path / "ca"), htpasswd={USER: PASSWORD})
    with one:
        yield one


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


def flags(registry: DebianRegistry, side: str = "") -> list[str]:
    """skopeo's and podman's flags to reach a registry."""
    ours = [f"--{side}tls-verify=false"]
    return ours if registry.tls is None else [*ours, f"--{side}creds={USER}:{PASSWORD}"]


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo(registry: DrayRegistry, tmp_path: Path) -> None:
    layout, there = tmp_path / "layout", f"docker://{registry.address}/team/busybox"
    shutil.unpack_archive(cache.busybox_layout(), layout, "tar")
    copy = ["skopeo", "copy", "--quiet", "--insecure-policy"]
    image = json.loads((layout / "index.json").read_text())["manifests"][0]
    name = image.get("annotations", {}).get("org.opencontainers.image.ref.name")
    run(*copy, *flags(registry, "dest-"), f"oci:{layout}{f':{name}' if name else ''}", f"{there}:v1")
    assert run("skopeo", "inspect", *flags(registry), "--format={{.Digest}}", f"{there}:v1") == image["digest"]
    run(*copy, *flags(registry, "src-"), f"{there}:v1", f"oci:{tmp_path}/back:v1")
    back = json.loads((tmp_path / "back/index.json").read_text())["manifests"][0]
    assert back["digest"] == image["digest"]
    assert "v1" in run("skopeo", "list-tags", *flags(registry), there)
    run("skopeo", "delete", *flags(registry), f"{there}:v1")
    assert registry.access_log()[-1].status == 202
    if PROGRAM is not None:
        with DebianRegistry(tmp_path / "debian") as other:
            second = f"docker://{other.address}/busybox:v1"
            run(*copy, *flags(other, "dest-"), f"oci:{tmp_path}/back:v1", second)
            run(*copy, *flags(other, "src-"), *flags(registry, "dest-"), second, f"{there}:v2")
            assert (
                run("skopeo", "inspect", *flags(registry), "--format={{.Digest}}", f"{there}:v2")
                == image["digest"]
            )


@pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed")
def test_podman(registry: DrayRegistry, tmp_path: Path) -> None:
    folder = tempfile.mkdtemp(prefix="dray-podman-")  # podman takes no long path
    podman = ["podman", f"--root={folder}/p", f"--runroot={folder}/r", "--storage-driver=vfs"]
    try:
        run(*podman, "load", "--quiet", f"--input={cache.busybox_archive()}")
        there = f"{registry.address}/team/busybox:v1"
        run(*podman, "push", "--quiet", *flags(registry), f"--digestfile={tmp_path}/digest", "busybox", there)
        digest = (tmp_path / "digest").read_text()
        identifier = run(*podman, "image", "inspect", "--format={{.Id}}", "busybox")
        run(*podman, "rmi", "--all", "--force")
        assert run(*podman, "pull", "--quiet", *flags(registry), there) == identifier
        assert run(*podman, "image", "inspect", "--format={{.Digest}}", there) == digest
        status, headers, _ = registry.request("HEAD", "/v2/team/busybox/manifests/v1")
        assert (status, headers.get("docker-content-digest")) == (
            (200, digest) if registry.tls is None else (401, None)
        )
    finally:
        subprocess.run([*podman, "system", "reset", "--force"], capture_output=True, timeout=60, check=False)
        shutil.rmtree(folder, ignore_errors=True)
