"""Requests of older clients brought forward, responses taken back."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from dray.api import adapt, models, shapes
from dray.base.errors import InvalidParameter

ID = "12" * 32


def written(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def container() -> models.ContainerInspectResponse:
    found = models.ContainerInspectResponse(
        id=ID,
        image_manifest_descriptor=models.OCIDescriptor(),
        storage=models.Storage(),
        host_config=models.HostConfig(network_mode="bridge"),
    )
    found.network_settings.networks["bridge"] = models.EndpointSettings(
        ip_address="172.17.0.2",
        ip_prefix_len=16,
        mac_address="02:42:ac:11:00:02",
        aliases=["web"],
        dns_names=["web"],
    )
    return found


@pytest.mark.parametrize(
    ("version", "there", "gone"),
    [
        ((1, 52), {"Storage", "ImageManifestDescriptor"}, {"GraphDriver"}),
        ((1, 51), {"GraphDriver", "ImageManifestDescriptor"}, {"Storage"}),
        ((1, 47), {"GraphDriver"}, {"Storage", "ImageManifestDescriptor"}),
    ],
)
def test_container_fields(version: tuple[int, int], there: set[str], gone: set[str]) -> None:
    document = written(shapes.container(container(), version))
    assert there <= document.keys()
    assert not gone & document.keys()


def test_container_network_settings() -> None:
    new = written(shapes.container(container(), (1, 52)))["NetworkSettings"]
    assert set(new) == {"SandboxID", "SandboxKey", "Ports", "Networks"}
    old = written(shapes.container(container(), (1, 41)))
    settings = old["NetworkSettings"]
    assert (settings["IPAddress"], settings["IPPrefixLen"], settings["Bridge"]) == ("172.17.0.2", 16, "")
    assert settings["SecondaryIPAddresses"] is None
    endpoint = settings["Networks"]["bridge"]
    assert endpoint["Aliases"] == ["web", ID[:12]]
    assert "DNSNames" not in endpoint
    assert "GwPriority" not in endpoint
    assert old["HostConfig"]["KernelMemory"] == 0
    assert "MacAddress" not in old["Config"]
    assert written(shapes.container(container(), (1, 44)))["Config"]["MacAddress"] == "02:42:ac:11:00:02"


def test_addresses_on_other_networks_are_not_at_the_top() -> None:
    found = container()
    found.network_settings.networks["mine"] = found.network_settings.networks.pop("bridge")
    found.host_config.network_mode = "mine"
    settings = written(shapes.container(found, (1, 41)))["NetworkSettings"]
    assert (settings["IPAddress"], settings["IPPrefixLen"]) == ("", 0)


def test_image() -> None:
    found = models.ImageInspect(id="sha256:1", size=5, config=models.ImageConfig(cmd=["sh"]))
    assert "Parent" not in written(shapes.image(found, (1, 52)))
    at_1_50 = written(shapes.image(found, (1, 50)))
    assert at_1_50["Parent"] == ""
    assert "Hostname" not in at_1_50["Config"]
    old = written(shapes.image(found, (1, 43)))
    assert (old["VirtualSize"], old["Container"], old["Config"]["Hostname"], old["Config"]["Cmd"]) == (
        5,
        "",
        "",
        ["sh"],
    )


def test_image_list() -> None:
    def listed(version: tuple[int, int]) -> Any:
        summary = models.ImageSummary(size=5, descriptor=models.OCIDescriptor(), repo_tags=[])
        return written(shapes.image_summaries([summary], version))[0]

    assert listed((1, 42))["RepoTags"] == ["<none>:<none>"]
    assert listed((1, 43))["RepoTags"] == []
    assert "VirtualSize" in listed((1, 43))
    assert "VirtualSize" not in listed((1, 44))
    assert "Descriptor" not in listed((1, 47))
    assert "Descriptor" in listed((1, 48))


def test_container_list() -> None:
    def listed(version: tuple[int, int]) -> Any:
        summary = models.ContainerSummary(health=models.HealthSummary(status="healthy"))
        summary.host_config.annotations = {"a": "b"}
        return written(shapes.container_summaries([summary], version))[0]

    assert "Health" in listed((1, 52))
    assert "Health" not in listed((1, 51))
    assert listed((1, 46))["HostConfig"]["Annotations"] == {"a": "b"}
    assert "Annotations" not in listed((1, 45))["HostConfig"]


def test_networks() -> None:
    found = models.NetworkInspect(name="n", status=models.NetworkStatus())
    assert "Status" in written(shapes.network(found, (1, 52)))
    old = written(shapes.network(found, (1, 47)))
    assert "Status" not in old
    assert "EnableIPv4" not in old
    assert written(shapes.network_summaries([models.NetworkSummary()], (1, 51)))[0]["Containers"] == {}


def test_info() -> None:
    found = models.SystemInfo(nri=models.NRIInfo(), containerd=models.ContainerdInfo())
    found.security_options = ["name=seccomp,profile=builtin"]
    found.runc_commit.id = "abc"
    assert "NRI" in written(shapes.info(found, (1, 55)))
    old = written(shapes.info(found, (1, 24)))
    assert old["SecurityOptions"] == ["seccomp"]
    assert old["RuncCommit"]["Expected"] == "abc"
    assert old["BridgeNfIptables"] is False
    assert "Containerd" not in old


def test_events() -> None:
    actor = models.EventActor(id=ID, attributes={"image": "busybox"})
    start = models.EventMessage(type="container", action="start", actor=actor)
    assert written(shapes.event(start, (1, 52))).keys() == {"Type", "Action", "Actor"}
    old = written(shapes.event(start, (1, 51)))
    assert (old["status"], old["id"], old["from"]) == ("start", ID, "busybox")
    create = models.EventMessage(type="image", action="create", actor=models.EventActor())
    assert shapes.event(create, (1, 45)) is None
    assert shapes.event(create, (1, 46)) is not None
    connect = models.EventMessage(type="network", action="connect", actor=models.EventActor(id="n"))
    assert "status" not in written(shapes.event(connect, (1, 41)))


def test_disk_usage() -> None:
    usage = models.DiskUsage()
    usage.image_usage = models.ImagesDiskUsage(total_count=1, total_size=9, items=[models.ImageSummary()])

    def shaped(version: tuple[int, int], types: tuple[str, ...] = (), verbose: bool = False) -> Any:
        return written(shapes.disk_usage(usage, version, types=types, verbose=verbose))

    assert shaped((1, 41)).keys() == {"LayersSize", "Images", "Containers", "Volumes", "BuildCache", "BuilderSize"}
    assert len(shaped((1, 51))["Images"]) == 1
    both = shaped((1, 52))
    assert {"LayersSize", "ImageUsage"} <= both.keys()
    assert "Items" not in both["ImageUsage"]
    assert shaped((1, 52), verbose=True).keys() == {
        "ImageUsage",
        "ContainerUsage",
        "VolumeUsage",
        "BuildCacheUsage",
    }
    assert len(shaped((1, 55), ("image",), True)["ImageUsage"]["Items"]) == 1
    assert shaped((1, 55), ("volume",)).keys() == {"VolumeUsage"}
    assert shaped((1, 44), ("volume",))["Images"] is None


def adapted(
    version: tuple[int, int], **host: Any
) -> tuple[models.ContainerConfig, models.HostConfig, Any, list[str]]:
    config, host_config = models.ContainerConfig(), models.HostConfig(**host)
    networking = models.NetworkingConfig()
    return config, host_config, networking, adapt.create_request(version, config, host_config, networking)


def test_old_defaults() -> None:
    assert adapted((1, 39))[1].ipc_mode == "shareable"
    assert adapted((1, 40))[1].ipc_mode == ""
    assert adapted((1, 40))[1].cgroupns_mode == "host"
    assert adapted((1, 41))[1].cgroupns_mode == ""
    assert adapted((1, 41), console_size=[1, 2])[1].console_size == [0, 0]
    assert adapted((1, 24), auto_remove=True)[1].auto_remove is False
    assert adapted((1, 55), pids_limit=-1)[1].pids_limit is None
    assert adapted((1, 55), pids_limit=7)[1].pids_limit == 7


def test_read_only_mounts_of_old_clients_stay_shallow() -> None:
    for version, shallow in (((1, 43), True), ((1, 44), False)):
        mount = models.Mount(type="bind", read_only=True, bind_options=models.BindOptions())
        adapted(version, mounts=[mount])
        assert mount.bind_options is not None
        assert mount.bind_options.read_only_non_recursive is shallow


def test_the_container_wide_mac_address_moves_to_its_endpoint() -> None:
    def create(version: tuple[int, int], mode: str, endpoints: dict[str, models.EndpointSettings] | None) -> Any:
        config = models.ContainerConfig(mac_address="02:00:00:00:00:01")
        networking = models.NetworkingConfig(endpoints_config=endpoints)
        warnings = adapt.create_request(version, config, models.HostConfig(network_mode=mode), networking)
        return networking.endpoints_config, warnings

    endpoints, warnings = create((1, 43), "bridge", None)
    assert endpoints["bridge"].mac_address == "02:00:00:00:00:01"
    assert warnings == []
    endpoints, warnings = create((1, 47), "mine", {"mine": models.EndpointSettings()})
    assert endpoints["mine"].mac_address == "02:00:00:00:00:01"
    assert "deprecated" in warnings[0]
    with pytest.raises(InvalidParameter, match="must match"):
        create((1, 47), "mine", {"mine": models.EndpointSettings(mac_address="02:00:00:00:00:02")})
    with pytest.raises(InvalidParameter, match="conflicting"):
        create((1, 47), "host", None)


def test_several_endpoints_need_1_44() -> None:
    endpoints = {"a": models.EndpointSettings(), "b": models.EndpointSettings()}
    networking = models.NetworkingConfig(endpoints_config=endpoints)
    adapt.create_request((1, 44), models.ContainerConfig(), models.HostConfig(), networking)
    with pytest.raises(InvalidParameter, match="multiple network endpoints"):
        adapt.create_request((1, 43), models.ContainerConfig(), models.HostConfig(), networking)
