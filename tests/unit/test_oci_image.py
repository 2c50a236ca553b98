"""`oci.image` and `oci.platform`: documents, ambiguity, platforms."""

from __future__ import annotations

import json

import pytest

from dray.base import digest as digests
from dray.base.errors import InvalidParameter
from dray.oci import image as oci
from dray.oci import platform as platforms
from dray.oci.platform import Platform

DESCRIPTOR = {"mediaType": oci.OCI_CONFIG, "digest": "sha256:" + "a" * 64, "size": 3}


def document(**fields: object) -> bytes:
    return json.dumps({"schemaVersion": 2, **fields}).encode()


def test_manifest_and_index() -> None:
    manifest = oci.parse_document(document(config=DESCRIPTOR, layers=None))
    assert isinstance(manifest, oci.Manifest)
    assert manifest.config.size == 3
    index = oci.parse_document(
        document(manifests=[{**DESCRIPTOR, "platform": {"architecture": "arm", "os": "linux"}}])
    )
    assert isinstance(index, oci.Index)
    assert index.manifests
    assert str(index.manifests[0].platform) == "linux/arm"


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (document(config=DESCRIPTOR, layers=[], manifests=[]), ""),
        (document(config=DESCRIPTOR, layers=[]), oci.OCI_INDEX),
        (document(manifests=[]), oci.OCI_MANIFEST),
        (document(manifests=[], mediaType=oci.OCI_MANIFEST), ""),
        (document(config=DESCRIPTOR, mediaType=oci.DOCKER_LIST), ""),
        (document(manifests=[], fsLayers=[]), ""),
    ],
)
def test_ambiguous_manifests_are_refused(data: bytes, media_type: str) -> None:
    """CVE-2021-41190."""
    with pytest.raises(InvalidParameter, match="ambiguous"):
        oci.parse_document(data, media_type)


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{}",
        b"\xff",
        document(fsLayers=[]),
        document(config={**DESCRIPTOR, "digest": "sha256:zz"}),
        document(config={**DESCRIPTOR, "size": -1}),
        document(config=DESCRIPTOR).replace(b"2", b"1", 1),
    ],
)
def test_malformed_manifests_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidParameter):
        oci.parse_document(data)


def test_config_as_docker_writes_it() -> None:
    config = oci.parse_config(
        json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["sh"], "Entrypoint": None, "ExposedPorts": {"80/tcp": {}}, "OnBuild": None},
                "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "b" * 64]},
                "history": [{"created_by": "x", "empty_layer": True}],
                "something": "unknown",
            }
        ).encode()
    )
    assert config.config
    assert config.config.cmd == ["sh"]
    assert config.config.exposed_ports == {"80/tcp": {}}
    assert str(config.platform) == "linux/amd64"


def test_chain_ids() -> None:
    first, second = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert oci.chain_ids([]) == []
    assert oci.chain_ids([first, second]) == [first, digests.of(f"{first} {second}".encode())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("armhf", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
    ],
)
def test_platform_names(text: str, expected: str) -> None:
    assert str(platforms.parse(text)) == expected


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux/", "nonsense", "linux/a b"])
def test_bad_platforms(text: str) -> None:
    with pytest.raises(InvalidParameter):
        platforms.parse(text)


@pytest.mark.parametrize(
    ("have", "want", "expected"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/386", "linux/amd64", 100),
        ("linux/arm/v6", "linux/arm/v7", 1),
        ("linux/arm/v7", "linux/arm/v6", None),
        ("linux/arm/v7", "linux/arm64", 101),
        ("linux/arm64", "linux/amd64", None),
        ("windows/amd64", "linux/amd64", None),
    ],
)
def test_platform_rank(have: str, want: str, expected: int | None) -> None:
    assert platforms.rank(platforms.parse(have), platforms.parse(want)) == expected


def test_host_is_normalized() -> None:
    assert platforms.host() == platforms.host().normalized
    assert isinstance(platforms.host(), Platform)
