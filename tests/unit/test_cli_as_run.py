"""`inspect --as-run`: the line is the inverse of the flags, over any choice of options."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.base.errors import InvalidParameter
from dray.cli.ask.body import build
from dray.cli.ask.flags import SHARED_FLAGS
from dray.cli.ask.line import run_words
from dray.cli.flags import Flag, parse

FLAGS = (*SHARED_FLAGS, Flag("detach", "bool", "", short="d"))
ID = "0123456789abcdef" * 4
WORD = st.text("abcXYZ09_-. '\"$\\é", min_size=1, max_size=8)
NAME = st.text("abcdefgh", min_size=1, max_size=6)
PATH = NAME.map(lambda name: f"/{name}")
SMALL = st.integers(1, 5000).map(str)


def pair(
    left: st.SearchStrategy[str], right: st.SearchStrategy[str], between: str = "="
) -> st.SearchStrategy[str]:
    return st.tuples(left, right).map(between.join)


# One strategy a flag; True is a switch.
OPTIONS: dict[str, st.SearchStrategy[str] | bool] = {
    "add-host": pair(NAME, st.sampled_from(["192.0.2.1", "2001:db8::1", "host-gateway"]), ":"),
    "annotation": pair(NAME, WORD),
    "blkio-weight": st.integers(10, 1000).map(str),
    "blkio-weight-device": st.just("/dev/sda:300"),
    "cap-add": st.sampled_from(["NET_ADMIN", "ALL", "sys_time"]),
    "cap-drop": st.sampled_from(["CHOWN", "CAP_KILL"]),
    "cgroup-parent": PATH,
    "cgroupns": st.just("host"),
    "cpu-period": SMALL,
    "cpu-quota": SMALL,
    "cpu-rt-period": SMALL,
    "cpu-rt-runtime": SMALL,
    "cpu-shares": SMALL,
    "cpus": st.sampled_from(["1.5", "0.01", "2", "0.123456789"]),
    "cpuset-cpus": st.just("0-3,5"),
    "cpuset-mems": st.just("0"),
    "device": st.sampled_from(["/dev/null", "/dev/a:/dev/b", "/dev/a:/dev/b:r", "vendor.com/class=one"]),
    "device-cgroup-rule": st.just("c 1:3 rwm"),
    "device-read-bps": st.just("/dev/sda:1mb"),
    "device-write-iops": st.just("/dev/sda:77"),
    "dns": st.just("192.0.2.53"),
    "dns-option": st.just("ndots:3"),
    "dns-search": st.sampled_from(["example.org", "."]),
    "domainname": NAME,
    "entrypoint": WORD,
    "env": pair(NAME, WORD),
    "expose": st.sampled_from(["80", "53/udp", "8000-8002/tcp"]),
    "gpus": st.sampled_from(["all", "2", '"device=0,1"', 'count=1,"capabilities=compute,utility"', "driver=nvidia"]),
    "group-add": NAME,
    "health-cmd": WORD,
    "health-interval": st.sampled_from(["1s", "1m30s", "250ms"]),
    "health-retries": SMALL,
    "health-start-interval": st.just("2s"),
    "health-start-period": st.just("1h"),
    "health-timeout": st.just("3s"),
    "hostname": NAME,
    "init": True,
    "interactive": True,
    "ipc": st.sampled_from(["host", "shareable", "container:x"]),
    "isolation": st.just("hyperv"),
    "label": pair(NAME, WORD),
    "link": pair(NAME, NAME, ":"),
    "log-driver": st.just("local"),
    "log-opt": pair(NAME, NAME),
    "memory": st.just("64m"),
    "memory-reservation": st.just("32m"),
    "memory-swap": st.sampled_from(["-1", "1g"]),
    "memory-swappiness": st.sampled_from(["0", "60"]),
    "mount": st.sampled_from(
        [
            "type=bind,source=/a,target=/b,readonly,bind-propagation=rprivate,bind-recursive=readonly",
            "type=volume,source=v,target=/c,volume-nocopy,volume-driver=local,volume-label=a=b,volume-opt=type=tmpfs",
            "type=tmpfs,target=/d,tmpfs-size=1m,tmpfs-mode=1700",
            '"type=bind","source=/with,comma","target=/e"',
            "type=bind,source=/f,target=/g,bind-recursive=disabled",
            "type=image,source=busybox,target=/h,image-subpath=bin",
        ]
    ),
    "network": st.sampled_from(
        ["host", "none", "bridge", "own", "container:x", "name=own,alias=a,ip=192.0.2.7,driver-opt=a=b,gw-priority=3",
         "name=own,ip6=2001:db8::7,link-local-ip=169.254.1.1,mac-address=92:d0:c6:0a:29:33"]
    ),
    "no-healthcheck": True,
    "oom-kill-disable": True,
    "oom-score-adj": st.integers(-1000, 1000).map(str),
    "pid": st.sampled_from(["host", "container:x"]),
    "pids-limit": st.sampled_from(["-1", "50"]),
    "privileged": True,
    "publish": st.sampled_from(["80", "8080:80", "127.0.0.1:8080:80/udp", "127.0.0.1::81", "[::1]:90:90", "100-102:100-102"]),
    "publish-all": True,
    "read-only": True,
    "restart": st.sampled_from(["no", "always", "on-failure:3", "unless-stopped"]),
    "rm": True,
    "runtime": NAME,
    "security-opt": st.sampled_from(
        ["no-new-privileges", "apparmor=x", "seccomp=unconfined", "label=disable", "systempaths=unconfined"]
    ),
    "shm-size": st.just("8m"),
    "stop-signal": st.just("SIGUSR1"),
    "stop-timeout": st.sampled_from(["0", "7", "-1"]),
    "storage-opt": st.just("size=1g"),
    "sysctl": st.just("net.core.somaxconn=9"),
    "tmpfs": st.sampled_from(["/t", "/t:size=4m,mode=700"]),
    "tty": True,
    "ulimit": st.sampled_from(["nofile=100:200", "core=-1", "nproc=5"]),
    "user": st.sampled_from(["app", "1:2"]),
    "userns": st.just("host"),
    "uts": st.just("host"),
    "volume": st.sampled_from(["/a:/b", "named:/c:ro", "/only"]),
    "volume-driver": NAME,
    "volumes-from": NAME,
    "workdir": PATH,
}  # fmt: skip
# The client's own, another spelling of one above, or (in `LEFT`) what cannot be read off a container.
LEFT = {
    "attach", "cidfile", "cpu-count", "cpu-percent", "device-read-iops", "device-write-bps", "disable-content-trust",
    "dns-opt", "env-file", "io-maxbandwidth", "io-maxiops", "ip", "ip6", "kernel-memory", "label-file", "link-local-ip",
    "mac-address", "name", "net", "net-alias", "network-alias", "platform", "pull", "quiet", "use-api-socket",
}  # fmt: skip


def body(words: list[str]) -> dict[str, Any]:
    values, rest = parse(FLAGS, words, interspersed=False)
    made = build(values, rest[0], rest[1:])
    if values["detach"]:
        made |= {"AttachStdin": False, "AttachStdout": False, "AttachStderr": False}
    return made


def inspected(ask: dict[str, Any]) -> dict[str, Any]:
    """What an engine would tell of it: the ask in the shape of an inspect."""
    host = dict(ask["HostConfig"])
    config = {key: value for key, value in ask.items() if key not in ("HostConfig", "NetworkingConfig")}
    if host.get("Links"):
        host["Links"] = [f"/{link.partition(':')[0]}:/box/{link.partition(':')[2]}" for link in host["Links"]]
    config["Hostname"] = config["Hostname"] or ID[:12]
    networks = {
        name: settings or {} for name, settings in (ask["NetworkingConfig"]["EndpointsConfig"] or {}).items()
    }
    return {"Id": ID, "Name": "/box", "Config": config, "HostConfig": host, "NetworkSettings": {"Networks": networks},
            "State": {"Running": False}}  # fmt: skip


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    words = []
    for name in draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=8, unique=True)):
        option = OPTIONS[name]
        words.append(f"--{name}" if isinstance(option, bool) else f"--{name}={draw(option)}")
    return [*words, "busybox", *draw(st.lists(WORD.filter(lambda word: not word.startswith("-")), max_size=3))]


def same(words: list[str], *, may_contradict: bool = True) -> None:
    try:
        ask = body(words)
    except InvalidParameter:
        assert may_contradict
        return  # flags that contradict each other are no ask
    again, notes = run_words(inspected(ask), {})
    assert notes == []
    second = body(shlex.split(shlex.join(again)))
    first_host, second_host = ask.pop("HostConfig"), second.pop("HostConfig")
    # What the engine fills in when nothing is said need not be said.
    if first_host["RestartPolicy"]["Name"] == "no":
        second_host["RestartPolicy"] = first_host["RestartPolicy"]
    if first_host["UTSMode"] == "host" or first_host["NetworkMode"] in ("host", "container:x"):
        second["Hostname"] = ask["Hostname"]
    if first_host["NetworkMode"] in ("default", "bridge"):
        second_host["NetworkMode"] = first_host["NetworkMode"]
        if not any(any(one.values()) for one in ask["NetworkingConfig"]["EndpointsConfig"].values()):
            second["NetworkingConfig"] = ask["NetworkingConfig"]
    assert _said(second_host) == _said(first_host)
    assert second == ask


def _said(host: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in host.items() if value or key == "MemorySwappiness"}


@settings(max_examples=150, deadline=None)
@given(lines())
def test_the_line_asks_for_the_same(words: list[str]) -> None:
    same(words)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_each_flag_alone(name: str) -> None:
    option = OPTIONS[name]
    if isinstance(option, bool):
        same([f"--{name}", "busybox", "true"], may_contradict=False)
        return
    needs = ["--network=own"] if name == "network-alias" else []

    @settings(max_examples=8, deadline=None, database=None)
    @given(option)
    def one(value: str) -> None:
        same([*needs, f"--{name}={value}", "busybox", "true"], may_contradict=False)

    one()


def test_every_flag_is_tried() -> None:
    assert {flag.name for flag in SHARED_FLAGS} == set(OPTIONS) | LEFT


def test_what_the_image_brings_is_left_out() -> None:
    image = {"Env": ["A=1"], "Cmd": ["sh"], "Entrypoint": ["/e"], "Labels": {"x": "y"}, "ExposedPorts": {"80/tcp": {}},
             "User": "app", "WorkingDir": "/w", "StopSignal": "SIGINT", "Volumes": {"/data": {}}}  # fmt: skip
    container = inspected(body(["busybox"]))
    container["Config"] |= image | {"Env": ["B=2", "A=1"]}
    assert run_words(container, image)[0] == ["--name=box", "--env=B=2", "busybox"]
    container["Config"]["Entrypoint"] = []
    container["Config"]["Cmd"] = ["own"]
    assert run_words(container, image)[0] == ["--name=box", "--env=B=2", "--entrypoint=", "busybox", "own"]


def test_what_cannot_be_said_is_told() -> None:
    container = inspected(body(["busybox"]))
    container["HostConfig"]["SecurityOpt"] = ['seccomp={"defaultAction":"SCMP_ACT_ALLOW"}']
    container["Config"]["Env"] = ["GONE"]
    words, notes = run_words(container, {})
    assert "--security-opt=seccomp=seccomp.json" in words
    assert len(notes) == 2
