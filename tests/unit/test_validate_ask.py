"""Asks that Docker refuses, in its words; limits it discards with a warning."""

import msgspec
import pytest

from dray.api.models import (
    ContainerConfig,
    DeviceMapping,
    HealthConfig,
    HostConfig,
    PortBinding,
    RestartPolicy,
    ThrottleDevice,
    Ulimit,
)
from dray.base.errors import DrayError
from dray.engine.validate import validate, validate_resources
from dray.engine.validate.resources import parse_list
from dray.linux.cgroups.facilities import Capabilities

FLAGS = {one.name: True for one in msgspec.structs.fields(Capabilities) if one.type is bool}
ALL = Capabilities(version=1, **FLAGS, cpuset_cpus="0-1", cpuset_mems="0")
NONE = Capabilities(version=1)
M = 1 << 20


def check(config=None, have=ALL, **host):
    return validate(ContainerConfig(**(config or {})), HostConfig(**host), have, cpus=2)


REFUSED = [
    ({"memory": M}, "Minimum memory limit allowed is 6MB"),
    ({"memory": 64 * M, "memory_swap": 32 * M}, "Minimum memoryswap limit should be larger than memory limit, see usage"),
    ({"memory_swap": 64 * M}, "You should always set the Memory limit when using Memoryswap limit, see usage"),
    ({"memory_swappiness": 101}, "Invalid value: 101, valid memory swappiness range is 0-100"),
    ({"memory_reservation": M}, "Minimum memory reservation allowed is 6MB"),
    ({"memory": 32 * M, "memory_reservation": 64 * M},
     "Minimum memory limit can not be less than memory reservation limit, see usage"),
    ({"nano_cpus": 1, "cpu_period": 1000}, "Conflicting options: Nano CPUs and CPU Period cannot both be set"),
    ({"nano_cpus": 1, "cpu_quota": 1000}, "Conflicting options: Nano CPUs and CPU Quota cannot both be set"),
    ({"nano_cpus": 3 * 10**9}, "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
    ({"nano_cpus": -1}, "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
    ({"cpu_shares": -1}, "invalid CPU shares (-1): value must be a positive integer"),
    ({"cpu_period": 10}, "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"),
    ({"cpu_quota": 10}, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
    ({"cpu_realtime_period": 1, "cpu_realtime_runtime": 2},
     "cpu real-time runtime cannot be higher than cpu real-time period"),
    ({"cpuset_cpus": "5"}, "Requested CPUs are not available - requested 5, available: 0-1"),
    ({"cpuset_cpus": "a"}, "Invalid value a for cpuset cpus: invalid format: a"),
    ({"cpuset_mems": "4"}, "Requested memory nodes are not available - requested 4, available: 0"),
    ({"cpuset_mems": "x"}, "Invalid value x for cpuset mems: invalid format: x"),
    ({"blkio_weight": 5}, "Range of blkio weight is from 10 to 1000"),
    ({"io_maximum_iops": 1}, "Invalid QoS settings: linux does not support configuration of maximum IOPs"),
    ({"cap_add": ["FOO"]}, 'invalid CapAdd: unknown capability: "CAP_FOO"'),
    ({"cap_drop": ["CAP_bar"]}, 'invalid CapDrop: unknown capability: "CAP_BAR"'),
    ({"security_opt": ["foo=bar"]}, 'invalid --security-opt 2: "foo=bar"'),
    ({"security_opt": ["seccomp={"]}, "decoding seccomp profile failed"),
    ({"ipc_mode": "foo"}, "invalid IPC mode: foo"),
    ({"ipc_mode": "container:"}, "invalid IPC mode: container:"),
    ({"pid_mode": "foo"}, "invalid PID mode: foo"),
    ({"uts_mode": "foo"}, "invalid UTS mode: foo"),
    ({"cgroupns_mode": "foo"}, "invalid cgroup namespace mode: foo"),
    ({"userns_mode": "foo"}, "invalid user namespace mode: foo"),
    ({"isolation": "hyperv"}, "Invalid isolation: \"hyperv\" - linux only supports 'default'"),
    ({"oom_score_adj": 2000}, "Invalid value 2000, range for oom score adj is [-1000, 1000]"),
    ({"shm_size": -1}, "SHM size can not be less than 0"),
    ({"restart_policy": RestartPolicy(name="foo")}, "invalid restart policy: unknown policy 'foo'"),
    ({"restart_policy": RestartPolicy(name="always", maximum_retry_count=3)},
     "invalid restart policy: maximum retry count can only be used with 'on-failure'"),
    ({"restart_policy": RestartPolicy(name="on-failure", maximum_retry_count=-1)},
     "invalid restart policy: maximum retry count cannot be negative"),
    ({"auto_remove": True, "restart_policy": RestartPolicy(name="always")},
     "can't create 'AutoRemove' container with restart policy"),
    ({"annotations": {"": "x"}}, "the empty string is not permitted as an annotation key"),
    ({"extra_hosts": ["a"]}, 'bad format for add-host: "a"'),
    ({"extra_hosts": ["a:b"]}, 'invalid IP address in add-host: "b"'),
    ({"port_bindings": {"80/tcp": [PortBinding(host_port="x")]}}, 'invalid port specification: "x"'),
    ({"port_bindings": {"80/tcp": [PortBinding(host_port="70000")]}}, 'invalid port specification: "70000"'),
    ({"port_bindings": {"80/foo": []}}, 'invalid port specification: "80/foo"'),
    ({"device_cgroup_rules": ["z 1:1 r"]}, 'invalid device cgroup rule format: "z 1:1 r"'),
    ({"devices": [DeviceMapping(path_on_host="/dev/null", cgroup_permissions="z")]}, "invalid device mode: z"),
    ({"ulimits": [Ulimit(name="foo")]}, "invalid ulimit type: foo"),
    ({"ulimits": [Ulimit(name="nofile", soft=5, hard=1)]}, "ulimit soft limit must be less than or equal to hard limit"),
    ({"tmpfs": {"rel": ""}}, "invalid mount path: 'rel' mount path must be absolute"),
    ({"tmpfs": {"/": ""}}, "invalid specification: destination can't be '/'"),
    ({"tmpfs": {"/a": "foo=1"}}, 'invalid tmpfs option "foo=1"'),
    ({"network_mode": "container:"}, "Invalid network mode: invalid container format container:<name|id>"),
    ({"network_mode": "host", "links": ["a:b"]}, "conflicting options: host type networking can't be used with links"),
    ({"network_mode": "container:k", "port_bindings": {"80/tcp": []}},
     "conflicting options: port publishing and the container type network mode"),
    ({"network_mode": "container:k", "dns": ["1.1.1.1"]}, "conflicting options: dns and the network mode"),
    ({"sysctls": {"foo.bar": "1"}}, 'sysctl "foo.bar" is not in a separate kernel namespace'),
    ({"sysctls": {"net.core.somaxconn": "1"}, "network_mode": "host"},
     'sysctl "net.core.somaxconn" not allowed in host network namespace'),
    ({"sysctls": {"kernel.msgmax": "1"}, "ipc_mode": "host"},
     'sysctl "kernel.msgmax" is not allowed in the hosts ipc namespace'),
    ({"sysctls": {"kernel/hostname": "x"}}, "kernel.hostname"),
    ({"cgroup": "container:x"}, "Cgroup"),
]  # fmt: skip


@pytest.mark.parametrize(("host", "words"), REFUSED, ids=[str(row[1])[:40] for row in REFUSED])
def test_refused_hosts(host, words):
    with pytest.raises(DrayError) as caught:
        check(**host)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("config", "host", "words"),
    [
        ({"working_dir": "rel"}, {}, "the working directory 'rel' is invalid, it needs to be an absolute path"),
        ({"hostname": "a" * 65}, {}, "invalid hostname"),
        ({"hostname": "a\nb"}, {}, "invalid hostname"),
        ({"env": ["=x"]}, {}, "invalid environment variable: =x"),
        ({"cmd": ["a\0b"]}, {}, "NUL"),
        ({"stop_signal": "FOO"}, {}, "invalid signal: FOO"),
        ({"exposed_ports": {"99999/tcp": {}}}, {}, 'invalid port specification: "99999/tcp"'),
        ({"healthcheck": HealthConfig(interval=1000)}, {}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"healthcheck": HealthConfig(retries=-1)}, {}, "Retries in Healthcheck cannot be negative"),
        ({"hostname": "x"}, {"uts_mode": "host"}, "conflicting options: hostname and the UTS mode"),
        ({"hostname": "x"}, {"network_mode": "container:a"}, "conflicting options: hostname and the network mode"),
    ],
)
def test_refused_configs(config, host, words):
    with pytest.raises(DrayError) as caught:
        check(config, **host)
    assert words in str(caught.value)


def test_an_ordinary_ask_passes():
    config = {"hostname": "web", "env": ["A=b", "C"], "working_dir": "/x", "stop_signal": "SIGRTMIN+3"}
    assert not check(
        config,
        network_mode="bridge",
        ipc_mode="shareable",
        memory=64 * M,
        memory_swap=-1,
        nano_cpus=10**9,
        cpuset_cpus="0-1",
        restart_policy=RestartPolicy(name="on-failure", maximum_retry_count=3),
        extra_hosts=["h:host-gateway", "six:2001:db8::1"],
        port_bindings={"80/tcp": [PortBinding(host_port="8000-8010")], "53/udp": None},
        tmpfs={"/run": "rw,size=1m,mode=1777"},
        sysctls={"net.ipv4.ip_forward": "1", "kernel.shmmax": "1"},
        security_opt=["label=disable"],
        ulimits=[Ulimit(name="nofile", soft=-1, hard=-1)],
    )


def test_what_cannot_be_enforced_is_discarded_and_said():
    host = HostConfig(
        memory=64 * M,
        memory_swap=128 * M,
        memory_swappiness=5,
        oom_kill_disable=True,
        pids_limit=5,
        cpu_shares=5,
        cpu_quota=5000,
        cpuset_cpus="9",
        blkio_weight=20,
        cpu_percent=5,
        blkio_device_write_iops=[ThrottleDevice(path="/dev/a", rate=1)],
    )
    warnings = validate_resources(host, NONE, cpus=2)
    assert len(warnings) == 10
    assert (
        "Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded."
        in warnings
    )
    assert "linux does not support CPU percent. Percent discarded." in warnings
    assert (host.memory, host.memory_swap, host.pids_limit, host.cpu_shares, host.cpu_quota) == (0, -1, None, 0, 0)
    assert host.cpuset_cpus == ""
    assert host.oom_kill_disable is None
    assert host.blkio_device_write_iops == []
    assert validate_resources(host, NONE, cpus=2) == []


def test_warnings():
    assert check(network_mode="host", port_bindings={"80/tcp": []}) == [
        "Published ports are discarded when using host network mode"
    ]
    assert "no memory limit is set" in check(oom_kill_disable=True)[0]
    assert "SELinux" in check(security_opt=["label=type:t"])[0]
    no_swap = msgspec.structs.replace(ALL, swap_limit=False)
    assert "Memory limited without swap." in check(have=no_swap, memory=64 * M)[0]


def test_update_may_set_swap_alone():
    assert validate_resources(HostConfig(memory_swap=64 * M), ALL, cpus=2, update=True) == []


@pytest.mark.parametrize(("text", "found"), [("", set()), ("0", {0}), ("0-2,5", {0, 1, 2, 5})])
def test_cpu_lists(text, found):
    assert parse_list(text) == found


@pytest.mark.parametrize("text", ["-1", "3-1", "0-", "1,,2", "99999", "0-99999999999"])
def test_bad_cpu_lists(text):
    with pytest.raises(ValueError, match="invalid format"):
        parse_list(text)
