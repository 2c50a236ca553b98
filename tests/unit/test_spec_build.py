"""The spec against what dockerd writes for the same ask: each row is an ask and what it changes."""

from dataclasses import dataclass, field

import pytest

from dray.api.models import (
    ContainerConfig,
    DeviceMapping,
    HostConfig,
    ThrottleDevice,
    Ulimit,
    WeightDevice,
)
from dray.base.errors import InvalidParameter, Unsupported
from dray.engine import security, spec
from dray.engine.spec import Device, Facts, Machine, User
from dray.engine.spec import machine as machines
from dray.engine.spec.resources import block_device_paths, update

ID = "ab" * 32


@dataclass
class Point:
    type: str
    destination: str
    source: str = ""
    rw: bool = True
    propagation: str = ""
    options: list[str] = field(default_factory=list)
    idmap: str = ""


def build(*, config=None, facts=None, **host):
    settings = {"id": ID, "args": ["sleep", "300"], "hosts": "/c/hosts", "hostname": "/c/hostname"}
    settings |= {"resolv_conf": "/c/resolv.conf", "machine": Machine(kernel=(6, 1))}
    ask = ContainerConfig(**{"hostname": ID[:12], **(config or {})})
    host = {"network_mode": "none", "ipc_mode": "private", "cgroupns_mode": "host", **host}
    return spec.build(ask, HostConfig(**host), Facts(**{**settings, **(facts or {})}))


def mount(made, target):
    found = [entry for entry in made["mounts"] if entry["destination"] == target]
    assert len(found) <= 1
    return found[0] if found else None


def kinds(made):
    return [namespace["type"] for namespace in made["linux"]["namespaces"]]


def test_plain():
    made = build()
    assert made["process"]["args"] == ["sleep", "300"]
    assert made["process"]["env"] == [f"PATH={spec.DEFAULT_PATH}", f"HOSTNAME={ID[:12]}"]
    assert made["process"]["cwd"] == "/"
    assert made["process"]["user"] == {"uid": 0, "gid": 0, "additionalGids": [0]}
    assert set(made["process"]["capabilities"]) == {"bounding", "effective", "permitted"}
    assert made["process"]["capabilities"]["bounding"][:2] == ["CAP_CHOWN", "CAP_DAC_OVERRIDE"]
    assert "noNewPrivileges" not in made["process"]
    assert made["process"]["oomScoreAdj"] == 0
    assert made["root"] == {"path": "rootfs"}
    assert made["hostname"] == ID[:12]
    assert [entry["destination"] for entry in made["mounts"]] == [
        "/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm",
        "/etc/resolv.conf", "/etc/hostname", "/etc/hosts",
    ]  # fmt: skip
    assert mount(made, "/dev/shm")["options"][-1] == "size=67108864"
    assert mount(made, "/etc/hosts")["options"] == ["rbind", "rprivate"]
    linux = made["linux"]
    assert kinds(made) == ["mount", "network", "uts", "pid", "ipc"]
    assert linux["cgroupsPath"] == f"/dray/{ID}"
    assert linux["sysctl"] == {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
    }
    assert linux["resources"]["memory"] == {"disableOOMKiller": False}
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert {"allow": False, "type": "c", "major": 10, "minor": 229, "access": "rwm"} in linux["resources"][
        "devices"
    ]
    assert "/proc/interrupts" in linux["maskedPaths"]
    assert linux["readonlyPaths"] == ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
    assert linux["seccomp"]["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]


def test_building_twice_shares_nothing_that_is_changed():
    first, second = build(readonly_rootfs=True), build()
    assert "ro" in mount(first, "/etc/hosts")["options"]
    assert "ro" not in mount(second, "/etc/hosts")["options"]
    assert build(privileged=True)["mounts"] != second["mounts"] == build()["mounts"]


@pytest.mark.parametrize(
    ("tty", "env", "shown"),
    [
        (True, None, [f"PATH={spec.DEFAULT_PATH}", "HOSTNAME=h", "TERM=xterm"]),
        (True, ["TERM"], [f"PATH={spec.DEFAULT_PATH}", "HOSTNAME=h"]),
        (False, ["FOO=a", "PATH=/x", "FOO=b=c"], ["PATH=/x", "HOSTNAME=h", "FOO=b=c"]),
        (False, ["HOSTNAME=mine", "E="], [f"PATH={spec.DEFAULT_PATH}", "HOSTNAME=mine", "E="]),
    ],
)
def test_environment(tty, env, shown):
    assert spec.environment(ContainerConfig(hostname="h", tty=tty, env=env)) == shown


def test_another_user_has_the_bounding_set_alone():
    made = build(facts={"user": User(1234, 4321, (4321,))})
    assert made["process"]["user"] == {"uid": 1234, "gid": 4321, "additionalGids": [4321]}
    assert set(made["process"]["capabilities"]) == {"bounding"}


def test_terminal():
    process = build(config={"tty": True}, console_size=[24, 80])["process"]
    assert process["terminal"] is True
    assert process["consoleSize"] == {"height": 24, "width": 80}


def test_privileged():
    made = build(privileged=True, facts={"devices": [Device("/dev/kvm", "c", 10, 232)]})
    assert made["process"]["capabilities"]["bounding"] == list(security.ALL_CAPABILITIES)
    assert made["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert made["linux"]["devices"][0]["path"] == "/dev/kvm"
    assert "ro" not in mount(made, "/sys")["options"] + mount(made, "/sys/fs/cgroup")["options"]
    assert not {"seccomp", "maskedPaths", "readonlyPaths"} & set(made["linux"])
    assert "seccomp" in build(privileged=True, security_opt=["seccomp=builtin"])["linux"]


def test_read_only_root():
    made = build(readonly_rootfs=True, facts={"mounts": [Point("bind", "/x", "/src", propagation="rprivate")]})
    assert made["root"]["readonly"] is True
    assert mount(made, "/etc/hosts")["options"] == ["rbind", "ro", "rprivate"]
    assert mount(made, "/x")["options"] == ["rbind", "rprivate"]
    assert "ro" not in mount(made, "/dev")["options"] + mount(made, "/dev/shm")["options"]


def test_mounts_of_the_user():
    points = [
        Point("bind", "/z", "/src", rw=False, propagation="rprivate", options=["bind"]),
        Point("volume", "/v", "/vol/_data", rw=False),
        Point("tmpfs", "/run", options=["rw", "size=1m", "exec"]),
        Point("tmpfs", "/t", rw=False, options=["ro", "nosuid"]),
        Point("bind", "/etc/hosts", "/mine", propagation="rprivate"),
    ]
    made = build(facts={"mounts": points})
    assert mount(made, "/z") == {
        "destination": "/z", "type": "bind", "source": "/src", "options": ["bind", "ro", "rprivate"],
    }  # fmt: skip
    assert mount(made, "/v")["options"] == ["rbind", "ro"]
    assert mount(made, "/run")["options"] == ["nosuid", "nodev", "rprivate", "rw", "size=1m", "exec"]
    assert mount(made, "/t")["options"] == ["noexec", "nodev", "rprivate", "ro", "nosuid"]
    assert mount(made, "/etc/hosts")["source"] == "/mine"
    recursive = build(facts={"mounts": points, "recursive_read_only": True})
    assert mount(recursive, "/v")["options"] == ["rbind", "rro"]
    points[1].options = ["ro-nonrecursive"]
    assert mount(build(facts={"mounts": points, "recursive_read_only": True}), "/v")["options"] == ["rbind", "ro"]


def test_a_mount_below_shm_comes_after_it():
    made = build(facts={"mounts": [Point("bind", "/dev/shm/x", "/src")]})
    targets = [entry["destination"] for entry in made["mounts"]]
    assert targets.index("/dev/shm") < targets.index("/dev/shm/x")


def test_own_dev_replaces_everything_below():
    made = build(facts={"mounts": [Point("bind", "/dev", "/dev", propagation="rprivate")]})
    assert [entry["destination"] for entry in made["mounts"] if entry["destination"].startswith("/dev")] == [
        "/dev"
    ]


@pytest.mark.parametrize(
    ("words", "propagation"), [(["rprivate"], None), (["rslave"], "rslave"), (["rslave", "shared"], "shared")]
)
def test_root_propagation(words, propagation):
    points = [Point("bind", f"/m{number}", "/src", propagation=word) for number, word in enumerate(words)]
    assert build(facts={"mounts": points})["linux"].get("rootfsPropagation") == propagation


def test_shared_namespaces():
    made = build(ipc_mode="host", pid_mode="host", uts_mode="host", network_mode="host")
    assert kinds(made) == ["mount"]
    assert "hostname" not in made
    assert "sysctl" not in made["linux"]
    assert mount(made, "/dev/shm") == {
        "destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind", "rprivate"],
    }  # fmt: skip


def test_namespaces_of_another_container():
    paths = {"ipc": "/proc/9/ns/ipc", "network": "/proc/9/ns/net", "pid": "/proc/9/ns/pid"}
    modes = dict.fromkeys(("ipc_mode", "network_mode", "pid_mode"), "container:abc")
    made = build(**modes, facts={"namespaces": paths, "shm": "/proc/9/root/dev/shm"})
    joined = {entry["type"]: entry["path"] for entry in made["linux"]["namespaces"] if "path" in entry}
    assert joined == paths
    assert mount(made, "/dev/shm")["source"] == "/proc/9/root/dev/shm"
    with pytest.raises(InvalidParameter, match="pid namespace of container:abc"):
        build(pid_mode="container:abc")


@pytest.mark.parametrize(
    ("mode", "version", "private"), [("private", 1, True), ("host", 2, False), ("", 1, False), ("", 2, True)]
)
def test_cgroup_namespace(mode, version, private):
    made = build(cgroupns_mode=mode, facts={"machine": Machine(cgroup_version=version)})
    assert ("cgroup" in kinds(made)) is private


def test_ipc_none_has_no_shm():
    assert mount(build(ipc_mode="none"), "/dev/shm") is None
    assert mount(build(ipc_mode="shareable", shm_size=1 << 20), "/dev/shm")["options"][-1] == "size=1048576"


@pytest.mark.parametrize(
    ("host", "limits"),
    [
        ({"memory": 64 << 20, "memory_swap": 128 << 20, "memory_reservation": 32 << 20, "oom_kill_disable": False},
         {"memory": {"limit": 67108864, "swap": 134217728, "reservation": 33554432, "disableOOMKiller": False}}),
        ({"memory": 64 << 20, "memory_swap": -1}, {"memory": {"limit": 67108864, "swap": -1}}),
        ({"memory_swap": -1, "memory_swappiness": 0}, {"memory": {"swappiness": 0}}),
        ({"nano_cpus": 500_000_000, "cpu_shares": 100}, {"cpu": {"shares": 100, "quota": 50000, "period": 100000}}),
        ({"cpu_quota": 50000, "cpuset_cpus": "0", "cpuset_mems": "0"},
         {"cpu": {"quota": 50000, "cpus": "0", "mems": "0"}}),
        ({"cpu_realtime_period": 5, "cpu_realtime_runtime": 4},
         {"cpu": {"realtimePeriod": 5, "realtimeRuntime": 4}}),
        ({"pids_limit": 10}, {"pids": {"limit": 10}}),
        ({"pids_limit": 0}, {"pids": {"limit": -1}}),
        ({"pids_limit": -1}, {"pids": {"limit": -1}}),
        ({"blkio_weight": 300}, {"blockIO": {"weight": 300}}),
    ],
)  # fmt: skip
def test_limits(host, limits):
    found = {name: value for name, value in update(HostConfig(**host)).items() if value}
    assert found == limits


def test_block_device_limits():
    host = HostConfig(
        blkio_device_read_bps=[ThrottleDevice(path="/dev/a", rate=1)],
        blkio_weight_device=[WeightDevice(path="/dev/b", weight=20)],
    )
    assert block_device_paths(host) == {"/dev/a", "/dev/b"}
    found = update(host, block_devices={"/dev/a": (8, 0), "/dev/b": (8, 1)})["blockIO"]
    assert found == {
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}],
        "weightDevice": [{"major": 8, "minor": 1, "weight": 20}],
    }
    with pytest.raises(InvalidParameter, match="is not a block device"):
        update(host)


def test_devices_and_rules():
    made = build(device_cgroup_rules=["c 1:* rm"], facts={"devices": [Device("/dev/foo", "c", 1, 3, access="r")]})
    assert made["linux"]["resources"]["devices"][-2:] == [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"},
        {"allow": True, "type": "c", "major": 1, "access": "rm"},
    ]
    assert made["linux"]["devices"] == [
        {"path": "/dev/foo", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 0, "gid": 0}
    ]


def test_ulimits_sysctls_names():
    made = build(
        config={"domainname": "dom", "hostname": "hh"},
        ulimits=[Ulimit(name="nofile", soft=100, hard=200), Ulimit(name="core", soft=-1, hard=-1)],
        oom_score_adj=5,
        sysctls={"net.core.somaxconn": "100", "net.ipv4.ip_unprivileged_port_start": "80"},
        annotations={"a": "b"},
        cgroup_parent="/p/",
        facts={
            "ulimits": [Ulimit(name="nofile", soft=1, hard=1), Ulimit(name="nproc", soft=10, hard=20)],
            "sysctls": {"net.ipv6.conf.all.disable_ipv6": "1", "net.core.somaxconn": "7"},
        },
    )
    assert made["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "hard": 200, "soft": 100},
        {"type": "RLIMIT_CORE", "hard": (1 << 64) - 1, "soft": (1 << 64) - 1},
        {"type": "RLIMIT_NPROC", "hard": 20, "soft": 10},
    ]
    assert made["linux"]["sysctl"] == {
        "net.ipv4.ip_unprivileged_port_start": "80",
        "net.ipv4.ping_group_range": "0 2147483647",
        "net.ipv6.conf.all.disable_ipv6": "1",
        "kernel.domainname": "dom",
        "net.core.somaxconn": "100",
    }
    assert made["process"]["oomScoreAdj"] == 5
    assert made["annotations"] == {"a": "b"}
    assert made["linux"]["cgroupsPath"] == f"/p/{ID}"


def test_security_options_reach_the_spec():
    made = build(security_opt=["no-new-privileges", "seccomp=unconfined", "writable-cgroups=true"])
    assert made["process"]["noNewPrivileges"] is True
    assert "seccomp" not in made["linux"]
    assert "ro" not in mount(made, "/sys/fs/cgroup")["options"]
    assert (
        "noNewPrivileges"
        not in build(security_opt=["no-new-privileges=false"], facts={"no_new_privileges": True})["process"]
    )
    inline = 'seccomp={"defaultAction":"SCMP_ACT_ALLOW","syscalls":[]}'
    assert build(security_opt=[inline])["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ALLOW"
    daemon = {"seccomp_profile": {"defaultAction": "SCMP_ACT_LOG"}}
    assert build(facts=daemon)["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_LOG"
    with pytest.raises(Unsupported, match="seccomp"):
        build(security_opt=[inline], facts={"machine": Machine(seccomp=False)})


def test_apparmor():
    here = {"machine": Machine(apparmor=True)}
    assert build(facts=here)["process"]["apparmorProfile"] == "docker-default"
    assert build(facts=here, privileged=True)["process"]["apparmorProfile"] == "unconfined"
    assert build(facts=here, security_opt=["apparmor=mine"])["process"]["apparmorProfile"] == "mine"
    assert "apparmorProfile" not in build(security_opt=["apparmor=unconfined"])["process"]
    with pytest.raises(InvalidParameter, match="mine"):
        build(security_opt=["apparmor=mine"])


def test_path_lists_of_the_ask_win():
    assert "maskedPaths" not in build(masked_paths=[], readonly_paths=[])["linux"]
    assert build(masked_paths=["/x"])["linux"]["maskedPaths"] == ["/x"]
    assert "readonlyPaths" not in build(security_opt=["systempaths=unconfined"])["linux"]
    assert build(facts={"machine": Machine(masked_paths=["/y"])})["linux"]["maskedPaths"][-1] == "/y"


def test_init():
    made = build(init=True, facts={"init_path": "/usr/bin/tini"})
    assert made["process"]["args"] == ["/sbin/docker-init", "--", "sleep", "300"]
    assert made["mounts"][-1] == {
        "destination": "/sbin/docker-init", "type": "bind", "source": "/usr/bin/tini", "options": ["bind", "ro"],
    }  # fmt: skip
    assert build(init=True, pid_mode="host", facts={"init_path": "/i"})["process"]["args"] == ["sleep", "300"]
    assert build(init=False, facts={"init": True, "init_path": "/i"})["process"]["args"] == ["sleep", "300"]
    with pytest.raises(Unsupported, match="init"):
        build(init=True)


def test_user_namespace():
    ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    made = build(facts={"uid_mappings": ids, "gid_mappings": ids})
    assert "user" in kinds(made)
    assert made["linux"]["uidMappings"] == ids
    assert made["linux"]["sysctl"]["net.ipv4.ping_group_range"] == "0 65535"  # the kernel takes mapped groups only
    assert "user" not in kinds(build(userns_mode="host", facts={"uid_mappings": ids, "gid_mappings": ids}))


def test_device_lookup(tmp_path):
    (found,) = machines.resolve_devices([DeviceMapping(path_on_host="/dev/null", path_in_container="/dev/n")])
    assert (found.path, found.type, found.major, found.minor, found.access) == ("/dev/n", "c", 1, 3, "rwm")
    for path in (str(tmp_path / "none"), "/etc/passwd"):
        with pytest.raises(InvalidParameter, match="error gathering device information"):
            machines.resolve_devices([DeviceMapping(path_on_host=path)])
    with pytest.raises(InvalidParameter, match="/dev/null"):
        machines.block_devices(["/dev/null"])
    assert "/dev/null" in {device.path for device in machines.host_devices()}


def test_machine():
    machine = machines.read(1)
    assert machine.kernel >= (3, 0)
    assert set(machine.capabilities) <= set(security.ALL_CAPABILITIES)


def test_thermal_throttle_paths(tmp_path):
    for name in ("cpu0/thermal_throttle", "cpu10/thermal_throttle", "cpu2", "cpufreq/thermal_throttle"):
        (tmp_path / name).mkdir(parents=True)
    found = machines.thermal_throttle_paths(str(tmp_path))
    assert found == (f"{tmp_path}/cpu0/thermal_throttle", f"{tmp_path}/cpu10/thermal_throttle")


def test_owners_of_a_bind_are_mapped_from_the_disk_to_what_is_seen():
    shown = mount(build(facts={"mounts": [Point("bind", "/m", "/src", idmap="0:1000:1,g1:70:5")]}), "/m")
    first = {"containerID": 1000, "hostID": 0, "size": 1}
    assert shown["uidMappings"] == [first]
    assert shown["gidMappings"] == [first, {"containerID": 70, "hostID": 1, "size": 5}]
