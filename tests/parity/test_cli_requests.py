"""The same words, the same request: docker and dray are pointed at a listening daemon, and what arrives is compared.

Differences that are meant: docker's order of variables and of binds is that of a Go map, and a request of its
carries the fields that only answers have.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_both import DRAY, environment, run

from dray.cli.main import main
from support.api_recorder import Recorder, Request, recording

CASES = """
create busybox
create -it busybox sh
create -i busybox
create -t -a stdout busybox
create -a stdin -a stdout busybox
create --add-host a:1.2.3.4 --add-host b=::1 --add-host c:host-gateway busybox
create --annotation a=b --annotation c busybox
create --blkio-weight 100 --blkio-weight-device /dev/sda:200 busybox
create --cap-add NET_ADMIN --cap-drop all busybox
create --cgroup-parent /x --cgroupns private busybox
create --cpu-period 1000 --cpu-quota 500 --cpu-shares 10 --cpus 1.5 busybox
create --cpu-rt-period 1000 --cpu-rt-runtime 500 --cpuset-cpus 0,1 --cpuset-mems 0 busybox
create --cpu-count 2 --cpu-percent 50 --io-maxbandwidth 10m --io-maxiops 5 busybox
create --device /dev/null --device /dev/zero:/dev/z --device /dev/full:r --device /dev/tty:/x:rw busybox
create --device vendor.com/gpu=all busybox
create --device-cgroup-rule 'c 1:3 rwm' busybox
create --device-read-bps /dev/sda:1mb --device-read-iops /dev/sda:100 --device-write-bps /dev/sda:2m --device-write-iops /dev/sda:5 busybox
create --dns 1.1.1.1 --dns-option ndots:1 --dns-opt a --dns-search example.com --dns-search . busybox
create --domainname d --hostname h busybox
create -h h busybox
create --entrypoint '' busybox a
create --entrypoint sh busybox -c x
create -e A=1 -e FOO -e NOPE -e B= busybox
create --env-file envf -e Z=1 busybox
create --expose 80 --expose 90-92/udp -p 8080:80 busybox
create -p 80 busybox
create -p 8080:80 -p 127.0.0.1:9090:90/udp -p [::1]:5000:50 -p 100-102:100-102 busybox
create -p 8000-9000:80 busybox
create -p 127.0.0.1::80 busybox
create -p 80/sctp -P busybox
create -p ::1:80:80 busybox
create -p target=80,published=8080 busybox
create -p target=80,published=8080,protocol=udp busybox
create -p 8080:80 -p 9090:80 busybox
create --gpus all busybox
create --gpus 2 busybox
create --gpus device=0 busybox
create --gpus '"device=0,1"' busybox
create --gpus 'driver=nvidia,count=2,"capabilities=compute,utility"' busybox
create --gpus 'all,"options=a=b,c=d"' busybox
create --group-add a --group-add 5 busybox
create --health-cmd x --health-interval 5s --health-retries 3 --health-start-period 1m --health-start-interval 2s --health-timeout 1s busybox
create --health-interval 5s busybox
create --no-healthcheck busybox
create --init busybox
create --init=false busybox
create --ip 1.2.3.4 --ip6 ::5 --network foo busybox
create --ipc host --pid host --uts host --userns host busybox
create --ipc container:x --pid container:x --network container:x busybox
create --isolation hyperv busybox
create -l a=b -l c --label d=e=f busybox
create --label-file labf -l z=1 busybox
create --link a --link b:c busybox
create --link a --network foo busybox
create --link-local-ip 169.254.1.1 --network foo busybox
create --log-driver json-file --log-opt a=b --log-opt c=d busybox
create --log-opt a=b busybox
create --mac-address 92:d0:c6:0a:29:33 busybox
create --mac-address 92:d0:c6:0a:29:33 --network foo busybox
create -m 20m --memory-reservation 10m --memory-swap 40m --memory-swappiness 50 busybox
create --memory-swap -1 -m 1g busybox
create --mount type=bind,src=/a,dst=/b busybox
create --mount type=bind,source=/a,target=/b,readonly,bind-propagation=rshared,consistency=cached busybox
create --mount type=bind,src=/a,dst=/b,bind-recursive=disabled busybox
create --mount type=bind,src=/a,dst=/b,ro,bind-recursive=writable busybox
create --mount type=bind,src=/a,dst=/b,ro,bind-recursive=readonly,bind-propagation=rprivate busybox
create --mount type=bind,src=/a,dst=/b,bind-recursive=enabled busybox
create --mount type=bind,src=/a,dst=/b,bind-nonrecursive busybox
create --mount type=bind,src=./a,dst=/b busybox
create --mount src=v,dst=/b,volume-nocopy,volume-label=a=b,volume-driver=d,volume-opt=o=p,volume-subpath=s busybox
create --mount dst=/b busybox
create --mount type=volume,src=v,dst=/b,volume-opt=type=nfs,volume-opt=device=:/x busybox
create --mount 'type=volume,dst=/b,"volume-opt=o=addr=1,rw"' busybox
create --mount type=tmpfs,dst=/t,tmpfs-size=10m,tmpfs-mode=1770 busybox
create --mount type=tmpfs,dst=/t busybox
create --mount type=image,src=busybox,dst=/i,image-subpath=etc busybox
create --mount type=npipe,src=a,dst=b busybox
create --name foo busybox
create --network foo busybox
create --network name=foo,alias=a,alias=b,ip=1.2.3.4,ip6=::5,driver-opt=a=b,link-local-ip=169.254.1.1,mac-address=92:d0:c6:0a:29:33 busybox
create --network name=foo,gw-priority=5 --network bar busybox
create --network foo --network-alias x --network-alias y busybox
create --net foo --net-alias z busybox
create --network bridge --network-alias x busybox
create --network-alias x busybox
create --network host busybox
create --network none --mac-address 92:d0:c6:0a:29:33 busybox
create --oom-kill-disable --oom-score-adj 500 --pids-limit 100 busybox
create --pids-limit -1 busybox
create --platform linux/arm64 busybox
create --platform Linux/ARM64/v8 busybox
create --privileged --read-only busybox
create -q busybox
create --restart always busybox
create --restart on-failure:5 busybox
create --restart on-failure busybox
create --restart unless-stopped busybox
create --rm busybox
create --runtime runc busybox
create --security-opt no-new-privileges --security-opt label=disable --security-opt apparmor=x busybox
create --security-opt label:disable busybox
create --security-opt seccomp=unconfined --security-opt systempaths=unconfined busybox
create --security-opt seccomp=sec.json busybox
create --security-opt no-new-privileges=true busybox
create --shm-size 64m busybox
create --stop-signal SIGINT --stop-timeout 5 busybox
create --stop-timeout 0 busybox
create --storage-opt size=10G busybox
create --sysctl net.ipv4.ip_forward=1 busybox
create --tmpfs /t --tmpfs /u:size=5m,mode=1777 busybox
create --ulimit nofile=10:20 --ulimit core=-1 --ulimit nproc=5 busybox
create --ulimit nofile=10 --ulimit nofile=20:30 busybox
create -u 1000:1000 -w /tmp busybox
create -v /a:/b -v v:/c:ro -v /d -v ./e:/f -v ../g:/h -v .:/x busybox
create -v v:/c:ro,z --volume-driver d --volumes-from x:ro busybox
create -v ~/x:/y busybox
create -v /a:/b:/c busybox
create busybox -- a
create -- busybox a -b
create --tty=false -i=true busybox
create --env A=b --env=C=d busybox -e x
create docker.io/library/busybox
create foo/bar:1@sha256:e440a5e4b6247d43eaf32f716e7dddeac9dce490879d11c2e060a306cf597187
ps
ps -a
ps -n 5
ps -l
ps -s
ps --filter label=a --filter label=b --filter status=running
images -a
images foo
images --filter dangling=true
rm -fv x
rm -l x
stop x
stop -t 5 x
stop --time 5 x
stop -s INT x
restart -t 5 -s INT x
kill x
kill -s INT x
pause x
unpause x
rename a b
wait x
start x
rmi -f x
rmi --no-prune x y
save x y
history x
image inspect x
network create x
network create -d foo --subnet 10.0.0.0/24 --gateway 10.0.0.1 --ip-range 10.0.0.0/25 --aux-address a=10.0.0.5 --opt a=b --label l=m --internal --attachable x
network create --ipv6 --ipv4=false x
network create --scope swarm --ingress --config-only x
network create --config-from y x
network create --ipam-driver d --ipam-opt a=b x
network create --subnet 10.0.0.0/24 --subnet fd00::/64 --gateway 10.0.0.1 --gateway fd00::1 x
network connect a b
network connect --ip 1.2.3.4 --ip6 ::1 --alias x --link a:b --link-local-ip 169.254.1.1 --driver-opt a=b --gw-priority 3 a b
network disconnect -f a b
network ls --filter driver=x
network prune -f --filter until=1h
volume create
volume create foo
volume create -d d --opt a=b --label l=m foo
volume ls --filter dangling=true
volume rm -f a
container prune -f --filter until=24h
system df
events --since 1 --until 2 --filter type=container
logs x
top x
top x -o pid
port x
diff x
exec x ls
exec -d x ls
export x
"""

_ANSWER_ONLY = (
    "NetworkID",
    "EndpointID",
    "Gateway",
    "IPAddress",
    "IPPrefixLen",
    "IPv6Gateway",
    "GlobalIPv6Address",
    "GlobalIPv6PrefixLen",
    "DNSNames",
)


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    with recording() as one:
        yield one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both clients run: the files that the cases name."""
    one = tmp_path_factory.mktemp("cli-requests")
    (one / "envf").write_text("A=1\n# c\n\nFOO\nNOPE\n  B=2 \nC=\n")
    (one / "labf").write_text("a=1\n#c\nb=2\n")
    (one / "sec.json").write_text('{ "defaultAction": "SCMP_ACT_ALLOW" }\n')
    return one


def _comparable(request: Request) -> tuple[Any, ...]:
    body = request.body
    if isinstance(body, dict):
        endpoints = list(((body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}).values())
        for endpoint in [*endpoints, body.get("EndpointConfig") or {}]:
            for key in _ANSWER_ONLY:
                endpoint.pop(key, None)
        if "EndpointConfig" in body:
            body["EndpointConfig"].pop("MacAddress", None)
        if body.get("Env"):
            body["Env"].sort()
        if (body.get("HostConfig") or {}).get("Binds"):
            body["HostConfig"]["Binds"].sort()
        if (body.get("IPAM") or {}).get("Config"):
            body["IPAM"]["Config"].sort(key=lambda one: one["Subnet"])
    return request.method, request.path, request.query, body


@pytest.mark.parametrize("line", [line for line in CASES.split("\n") if line])
def test_same_requests(line: str, recorder: Recorder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, env = shlex.split(line), environment(recorder.host, folder)
    docker = run(["docker", *words], env, cwd=folder)
    theirs = [_comparable(one) for one in recorder.take()]
    # Ours runs in this process, which spares the suite two hundred interpreters.
    monkeypatch.chdir(folder)
    for name in os.environ.keys() - env.keys():
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    status = main(words)
    ours = [_comparable(one) for one in recorder.take()]
    assert ours == theirs
    assert status == docker.status


def test_a_missing_image_is_pulled(recorder: Recorder, folder: Path) -> None:
    """Create answers 404: both ask for the image, on standard error, and say how it went."""
    recorder.answers["POST", "/containers/create"] = (404, b'{"message":"No such image: busybox:latest"}')
    try:
        docker = run(["docker", "run", "busybox"], environment(recorder.host, folder))
        theirs = [(one.method, one.path) for one in recorder.take()]
        dray = run([*DRAY, "run", "busybox"], environment(recorder.host, folder))
        ours = [(one.method, one.path) for one in recorder.take()]
    finally:
        recorder.answers["POST", "/containers/create"] = (201, b'{"Id":"' + b"a" * 64 + b'","Warnings":[]}')
    assert ours == theirs == [("POST", "/containers/create"), ("POST", "/images/create")]
    assert dray == docker
