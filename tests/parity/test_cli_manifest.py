"""`dray manifest` beside `docker manifest`: the same words to the same registry, the same answers and the same files."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.base import digest as digests
from dray.base import reference
from dray.oci import image as oci
from dray.registry.remote import RemoteRegistries
from images.archive import layer_tar, text
from support.registries import DrayRegistry

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="the docker client is not installed")

DRAY = [sys.executable, "-m", "dray.cli.main"]
CLIENTS = {"docker": ["docker"], "dray": DRAY}


def put_image(registry: DrayRegistry, path: str, tag: str, architecture: str, kind: str, **more: str) -> None:
    """An image of one small layer."""
    name = reference.parse(f"{registry.address}/{path}")
    repository = RemoteRegistries().repository(name, push=True)
    tar = layer_tar([text("name", architecture)])
    blob = gzip.compress(tar, mtime=0)
    rootfs = {"type": "layers", "diff_ids": [digests.of(tar)]}
    config = json.dumps(
        {"architecture": architecture, "os": "linux", **more, "config": {}, "rootfs": rootfs}
    ).encode()
    types = {
        oci.DOCKER_MANIFEST: (oci.DOCKER_CONFIG, oci.DOCKER_LAYER_GZIP),
        oci.OCI_MANIFEST: (oci.OCI_CONFIG, oci.OCI_LAYER_GZIP),
    }
    for data in (blob, config):
        upload = repository.upload(digests.of(data))
        assert upload is not None
        upload.send(data)
        upload.commit(digests.of(data))
    described = [
        {"mediaType": media_type, "digest": digests.of(data), "size": len(data)}
        for media_type, data in zip(types[kind], (config, blob), strict=True)
    ]
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": described[0], "layers": described[1:]}
    repository.put_manifest(tag, kind, json.dumps(manifest, indent=3).encode())
    repository.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DrayRegistry]:
    with DrayRegistry(tmp_path_factory.mktemp("registry")) as one:
        put_image(one, "app", "amd64", "amd64", oci.DOCKER_MANIFEST)
        put_image(one, "app", "arm", "arm", oci.DOCKER_MANIFEST, variant="v7")
        put_image(one, "other", "arm64", "arm64", oci.DOCKER_MANIFEST)
        put_image(one, "app", "oci", "amd64", oci.OCI_MANIFEST)
        put_image(one, "app", "ociarm", "arm64", oci.OCI_MANIFEST)
        yield one


def run(client: str, folder: Path, *words: str) -> tuple[int, str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")}
    done = subprocess.run(
        [*CLIENTS[client], *words],
        env={**environment, "DOCKER_CONFIG": str(folder)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def both(tmp_path: Path, *words: str) -> tuple[int, str, str]:
    """Do it with both; insist on the same."""
    results = {}
    for client in CLIENTS:
        (tmp_path / client).mkdir(exist_ok=True)
        results[client] = run(client, tmp_path / client, *words)
    assert results["dray"] == results["docker"], words
    assert files(tmp_path / "dray") == files(tmp_path / "docker"), words
    return results["dray"]


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_list_from_beginning_to_end(registry: DrayRegistry, tmp_path: Path) -> None:
    at, insecure = registry.address, "--insecure"
    m = ("manifest",)
    lists = f"{at}/app:multi"
    both(tmp_path, *m, "inspect", insecure, f"{at}/app:amd64")
    both(tmp_path, *m, "inspect", insecure, "-v", f"{at}/app:arm")
    both(tmp_path, *m, "inspect", insecure, "-v", f"{at}/app:oci")
    both(tmp_path, *m, "create", insecure, lists, f"{at}/app:amd64", f"{at}/app:arm")
    assert both(tmp_path, *m, "create", insecure, lists, f"{at}/app:amd64")[0] == 1
    both(tmp_path, *m, "create", insecure, "-a", lists, f"{at}/other:arm64")
    both(
        tmp_path, *m, "annotate", lists, f"{at}/app:arm",
        *("--os", "linux", "--arch", "arm", "--variant", "v6", "--os-features", "a,b", "--os-version", "1.2"),
    )  # fmt: skip
    both(tmp_path, *m, "annotate", lists, f"{at}/app:arm", "--os-features", "b", "--os-features", "c")
    for words in (["--arch", "nonsense"], ["--os", "linux", "--arch", "loong64"]):
        assert both(tmp_path, *m, "annotate", lists, f"{at}/app:arm", *words)[0] == 1
    both(tmp_path, *m, "inspect", lists)
    both(tmp_path, *m, "inspect", "-v", lists)
    both(tmp_path, *m, "inspect", lists, f"{at}/app:arm")
    both(tmp_path, *m, "inspect", "-v", lists, f"{at}/app:arm")
    both(tmp_path, *m, "push", insecure, lists)
    status, out, _ = both(tmp_path, *m, "push", insecure, "-p", lists)
    assert status == 0
    assert re.fullmatch(r"Pushed ref .*/app@sha256:\w+ with digest: sha256:\w+\nsha256:\w+\n", out)
    both(tmp_path, *m, "inspect", insecure, lists)
    both(tmp_path, *m, "inspect", insecure, "-v", lists)
    assert "is a manifest list" in both(tmp_path, *m, "create", insecure, f"{at}/app:again", lists)[2]


def test_lists_of_oci_and_mixed_images(registry: DrayRegistry, tmp_path: Path) -> None:
    at = registry.address
    for name, images in {"o": ("oci", "ociarm"), "m1": ("amd64", "ociarm"), "m2": ("oci", "arm")}.items():
        both(tmp_path, "manifest", "create", "--insecure", f"{at}/app:{name}", *(f"{at}/app:{i}" for i in images))
        both(tmp_path, "manifest", "inspect", f"{at}/app:{name}")
        both(tmp_path, "manifest", "push", "--insecure", f"{at}/app:{name}")
    both(tmp_path, "manifest", "rm", f"{at}/app:o", f"{at}/app:m1")
    digest = json.loads(run("dray", tmp_path / "dray", "manifest", "inspect", "-v", f"{at}/app:arm")[1])
    by_digest = f"{at}/app@{digest['Descriptor']['digest']}"
    both(tmp_path, "manifest", "create", "--insecure", f"{at}/app:d", by_digest)
    both(tmp_path, "manifest", "annotate", f"{at}/app:d", by_digest, "--variant", "v8")
    both(tmp_path, "manifest", "push", "--insecure", f"{at}/app:d")


def test_what_is_refused(registry: DrayRegistry, tmp_path: Path) -> None:
    at = registry.address
    for words in (
        ("inspect", "--insecure", f"{at}/app:nope"),
        ("inspect", "app:nope/"),
        ("inspect", f"{at}/app:nolist", f"{at}/app:arm"),
        ("create", "--insecure", f"{at}/app:none", f"{at}/app:missing"),
        ("annotate", f"{at}/app:nolist", f"{at}/app:arm", "--arch", "arm"),
        ("push", f"{at}/app:nolist"),
        ("rm", f"{at}/app:nolist", "busy"),
    ):
        assert both(tmp_path, "manifest", *words)[0] == 1
    both(tmp_path, "manifest", "create", "--insecure", "elsewhere.example/app:x", f"{at}/app:arm")
    both(tmp_path, "manifest", "create", "--insecure", "busy", f"{at}/app:arm")
    for name in ("elsewhere.example/app:x", "busy"):
        assert "different registry" in both(tmp_path, "manifest", "push", "--insecure", name)[2]


def test_one_client_goes_on_with_what_the_other_has_begun(registry: DrayRegistry, tmp_path: Path) -> None:
    name = f"{registry.address}/app:shared"
    tmp_path.joinpath("home").mkdir()
    home = tmp_path / "home"
    assert run("docker", home, "manifest", "create", "--insecure", name, f"{registry.address}/app:arm")[0] == 0
    assert (
        run("dray", home, "manifest", "annotate", name, f"{registry.address}/app:arm", "--variant", "v5")[0] == 0
    )
    assert '"v5"' in run("docker", home, "manifest", "inspect", name)[1]


def test_a_list_is_whole_or_not_made(registry: DrayRegistry, tmp_path: Path) -> None:
    """docker leaves what came before the image that is missing, and then refuses to go on without --amend."""
    words = (f"{registry.address}/app:half", f"{registry.address}/app:arm", f"{registry.address}/app:missing")
    status, _, error = run("dray", tmp_path, "manifest", "create", *words)
    assert (status, error) == (1, f"no such manifest: {registry.address}/app:missing\n")
    assert files(tmp_path) == {}


def test_with_the_users_credentials(tmp_path: Path) -> None:
    with DrayRegistry(tmp_path / "registry", htpasswd={"user": "secret"}) as closed:
        status, _, error = run("dray", tmp_path, "manifest", "inspect", f"{closed.address}/app:x")
        assert status == 1
        assert "no basic auth credentials" in error
        auths = {closed.address: {"auth": "dXNlcjpzZWNyZXQ="}}
        (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
        status, _, error = run("dray", tmp_path, "manifest", "inspect", f"{closed.address}/app:x")
        assert (status, error) == (1, f"no such manifest: {closed.address}/app:x\n")
