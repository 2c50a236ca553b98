"""Responses in the shape that a request's API version promised.

The engine speaks the newest version; each function here takes its answer back in time. What needs only fields taken
away is changed in place; what needs fields that the models no longer have becomes a plain document.

    version   what older clients get
    1.52      top-level addresses and GraphDriver in container inspect, legacy df and event fields; no Health,
              Storage, network Status
    1.50      bridge-nf fields in info; full Config in image inspect
    1.48      no manifest descriptors
    1.46      no image create event; no annotations in the list
    1.45      short id among the aliases; Container, ContainerConfig in image inspect
    1.44      VirtualSize; no DNSNames
    1.43      `<none>:<none>` for untagged images
    1.42      KernelMemory
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dray.api import models
from dray.api.versions import Version

Document = dict[str, Any]

_LEGACY_ENDPOINT = (
    "EndpointID",
    "Gateway",
    "GlobalIPv6Address",
    "GlobalIPv6PrefixLen",
    "IPAddress",
    "IPPrefixLen",
    "IPv6Gateway",
    "MacAddress",
)
_NUMBERS = frozenset({"GlobalIPv6PrefixLen", "IPPrefixLen"})
_NO_GRAPH = {"Data": None, "Name": "overlayfs"}


def _document(value: msgspec.Struct) -> Document:
    document: Document = msgspec.to_builtins(value)
    return document


_NAMELESS = ("bridge", "host", "none")  # the predefined networks know no aliases


def container_summaries(found: list[models.ContainerSummary], version: Version) -> Any:
    """Shape the list of containers."""
    if version >= (1, 52):
        return found
    for summary in found:
        summary.health = None
        if version < (1, 48):
            summary.image_manifest_descriptor = None
        if version < (1, 46):
            summary.host_config.annotations = {}
    if version >= (1, 48):
        return found
    documents = [_document(summary) for summary in found]
    for document in documents:
        _age_endpoints(document["NetworkSettings"]["Networks"], document["Id"], version)
    return documents


def container(found: models.ContainerInspectResponse, version: Version) -> Any:
    """Shape one container."""
    if version >= (1, 52):
        return found
    if version < (1, 48):
        found.image_manifest_descriptor = None
    found.storage = None
    document = _document(found)
    document.setdefault("GraphDriver", _NO_GRAPH)
    settings = document["NetworkSettings"]
    networks: dict[str, Document] = settings["Networks"]
    mode = found.host_config.network_mode
    main = networks.get("bridge" if mode in {"default", ""} else mode, {})
    settings |= {
        "Bridge": "",
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
    }
    bridge = networks.get("bridge", {})  # only the default bridge's addresses were ever shown at the top
    settings |= {key: bridge.get(key, 0 if key in _NUMBERS else "") for key in _LEGACY_ENDPOINT}
    document["Config"].setdefault("OnBuild", None)
    if main.get("MacAddress") and version >= (1, 44):
        document["Config"].setdefault("MacAddress", main["MacAddress"])
    _age_endpoints(networks, found.id, version)
    if version < (1, 42):
        document["HostConfig"].setdefault("KernelMemory", 0)
        document["HostConfig"].setdefault("KernelMemoryTCP", 0)
    return document


def _age_endpoints(endpoints: Mapping[str, Document], container_id: str, version: Version) -> None:
    short_id = container_id[:12]
    for name, endpoint in endpoints.items():
        aliases = endpoint.get("Aliases") or []
        named = aliases or (name not in _NAMELESS and endpoint.get("NetworkID"))  # it was in that network once
        if version < (1, 45) and named and short_id not in aliases:
            endpoint["Aliases"] = [*aliases, short_id]
        if version < (1, 44):
            endpoint.pop("DNSNames", None)
        if version < (1, 48):
            endpoint.pop("GwPriority", None)


def image_summaries(found: list[models.ImageSummary], version: Version, *, counted: bool = False) -> Any:
    """Shape the list of images; `counted`: their containers were always told."""
    for summary in found:
        if version < (1, 51) and not counted:
            summary.containers = -1
        if version < (1, 48):
            summary.descriptor = None
        if version < (1, 47):
            summary.manifests = []
        if version < (1, 43) and not summary.repo_tags:
            summary.repo_tags = ["<none>:<none>"]
            summary.repo_digests = summary.repo_digests or ["<none>@<none>"]
    if version >= (1, 44):
        return found
    return [{**_document(summary), "VirtualSize": summary.size} for summary in found]


def image(found: models.ImageInspect, version: Version) -> Any:
    """Shape one image."""
    if version >= (1, 52):
        return found
    found.identity = None
    if version < (1, 48):
        found.descriptor = None
    document = _document(found)
    document.setdefault("GraphDriver", _NO_GRAPH)
    for key in ("Parent", "Comment", "Author", "DockerVersion", "Created"):
        document.setdefault(key, "")
    if version < (1, 50):
        document["Config"] = _full_config(document.get("Config") or {})
    if version < (1, 45):
        document["Container"] = ""
        document["ContainerConfig"] = _full_config({})
    if version < (1, 44):
        document["VirtualSize"] = found.size
    return document


def _full_config(config: Document) -> Document:
    """Return an image's configuration with the container's fields that it had before 1.50."""
    return _document(models.ContainerConfig()) | {"OnBuild": None} | config


def network_summaries(found: list[models.NetworkSummary], version: Version) -> Any:
    """Shape the list of networks."""
    if version >= (1, 52):
        return found
    return [_without_ipv4(_document(network) | {"Containers": {}}, version) for network in found]


def network(found: models.NetworkInspect, version: Version) -> Any:
    """Shape one network."""
    if version >= (1, 52):
        return found
    found.status = None
    return _without_ipv4(_document(found), version)


def _without_ipv4(document: Document, version: Version) -> Document:
    if version < (1, 48):
        document.pop("EnableIPv4", None)
    return document


def info(found: models.SystemInfo, version: Version) -> Any:
    """Shape the description of the engine."""
    if version >= (1, 52):
        return found
    document = _document(found)
    document.pop("NRI", None)
    if version < (1, 50):
        document.pop("DiscoveredDevices", None)
        document |= {"BridgeNfIptables": False, "BridgeNfIp6tables": False}
    if version < (1, 49):
        document.pop("FirewallBackend", None)
        for commit in ("ContainerdCommit", "RuncCommit", "InitCommit"):
            document[commit]["Expected"] = document[commit]["ID"]
        document["RegistryConfig"] |= {
            "AllowNondistributableArtifactsCIDRs": [],
            "AllowNondistributableArtifactsHostnames": [],
        }
    if version < (1, 46):
        document.pop("Containerd", None)
    if version < (1, 42):
        document |= {"KernelMemory": False, "KernelMemoryTCP": False}
    if version < (1, 25):
        document["SecurityOptions"] = [_security_name(option) for option in document["SecurityOptions"]]
        document["ExecutionDriver"] = "<not supported>"
    return document


def _security_name(option: str) -> str:
    parts = dict(part.partition("=")[::2] for part in option.split(","))
    return parts.get("name", option)


def event(message: models.EventMessage, version: Version) -> Any:
    """Shape an event; None if clients of that version do not know it."""
    if version >= (1, 52):
        return message
    if version < (1, 46) and message.type == "image" and message.action == "create":
        return None
    legacy = {"status": message.action, "id": message.actor.id} if message.type in {"container", "image"} else {}
    source = message.actor.attributes.get("image", "") if message.type == "container" else ""
    return legacy | ({"from": source} if source else {}) | _document(message)


def disk_usage(usage: models.DiskUsage, version: Version, *, types: tuple[str, ...], verbose: bool) -> Any:
    """Shape the disk usage: lists of objects before 1.52, sums since then, both in 1.52 unless `verbose`."""
    wanted = set(types) or {"container", "image", "volume", "build-cache"}
    parts = {
        "image": ("ImageUsage", usage.image_usage),
        "container": ("ContainerUsage", usage.container_usage),
        "volume": ("VolumeUsage", usage.volume_usage),
        "build-cache": ("BuildCacheUsage", usage.build_cache_usage),
    }
    document: Document = {}
    if version >= (1, 52):
        for kind, (name, part) in parts.items():
            if kind in wanted:
                sums = _document(part)
                if not verbose:
                    sums.pop("Items", None)
                document[name] = sums
    if version >= (1, 53) or verbose:
        return document
    document["LayersSize"] = usage.image_usage.total_size if "image" in wanted else 0
    document["Images"] = (
        image_summaries(usage.image_usage.items, version, counted=True) if "image" in wanted else None
    )
    document["Containers"] = (
        container_summaries(usage.container_usage.items, version) if "container" in wanted else None
    )
    document["Volumes"] = usage.volume_usage.items if "volume" in wanted else None
    document["BuildCache"] = usage.build_cache_usage.items if "build-cache" in wanted else None
    if version < (1, 42):
        document["BuilderSize"] = usage.build_cache_usage.total_size
    return document
