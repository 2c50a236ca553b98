"""Scenarios that both engines play; each returns the documents to compare."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

from parity.documents import shape
from support.engines import Engine, until

V = "/v1.41"  # the newest API of Debian's dockerd; the other engine shapes its answers for it

Documents = dict[str, Any]
SCENARIOS: dict[str, Callable[[Engine], Documents]] = {}


def scenario(act: Callable[[Engine], Documents]) -> Callable[[Engine], Documents]:
    SCENARIOS[act.__name__] = act
    return act


def inspect(engine: Engine, name: str) -> Any:
    body = engine.get(f"{V}/containers/{name}/json?size=0")
    body["Mounts"] = sorted(body["Mounts"], key=lambda mount: mount["Destination"])
    if body["HostConfig"]["Binds"]:  # the client sends them in any order
        body["HostConfig"]["Binds"].sort()
    body["Config"]["Env"] = sorted(body["Config"]["Env"] or [])
    return body


CREATED: dict[str, list[str]] = {
    "plain": ["busybox"],
    "command": ["busybox", "echo", "a b", "c"],
    "entrypoint": ["--entrypoint", "/bin/echo", "variants:entrypoint", "x"],
    "image-settings": ["variants:web"],
    "image-user": ["-e", "A=1", "variants:user"],
    "terminal": ["-it", "busybox"],
    "input": ["-i", "-a", "stdin", "-a", "stdout", "busybox"],
    "names": ["-h", "box", "--domainname", "example.org", "-l", "a=1", "busybox"],
    "limits": [
        *("-m", "64m", "--memory-reservation", "32m", "--memory-swap", "128m", "--cpus", "1.5"),
        *("--cpu-shares", "512", "--cpuset-cpus", "0", "--pids-limit", "50", "busybox"),
    ],
    "ulimits": ["--ulimit", "nofile=10:20", "--ulimit", "core=0", "busybox"],
    "capabilities": ["--cap-add", "NET_ADMIN", "--cap-add", "CAP_SYS_TIME", "--cap-drop", "mknod", "busybox"],
    "privileged": ["--privileged", "busybox"],
    "security": ["--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined", "busybox"],
    "read-only": ["--read-only", "--tmpfs", "/t:size=1m", "--shm-size", "1m", "busybox"],
    "volumes": ["-v", "named:/a", "-v", "/b", "-v", "/tmp:/c:ro", "variants:volume"],
    "mounts": [
        *("--mount", "type=volume,src=named,dst=/a", "--mount", "type=tmpfs,dst=/t"),
        *("--mount", "type=bind,src=/tmp,dst=/b,readonly", "busybox"),
    ],
    "ports": ["-p", "18080:80", "-p", "127.0.0.1:18053:53/udp", "--expose", "99", "busybox"],
    "ports-random": ["-p", "80", "-P", "variants:web"],
    "resolver": [
        "--dns",
        "192.0.2.1",
        "--dns-search",
        "a.b",
        "--dns-option",
        "x",
        "--add-host",
        "a:1.2.3.4",
        "busybox",
    ],
    "host-namespaces": [*("--network", "host", "--pid", "host", "--ipc", "host", "--uts", "host"), "busybox"],
    "no-network": ["--network", "none", "busybox"],
    "restart": ["--restart", "on-failure:3", "busybox"],
    "logging": ["--log-opt", "max-size=1m", "--log-opt", "max-file=2", "busybox"],
    "log-none": ["--log-driver", "none", "busybox"],
    "health": [*("--health-cmd", "true", "--health-interval", "5s", "--health-retries", "2"), "busybox"],
    "no-health": ["--no-healthcheck", "variants:healthy"],
    "device": ["--device", "/dev/null:/dev/nought:rw", "busybox"],
    "sysctl": ["--sysctl", "net.core.somaxconn=100", "busybox"],
    "init-and-stop": ["--init", "--stop-signal", "USR1", "--stop-timeout", "3", "busybox"],
    "auto-remove": ["--rm", "busybox"],
    "groups": ["-u", "1000:2000", "--group-add", "extra", "-w", "/a/b", "busybox"],
}


@scenario
def created(engine: Engine) -> Documents:
    """inspect of a container that was only created, for every kind of flag."""
    documents = {}
    for name, words in CREATED.items():
        engine.ok("create", "--name", f"made-{name}", *words)
        documents[name] = inspect(engine, f"made-{name}")
    return documents


@scenario
def running(engine: Engine) -> Documents:
    """inspect while it runs, paused, and after its end."""
    engine.ok(
        *(
            "run",
            "-d",
            "--name",
            "box",
            "-p",
            "18080:80",
            "-v",
            "named:/a",
            "-m",
            "64m",
            "-e",
            "A=1",
            "variants:web",
        ),
        *("sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.05; done"),
    )
    documents = {"running": inspect(engine, "box")}
    time.sleep(0.3)
    engine.ok("pause", "box")
    documents["paused"] = inspect(engine, "box")
    engine.ok("unpause", "box")
    engine.ok("stop", "box")
    documents["stopped"] = inspect(engine, "box")
    engine.ok("start", "box")
    engine.ok("kill", "box")
    engine.until_state("box", "exited")
    documents["killed"] = inspect(engine, "box")
    engine.docker("run", "--name", "missing", "busybox", "nosuch")
    documents["missing program"] = inspect(engine, "missing")
    engine.ok("run", "-d", "--name", "host", "--network", "host", "busybox", "sleep", "600")
    documents["host network"] = inspect(engine, "host")
    engine.ok("run", "-d", "--name", "none", "--network", "none", "busybox", "sleep", "600")
    documents["no network"] = inspect(engine, "none")
    return documents


@scenario
def health(engine: Engine) -> Documents:
    engine.ok("run", "-d", "--name", "box", "variants:healthy", "sh", "-c", "touch /tmp/ok; sleep 600")
    until(lambda: engine.state("box")["Health"]["Status"] == "healthy", what="healthy")
    body = inspect(engine, "box")
    body["State"]["Health"]["Log"] = body["State"]["Health"]["Log"][:1]
    return {"healthy": body}


@scenario
def listed(engine: Engine) -> Documents:
    """The list of containers."""
    engine.ok("create", "--name", "made", "-l", "a=1", "busybox", "echo", "x y")
    engine.ok("run", "--name", "ended", "-v", "named:/a", "busybox", "true")
    engine.ok("run", "-d", "--name", "runs", "-p", "18080:80", "variants:web")
    containers = engine.get(f"{V}/containers/json?all=1")
    for one in containers:
        one["Status"] = re.sub(r"Less than a second|(About )?\w+ (second|minute)s?", "TIME", one["Status"])
        one["Ports"] = sorted(one["Ports"], key=lambda port: json.dumps(port, sort_keys=True))
    sized = [
        {"SizeRw": one.get("SizeRw") is not None, "SizeRootFs": one.get("SizeRootFs") is not None}
        for one in engine.get(f"{V}/containers/json?all=1&size=1")
    ]
    return {"containers": containers, "sizes": sized}


@scenario
def images(engine: Engine) -> Documents:
    """Lists, inspect and history of images."""
    wanted = ("busybox:latest", "variants:user", "variants:volume", "variants:web", "variants:healthy")
    found = {
        tag: image for image in engine.get(f"{V}/images/json") for tag in image["RepoTags"] or [] if tag in wanted
    }
    documents: Documents = {f"list {tag}": image for tag, image in found.items()}
    for tag in wanted:
        documents[f"inspect {tag}"] = engine.get(f"{V}/images/{tag}/json")
        documents[f"history {tag}"] = engine.get(f"{V}/images/{tag}/history")
    return documents


@scenario
def execs(engine: Engine) -> Documents:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    body = {
        "Cmd": ["sh", "-c", "exit 4"],
        "Env": ["A=1"],
        "User": "app",
        "WorkingDir": "/tmp",
        "AttachStdout": True,
        "AttachStderr": True,
        "DetachKeys": "ctrl-x",
    }
    made = json.loads(engine.api("POST", f"{V}/containers/box/exec", body)[2])["Id"]
    documents = {"created": engine.get(f"{V}/exec/{made}/json")}
    engine.api("POST", f"{V}/exec/{made}/start", {"Detach": True})
    until(lambda: engine.get(f"{V}/exec/{made}/json")["Running"] is False, what="the end")
    documents["ended"] = engine.get(f"{V}/exec/{made}/json")
    return documents


@scenario
def volumes_and_networks(engine: Engine) -> Documents:
    engine.ok("volume", "create", "--label", "a=1", "named")
    engine.ok("run", "-d", "--name", "box", "-v", "named:/a", "busybox", "sleep", "600")
    networks = {one["Name"]: one for one in engine.get(f"{V}/networks")}
    documents = {f"network {name}": networks.get(name) for name in ("bridge", "host", "none")}
    documents["network bridge, used"] = engine.get(f"{V}/networks/bridge")
    documents["volume"] = engine.get(f"{V}/volumes/named")
    documents["volumes"] = engine.get(f"{V}/volumes")
    return documents


@scenario
def events(engine: Engine) -> Documents:
    """Everything that a container's life tells."""
    begin = time.time()
    obeys = "trap 'exit 3' TERM; while :; do sleep 0.05; done"
    engine.ok("run", "-d", "--name", "box", "-l", "a=1", "-v", "named:/a", "busybox", "sh", "-c", obeys)
    engine.ok("exec", "box", "true")
    engine.ok("pause", "box")
    engine.ok("unpause", "box")
    engine.ok("rename", "box", "other")
    engine.ok("update", "-m", "64m", "--memory-swap", "128m", "other")
    engine.ok("stop", "other")
    engine.ok("start", "other")
    engine.ok("kill", "other")
    engine.ok("wait", "other")
    time.sleep(0.3)
    engine.ok("rm", "other")
    engine.ok("volume", "rm", "named")
    engine.ok("tag", "busybox", "mine/box:1")
    engine.ok("rmi", "mine/box:1")
    status, _, body = engine.api("GET", f"{V}/events?since={begin:.9f}&until={time.time():.9f}")
    assert status == 200
    told = [json.loads(line) for line in body.splitlines()]
    by_kind = {}
    for kind in ("container", "network", "volume", "image"):
        of_kind = [event for event in told if event["Type"] == kind]
        by_kind[f"{kind} actions"] = [event["Action"] for event in of_kind]
        by_kind[kind] = of_kind
    return by_kind


@scenario
def about(engine: Engine) -> Documents:
    """version, info and _ping: which fields there are, of which type."""
    version = engine.get(f"{V}/version")
    info = engine.get(f"{V}/info")
    headers = engine.api("GET", "/_ping")[1]
    return {
        "version": shape(version),
        "info": shape(info),
        "ping headers": sorted(set(headers) - {"date", "content-length", "connection"}),
        "info values": {
            key: info.get(key)
            for key in (
                *("Containers", "ContainersRunning", "ContainersPaused", "ContainersStopped", "Driver"),
                *("LoggingDriver", "CgroupDriver", "CgroupVersion", "OSType", "Architecture", "NCPU", "Debug"),
                *("MemoryLimit", "SwapLimit", "CpuCfsPeriod", "CpuCfsQuota", "CPUShares", "CPUSet", "PidsLimit"),
                *(
                    "IPv4Forwarding",
                    "OomKillDisable",
                    "DefaultRuntime",
                    "InitBinary",
                    "SecurityOptions",
                    "Warnings",
                ),
            )
        },
    }


@scenario
def processes(engine: Engine) -> Documents:
    """top, stats and logs."""
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", "echo out; echo err >&2; exec sleep 600")
    until(lambda: engine.ok("logs", "box"), what="output")
    top = engine.get(f"{V}/containers/box/top")
    stats = engine.get(f"{V}/containers/box/stats?stream=0&one-shot=1")
    engine.ok("kill", "box")
    engine.ok("wait", "box")
    status, headers, body = engine.api("GET", f"{V}/containers/box/logs?stdout=1&stderr=1")
    return {
        "top titles": top["Titles"],
        "top programs": [line[-1] for line in top["Processes"]],
        "stats": shape(stats),
        "logs": {"status": status, "type": headers.get("content-type"), "body": sorted(body.hex().split("0a"))},
        "stats, stopped": shape(engine.get(f"{V}/containers/box/stats?stream=0")),
    }


ERRORS: dict[str, tuple[str, str, Any]] = {
    "no such container": ("GET", "/containers/nosuch/json", None),
    "start of none": ("POST", "/containers/nosuch/start", None),
    "remove of none": ("DELETE", "/containers/nosuch", None),
    "no such image": ("GET", "/images/nosuch/json", None),
    "create without image": ("POST", "/containers/create", {"Image": "nosuch:1"}),
    "create without command": ("POST", "/containers/create", {"Image": "variants:none"}),
    "bad name": ("POST", "/containers/create?name=a/b", {"Image": "busybox"}),
    "name taken": ("POST", "/containers/create?name=runs", {"Image": "busybox"}),
    "bad filter": ("GET", '/containers/json?filters={"nosuch":["x"]}', None),
    "broken filter": ("GET", "/containers/json?filters={", None),
    "bad status": ("GET", '/containers/json?filters={"status":["nosuch"]}', None),
    "remove running": ("DELETE", "/containers/runs", None),
    "kill stopped": ("POST", "/containers/stopped/kill", None),
    "pause stopped": ("POST", "/containers/stopped/pause", None),
    "unpause running": ("POST", "/containers/runs/unpause", None),
    "bad signal": ("POST", "/containers/runs/kill?signal=NOSUCH", None),
    "top of stopped": ("GET", "/containers/stopped/top", None),
    "exec in stopped": ("POST", "/containers/stopped/exec", {"Cmd": ["true"]}),
    "exec without command": ("POST", "/containers/runs/exec", {}),
    "no such exec": ("POST", "/exec/nosuch/start", {}),
    "attach to nothing": ("POST", "/containers/nosuch/attach?stream=1", None),
    "wait for nothing": ("POST", "/containers/nosuch/wait", None),
    "bad condition": ("POST", "/containers/runs/wait?condition=nosuch", None),
    "rename to taken": ("POST", "/containers/stopped/rename?name=runs", None),
    "rename to nothing": ("POST", "/containers/stopped/rename?name=", None),
    "logs without stream": ("GET", "/containers/runs/logs", None),
    "bad tail": ("GET", "/containers/runs/logs?stdout=1&tail=x", None),
    "no such volume": ("GET", "/volumes/nosuch", None),
    "volume in use": ("DELETE", "/volumes/used", None),
    "bad volume name": ("POST", "/volumes/create", {"Name": "a/b"}),
    "no such volume driver": ("POST", "/volumes/create", {"Name": "vv", "Driver": "nosuch"}),
    "no such network": ("GET", "/networks/nosuch", None),
    "create on no network": (
        "POST",
        "/containers/create",
        {"Image": "busybox", "HostConfig": {"NetworkMode": "nosuch"}},
    ),
    "little memory": ("POST", "/containers/create", {"Image": "busybox", "HostConfig": {"Memory": 1000}}),
    "swap without memory": (
        "POST",
        "/containers/create",
        {"Image": "busybox", "HostConfig": {"MemorySwap": 10**9}},
    ),
    "swap below memory": (
        "POST",
        "/containers/create",
        {"Image": "busybox", "HostConfig": {"Memory": 10**8, "MemorySwap": 10**7}},
    ),
    "many cpus": ("POST", "/containers/create", {"Image": "busybox", "HostConfig": {"NanoCpus": 10**15}}),
    "relative bind": ("POST", "/containers/create", {"Image": "busybox", "HostConfig": {"Binds": ["a/b:/c"]}}),
    "relative target": ("POST", "/containers/create", {"Image": "busybox", "HostConfig": {"Binds": ["/a:c"]}}),
    "bind onto root": ("POST", "/containers/create", {"Image": "busybox", "HostConfig": {"Binds": ["/a:/"]}}),
    "bad bind mode": ("POST", "/containers/create", {"Image": "busybox", "HostConfig": {"Binds": ["/a:/b:zz"]}}),
    "bad restart policy": (
        "POST",
        "/containers/create",
        {"Image": "busybox", "HostConfig": {"RestartPolicy": {"Name": "nosuch"}}},
    ),
    "restart with auto-remove": (
        "POST",
        "/containers/create",
        {"Image": "busybox", "HostConfig": {"AutoRemove": True, "RestartPolicy": {"Name": "always"}}},
    ),
    "bad log driver": (
        "POST",
        "/containers/create",
        {"Image": "busybox", "HostConfig": {"LogConfig": {"Type": "nosuch"}}},
    ),
    "bad log option": (
        "POST",
        "/containers/create",
        {"Image": "busybox", "HostConfig": {"LogConfig": {"Type": "json-file", "Config": {"nosuch": "1"}}}},
    ),
    "bad capability": ("POST", "/containers/create", {"Image": "busybox", "HostConfig": {"CapAdd": ["NOSUCH"]}}),
    "bad security option": (
        "POST",
        "/containers/create",
        {"Image": "busybox", "HostConfig": {"SecurityOpt": ["nosuch=1"]}},
    ),
    "tag of none": ("POST", "/images/nosuch/tag?repo=a&tag=b", None),
    "bad tag": ("POST", "/images/busybox/tag?repo=UPPER&tag=b", None),
    "remove no image": ("DELETE", "/images/nosuch", None),
    "remove used image": ("DELETE", "/images/variants:web", None),
    "prune with a bad filter": ("POST", '/containers/prune?filters={"nosuch":["x"]}', None),
    "events to the past": ("GET", "/events?since=20&until=10", None),
    "no such page": ("GET", "/nosuch", None),
}


@scenario
def errors(engine: Engine) -> Documents:
    """Status and message of requests that must fail."""
    engine.ok("run", "-d", "--name", "runs", "-v", "used:/a", "variants:web")
    engine.ok("create", "--name", "stopped", "busybox")
    documents = {}
    for name, (method, path, body) in ERRORS.items():
        try:
            status, headers, answer = engine.api(method, f"{V}{path.replace(' ', '%20')}", body, timeout=5)
        except TimeoutError:
            documents[name] = "no answer"
            continue
        kind = headers.get("content-type", "")
        said = (
            json.loads(answer)
            if kind.startswith("application/json") and answer
            else answer.decode(errors="replace")
        )
        documents[name] = {"status": status, "type": kind, "body": said}
    return documents


@scenario
def answers(engine: Engine) -> Documents:
    """Status, type and keys of the answers to what succeeds."""
    documents = {}

    def ask(name: str, method: str, path: str, body: Any = None) -> Any:
        status, headers, answer = engine.api(method, f"{V}{path}", body)
        kind = headers.get("content-type", "")
        said = json.loads(answer) if answer and "json" in kind else None
        documents[name] = {"status": status, "type": kind, "body": said}
        return said

    ask("create", "POST", "/containers/create?name=box", {"Image": "busybox", "Cmd": ["sleep", "600"]})
    ask("start", "POST", "/containers/box/start")
    ask("start again", "POST", "/containers/box/start")
    ask("resize", "POST", "/containers/box/resize?h=10&w=20")
    ask("rename", "POST", "/containers/box/rename?name=other")
    ask("pause", "POST", "/containers/other/pause")
    ask("unpause", "POST", "/containers/other/unpause")
    ask("update", "POST", "/containers/other/update", {"CpuShares": 100})
    ask("restart", "POST", "/containers/other/restart?t=0")
    ask("stop", "POST", "/containers/other/stop?t=0")
    ask("stop again", "POST", "/containers/other/stop?t=0")
    ask("wait", "POST", "/containers/other/wait")
    ask("remove", "DELETE", "/containers/other")
    ask("volume create", "POST", "/volumes/create", {"Name": "vol", "Labels": {"a": "1"}})
    ask("volume create again", "POST", "/volumes/create", {"Name": "vol"})
    ask("volume remove", "DELETE", "/volumes/vol")
    ask("tag", "POST", "/images/busybox/tag?repo=mine/box&tag=1")
    ask("untag", "DELETE", "/images/mine/box:1")
    ask("containers prune", "POST", "/containers/prune")
    ask("volumes prune", "POST", "/volumes/prune")
    return documents


NETWORK_REQUESTS: list[tuple[str, str, str, Any]] = [
    ("create", "POST", "/networks/create", {"Name": "net", "Labels": {"a": "1"}, "CheckDuplicate": True}),
    ("create again", "POST", "/networks/create", {"Name": "net", "CheckDuplicate": True}),
    (
        "create with a subnet",
        "POST",
        "/networks/create",
        {
            "Name": "sub",
            "IPAM": {"Config": [{"Subnet": "10.77.0.0/24", "IPRange": "10.77.0.128/25", "Gateway": "10.77.0.9"}]},
        },
    ),
    ("overlap", "POST", "/networks/create", {"Name": "over", "IPAM": {"Config": [{"Subnet": "10.77.0.0/16"}]}}),
    ("bad subnet", "POST", "/networks/create", {"Name": "bad", "IPAM": {"Config": [{"Subnet": "10.78.0/24"}]}}),
    (
        "gateway outside",
        "POST",
        "/networks/create",
        {"Name": "bad", "IPAM": {"Config": [{"Subnet": "10.78.0.0/24", "Gateway": "10.79.0.1"}]}},
    ),
    ("internal", "POST", "/networks/create", {"Name": "inner", "Internal": True}),
    ("no such driver", "POST", "/networks/create", {"Name": "bad", "Driver": "nosuch"}),
    ("no name", "POST", "/networks/create", {"Name": ""}),
    ("predefined name", "POST", "/networks/create", {"Name": "bridge"}),
    ("second host", "POST", "/networks/create", {"Name": "two", "Driver": "host"}),
    ("inspect", "GET", "/networks/sub", None),
    ("inspect internal", "GET", "/networks/inner", None),
    ("inspect none", "GET", "/networks/nosuch", None),
    ("connect", "POST", "/networks/net/connect", {"Container": "box", "EndpointConfig": {"Aliases": ["alias"]}}),
    ("connect again", "POST", "/networks/net/connect", {"Container": "box"}),
    (
        "connect with an address",
        "POST",
        "/networks/sub/connect",
        {"Container": "box", "EndpointConfig": {"IPAMConfig": {"IPv4Address": "10.77.0.50"}}},
    ),
    (
        "the same address",
        "POST",
        "/networks/sub/connect",
        {"Container": "other", "EndpointConfig": {"IPAMConfig": {"IPv4Address": "10.77.0.50"}}},
    ),
    (
        "an address outside",
        "POST",
        "/networks/sub/connect",
        {"Container": "other", "EndpointConfig": {"IPAMConfig": {"IPv4Address": "10.99.0.50"}}},
    ),
    (
        "an address without subnet",
        "POST",
        "/networks/net/connect",
        {"Container": "other", "EndpointConfig": {"IPAMConfig": {"IPv4Address": "172.18.0.50"}}},
    ),
    ("connect nobody", "POST", "/networks/net/connect", {"Container": "nosuch"}),
    ("connect to none", "POST", "/networks/nosuch/connect", {"Container": "box"}),
    ("connect to host", "POST", "/networks/host/connect", {"Container": "box"}),
    ("container", "GET", "/containers/box/json", None),
    ("network with member", "GET", "/networks/sub", None),
    ("remove in use", "DELETE", "/networks/net", None),
    ("disconnect", "POST", "/networks/net/disconnect", {"Container": "box"}),
    ("disconnect again", "POST", "/networks/net/disconnect", {"Container": "box"}),
    ("disconnect nobody", "POST", "/networks/net/disconnect", {"Container": "nosuch"}),
    ("disconnect stopped", "POST", "/networks/net/disconnect", {"Container": "stopped"}),
    ("connect stopped", "POST", "/networks/net/connect", {"Container": "stopped"}),
    ("filter", "GET", '/networks?filters={"name":["sub"]}', None),
    ("bad filter", "GET", '/networks?filters={"nosuch":["x"]}', None),
    ("prune with a bad filter", "POST", '/networks/prune?filters={"nosuch":["x"]}', None),
    ("prune by label", "POST", '/networks/prune?filters={"label":["a=2"]}', None),
    ("remove predefined", "DELETE", "/networks/bridge", None),
    ("remove", "DELETE", "/networks/inner", None),
    ("remove again", "DELETE", "/networks/inner", None),
]


def _play(engine: Engine, requests: list[tuple[str, str, str, Any]]) -> Documents:
    documents: Documents = {}
    for name, method, path, body in requests:
        status, _, answer = engine.api(method, f"{V}{path.replace(' ', '%20')}", body, timeout=60)
        said = json.loads(answer) if answer.strip()[:1] in (b"{", b"[") else answer.decode()
        documents[name] = {"status": status, "body": said}
    return documents


@scenario
def networks(engine: Engine) -> Documents:
    """The life of user-defined networks, and what is refused."""
    for name in ("box", "other"):
        engine.ok("run", "-d", "--name", name, "busybox", "sleep", "600")
    engine.ok("create", "--name", "stopped", "busybox")
    try:
        documents = _play(engine, NETWORK_REQUESTS)
        box = documents.pop("container")["body"]
        documents["endpoints"] = box["NetworkSettings"]["Networks"]
        engine.remove_everything()
        pruned = json.loads(engine.api("POST", f"{V}/networks/prune")[2])
        documents["prune"] = {key: sorted(value or []) for key, value in pruned.items()}
        return documents
    finally:
        engine.remove_everything()
        engine.docker("network", "prune", "-f")


VOLUME_REQUESTS: list[tuple[str, str, str, Any]] = [
    ("create", "POST", "/volumes/create", {"Name": "vol", "Labels": {"a": "1"}}),
    ("create again", "POST", "/volumes/create", {"Name": "vol", "Labels": {"b": "2"}}),
    (
        "create tmpfs",
        "POST",
        "/volumes/create",
        {"Name": "mem", "DriverOpts": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}},
    ),
    ("unknown option", "POST", "/volumes/create", {"Name": "bad", "DriverOpts": {"nosuch": "1"}}),
    ("type without device", "POST", "/volumes/create", {"Name": "bad", "DriverOpts": {"type": "tmpfs"}}),
    ("short name", "POST", "/volumes/create", {"Name": "x"}),
    ("bad name", "POST", "/volumes/create", {"Name": "../x"}),
    ("inspect", "GET", "/volumes/vol", None),
    ("inspect tmpfs", "GET", "/volumes/mem", None),
    ("inspect none", "GET", "/volumes/nosuch", None),
    ("filter dangling", "GET", '/volumes?filters={"dangling":["true"],"name":["mem"]}', None),
    ("filter label", "GET", '/volumes?filters={"label":["a=1"]}', None),
    ("bad filter", "GET", '/volumes?filters={"nosuch":["x"]}', None),
    ("remove used", "DELETE", "/volumes/used", None),
    ("remove used by force", "DELETE", "/volumes/used?force=1", None),
    ("remove none", "DELETE", "/volumes/nosuch", None),
    ("remove none by force", "DELETE", "/volumes/nosuch?force=1", None),
    ("prune with a bad filter", "POST", '/volumes/prune?filters={"nosuch":["x"]}', None),
    ("prune by label", "POST", '/volumes/prune?filters={"label":["a=2"]}', None),
    ("remove", "DELETE", "/volumes/vol", None),
]


@scenario
def volumes(engine: Engine) -> Documents:
    """The life of volumes, and what is refused."""
    engine.ok("create", "--name", "box", "-v", "used:/a", "busybox")
    return _play(engine, VOLUME_REQUESTS)
