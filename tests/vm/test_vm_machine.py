"""drayd in a virtual machine: what the host of the tests has not got (cgroup v2, systemd, AppArmor, a power switch).

The tests share one machine and build on each other's order; each leaves no container behind. A command inside takes
ten times longer than outside, so they ask for much at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from images import cache
from support.guest import Guest

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.vm,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu is not installed"),
]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    images = cache.machine()
    folder = tmp_path_factory.mktemp("machine")
    guest = Guest(folder, images)
    try:
        guest.boot()
        guest.ok("mkdir -p /etc/dray; cat > /etc/dray/daemon.json", input='{"experimental": true}')
        guest.ok("dray daemon unit > /etc/systemd/system/dray.service && systemctl enable --now dray", timeout=240)
        guest.ok("docker load -q -i /opt/busybox.tar")
        yield guest
    finally:
        guest.close()


@pytest.fixture(autouse=True)
def nothing_left(guest: Guest) -> Iterator[None]:
    yield
    guest.run("docker rm -f $(docker ps -aq)")


def inspect(guest: Guest, template: str, name: str) -> str:
    return guest.ok("docker", "inspect", "--format", template, name)


def test_the_machine_is_what_the_host_is_not(guest: Guest) -> None:
    assert guest.ok("stat -fc %T /sys/fs/cgroup") == "cgroup2fs"
    assert guest.ok("cat /sys/module/apparmor/parameters/enabled") == "Y"
    assert guest.ok("cat /proc/1/comm") == "systemd"


def test_the_service_is_what_systemd_wants(guest: Guest) -> None:
    status = guest.ok("systemctl status dray --no-pager --full")
    assert "Active: active (running)" in status  # Type=notify: systemd was told
    assert "enabled" in guest.ok("systemctl is-enabled dray")
    info = json.loads(guest.ok("docker info --format '{{json .}}'"))
    assert (info["CgroupVersion"], info["CgroupDriver"]) == ("2", "cgroupfs")
    assert any("apparmor" in option for option in info["SecurityOptions"])
    assert any("cgroupns" in option for option in info["SecurityOptions"])


def test_limits_on_cgroup_v2_hold(guest: Guest) -> None:
    flags = "--memory 64m --memory-reservation 32m --cpus 0.5 --cpu-shares 512 --pids-limit 20 --cpuset-cpus 1"
    flags += " --device-write-bps /dev/vda:1mb --device-read-iops /dev/vda:100"
    files = "memory.max memory.low memory.swap.max cpu.max cpu.weight pids.max cpuset.cpus"
    guest.ok(f"docker run -d --name box {flags} busybox sleep 600")
    shown = dict(
        line.split(":", 1)
        for line in guest.ok(f"docker exec box sh -c 'cd /sys/fs/cgroup; grep -H . {files}'").splitlines()
    )
    assert shown["memory.max"] == "67108864"
    assert shown["memory.low"] == "33554432"
    assert shown["cpu.max"] == "50000 100000"
    assert shown["cpu.weight"] == "59"  # 512 shares, as runc converts them since 1.3.2
    assert shown["pids.max"] == "20"
    assert shown["cpuset.cpus"] == "1"
    limits = guest.ok("docker exec box cat /sys/fs/cgroup/io.max")
    assert "wbps=1048576" in limits
    assert "riops=100" in limits
    # Measured: throttled by the quota, refused by the number of processes.
    count = "cut -d' ' -f1 /proc/uptime; grep -E '^(nr_throttled|usage_usec)' /sys/fs/cgroup/cpu.stat"
    busy = f"{count}; timeout 3 sh -c 'while :; do :; done'; {count}"
    words = guest.ok("docker", "exec", "box", "sh", "-c", busy).split()
    # The guest's own clock in seconds, usage_usec, nr_throttled; before and after.
    begin, used, throttled, end, used_then, throttled_then = (float(word) for word in words if word[0].isdigit())
    assert throttled_then - throttled > 5
    assert used_then - used < (end - begin) * 1e6 * 0.75
    forks = guest.ok("docker exec box sh -c 'for i in $(seq 40); do sleep 3 & done 2>&1; wait' || true")
    assert "fork" in forks
    # Live changes.
    guest.ok("docker update --memory 96m --memory-swap 96m --cpus 1 --pids-limit 30 box")
    shown = guest.ok("docker exec box sh -c 'cd /sys/fs/cgroup; cat memory.max cpu.max pids.max'")
    assert shown.split() == ["100663296", "100000", "100000", "30"]
    line = guest.ok("docker stats --no-stream --format '{{.MemUsage}} {{.PIDs}}' box")
    assert "/ 96MiB" in line


def test_too_much_memory_is_an_oom_kill(guest: Guest) -> None:
    code, _ = guest.run("docker run --name hungry --memory 24m --memory-swap 24m busybox tail /dev/zero")
    assert code == 137
    assert inspect(guest, "{{.State.OOMKilled}}", "hungry") == "true"
    assert guest.ok("systemctl is-active dray") == "active"


def test_devices_are_kept_by_a_program_in_the_kernel(guest: Guest) -> None:
    disk = guest.ok("stat -c '%t %T' /dev/vda").split()
    numbers = " ".join(str(int(number, 16)) for number in disk)
    script = f"mknod /x b {numbers} && dd if=/x of=/dev/null bs=512 count=1"
    code, out = guest.run(f"docker run --rm busybox sh -c '{script}'")
    assert code == 1
    assert "Operation not permitted" in out
    guest.ok("docker run --rm --device /dev/vda:/dev/disk:r busybox dd if=/dev/disk of=/dev/null bs=512 count=1")
    writing = "docker run --rm --device /dev/vda:/dev/disk:r busybox sh -c ': >> /dev/disk'"
    assert guest.run(writing)[0] != 0
    rule = f"docker run --rm --device-cgroup-rule 'b {numbers.replace(' ', ':')} rmw' busybox sh -c '{script}'"
    guest.ok(rule)


def test_pause_freezes_and_kill_reaches_all(guest: Guest) -> None:
    guest.ok("docker run -d --name box busybox sh -c 'while :; do date +%s%N > /tick; sleep 0.2; done'")
    guest.ok("docker pause box")
    pid = inspect(guest, "{{.State.Pid}}", "box")
    assert "1" in guest.ok(f"cat /sys/fs/cgroup$(cut -d: -f3 /proc/{pid}/cgroup)/cgroup.freeze")
    guest.ok("docker unpause box && docker exec -d box sleep 500 && docker kill box")
    assert guest.run(f"test -e /proc/{pid}")[0] != 0
    assert inspect(guest, "{{.State.ExitCode}}", "box") == "137"


def test_the_default_apparmor_profile_is_applied(guest: Guest) -> None:
    assert "docker-default (enforce)" in guest.ok("cat /sys/kernel/security/apparmor/profiles")
    guest.ok("docker run -d --name box busybox sleep 600")
    assert inspect(guest, "{{.AppArmorProfile}}", "box") == "docker-default"
    assert guest.ok("docker exec box cat /proc/1/attr/current /proc/self/attr/current").split() == [
        *("docker-default", "(enforce)"),
        *("docker-default", "(enforce)"),
    ]
    # It alone stands in the way here: capability and seccomp are given.
    mount = "--rm --cap-add SYS_ADMIN --security-opt seccomp=unconfined"
    code, out = guest.run(f"docker run {mount} busybox mount -t tmpfs none /tmp")
    assert code != 0
    assert "denied" in out
    guest.ok(f"docker run {mount} --security-opt apparmor=unconfined busybox mount -t tmpfs none /tmp")
    code, out = guest.run("docker run --rm --security-opt apparmor=nosuch busybox true")
    assert (code, "'nosuch' is not loaded" in out) == (125, True)
    guest.ok("docker stop -t 5 box")  # the profile lets the shim's signals in


def test_a_profile_of_ones_own(guest: Guest) -> None:
    profile = "profile mine flags=(attach_disconnected) { network, capability, file, deny /etc/passwd r, }"
    guest.ok("apparmor_parser --replace --skip-cache", input=profile)
    code, out = guest.run("docker run --rm --security-opt apparmor=mine busybox cat /etc/passwd")
    assert (code, "Permission denied" in out) == (1, True)
    guest.ok("docker run --rm --security-opt apparmor=mine busybox cat /etc/group")


def test_a_restart_of_the_service_disturbs_no_container(guest: Guest) -> None:
    guest.ok(
        "docker run -d --name web -p 8080:80 busybox sh -c "
        "'echo hello > /index.html; while :; do echo tick; sleep 0.2; done & exec httpd -f -p 80 -h /'"
    )
    pid = inspect(guest, "{{.State.Pid}}", "web")
    for stop in ("systemctl restart dray", "systemctl kill --kill-whom=main -s KILL dray"):
        before = int(guest.ok("docker logs web | wc -l"))
        main = guest.ok("systemctl show -P MainPID dray")
        guest.ok(stop, timeout=240)
        assert guest.ok("busybox wget -qO- http://127.0.0.1:8080/") == "hello"
        guest.ok(
            "until systemctl is-active -q dray && [ $(systemctl show -P MainPID dray) != " + main + " ]; "
            "do sleep 0.5; done; until docker ps -q; do sleep 0.5; done",
            timeout=240,
        )
        assert inspect(guest, "{{.State.Pid}} {{.State.Running}} {{.RestartCount}}", "web") == f"{pid} true 0"
        assert int(guest.ok("docker logs web | wc -l")) > before
        assert guest.ok("busybox wget -qO- http://127.0.0.1:8080/") == "hello"


COUNTER = "n=0; httpd -p 80 -h /etc; while :; do n=$((n+1)); echo $n > /dev/shm/n; echo tick $n; sleep 0.2; done"
SHOWN = (
    "cat /proc/self/mounts /proc/1/cgroup /sys/fs/cgroup/memory.max; grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/1/status; "
    "cat /proc/1/attr/current /proc/sys/kernel/hostname; ulimit -n; id; readlink /proc/1/cwd; cat /proc/1/oom_score_adj"
)


def test_a_container_goes_on_from_its_checkpoint(guest: Guest) -> None:
    """Memory, files in its tmpfs, listening sockets and confinement are as they were, and it is as governable."""
    flags = "--memory 64m --tmpfs /scratch -v keep:/data --hostname here --ulimit nofile=300 -w /tmp -p 8082:80"
    guest.ok(
        "docker", "run", "-d", "--name", "box", *flags.split(), "--restart=always", "busybox", "sh", "-c", COUNTER
    )
    shown = set(guest.ok("docker", "exec", "box", "sh", "-c", SHOWN).split("\n"))  # the order of mounts is criu's
    # What an exec has started is no part of it, and in nobody's way.
    guest.ok("docker exec -d box sh -c 'echo kept > /scratch/file; exec sleep 1000'; sleep 1")
    assert guest.ok("docker checkpoint create --leave-running box live") == "live"
    before = int(guest.ok("docker exec box cat /dev/shm/n"))
    assert guest.ok("docker checkpoint create box first") == "first"
    assert inspect(guest, "{{.State.Status}} {{.State.ExitCode}}", "box") == "exited 137"
    assert guest.ok("docker checkpoint ls box").split("\n")[1:] == ["first", "live"]
    code, out = guest.run("docker checkpoint create box first; docker start --checkpoint nosuch box")
    assert (code, "not running" in out, "checkpoint nosuch does not exist" in out) == (1, True, True)
    for _ in range(2):  # it may be started from more than once
        guest.ok("docker start --checkpoint first box")
        assert int(guest.ok("docker exec box cat /dev/shm/n")) in range(before, before + 200)
        differs = shown ^ set(guest.ok("docker", "exec", "box", "sh", "-c", SHOWN).split("\n"))
        assert differs == set(), differs
        assert guest.ok("docker exec box cat /scratch/file") == "kept"
        assert "root" in guest.ok("busybox wget -qO- http://127.0.0.1:8082/passwd")
        main = guest.ok("systemctl show -P MainPID dray")
        guest.ok("systemctl kill --kill-whom=main -s KILL dray; sleep 1; until docker ps -q; do sleep 0.5; done")
        assert guest.ok("systemctl show -P MainPID dray") != main
        assert "tick" in guest.ok("docker logs --tail 1 box")
        assert guest.ok("docker exec box pidof httpd")
        guest.ok("docker stop -t 0 box")
    assert guest.run("pgrep criu")[0] == 1
    guest.ok(
        "docker checkpoint rm box live; docker start box; until docker exec box test -s /dev/shm/n; do :; done"
    )
    assert int(guest.ok("docker exec box cat /dev/shm/n")) < before
    assert guest.ok("docker checkpoint ls box").split("\n")[1:] == ["first"]


def test_checkpoints_that_cannot_be(guest: Guest) -> None:
    guest.ok(
        "docker run -dt --name terminal busybox sleep 600; docker run -d --name shares --pid host busybox sleep 600"
    )
    code, out = guest.run("docker checkpoint create terminal one; docker checkpoint create shares one")
    assert (code, "containers with tty" in out, "--pid=host" in out) == (1, True, True)
    assert guest.ok("docker ps -q | wc -l") == "2"


def test_systemd_may_hold_the_socket(guest: Guest) -> None:
    guest.ok(
        "dray daemon unit --path /run/docker.sock socket > /etc/systemd/system/dray.socket; "
        "dray daemon unit --socket > /etc/systemd/system/dray.service; "
        "systemctl daemon-reload; systemctl stop dray; systemctl enable --now dray.socket",
        timeout=240,
    )
    assert guest.run("systemctl is-active dray")[1].strip() == "inactive"
    assert "Server" in guest.ok("docker version", timeout=240)  # the first request starts it
    assert guest.ok("systemctl is-active dray") == "active"
    assert guest.ok("stat -c '%a %U' /run/docker.sock") == "660 root"


def test_after_a_reboot_what_should_run_does(guest: Guest) -> None:
    guest.ok("docker run -d --name always --restart always -p 8081:80 busybox httpd -f -p 80 -h /etc")
    guest.ok("docker run -d --name unless --restart unless-stopped busybox sleep 600")
    guest.ok("docker run -d --name stopped --restart unless-stopped busybox sleep 600; docker stop -t 0 stopped")
    guest.ok("docker run -d --name plain -v keep:/data busybox sh -c 'echo kept > /data/file; sync; sleep 600'")
    guest.reboot()
    # The daemon stopped its containers: systemd would have waited 90 seconds for an init that does not hear SIGTERM.
    assert "Waiting for process" not in guest.console()
    guest.ok("until docker ps -q; do sleep 1; done", timeout=240)
    names = "docker ps --format '{{.Names}}' | sort | tr '\\n' ' '"
    guest.ok(f"for i in $(seq 60); do [ \"$({names})\" = 'always unless ' ] && break; sleep 1; done", timeout=240)
    assert guest.ok(names).split() == ["always", "unless"]
    assert "root" in guest.ok("busybox wget -qO- http://127.0.0.1:8081/passwd")
    assert inspect(guest, "{{.State.Status}}", "plain") == "exited"
    assert guest.ok("docker run --rm -v keep:/data busybox cat /data/file") == "kept"


def test_a_power_cut_takes_nothing_that_was_acknowledged(guest: Guest) -> None:
    """Objects are made until the power goes; each is written down on the host once it was acknowledged."""
    guest.ok("docker load -q -i /opt/busybox.tar; docker run -d --name ran --restart always busybox sleep 600")
    made: list[str] = []
    for number in range(4):
        guest.ok(f"docker create --name made-{number} -v vol-{number}:/data busybox true")
        guest.ok(f"docker tag busybox tagged:{number}; docker network create net-{number}")
        made.append(str(number))
    guest.ok("docker rm made-0")
    guest.cut()
    guest.boot()
    guest.ok("until docker ps -q; do sleep 1; done", timeout=240)
    listed = guest.ok("docker ps -a --format '{{.Names}}'").split()
    assert sorted(listed) == sorted([*(f"made-{number}" for number in made[1:]), "ran"])
    volumes = guest.ok("docker volume ls -q").split()
    networks = guest.ok("docker network ls --format '{{.Name}}'").split()
    tags = guest.ok("docker images tagged --format '{{.Tag}}'").split()
    assert {f"vol-{number}" for number in made} <= set(volumes)
    assert {f"net-{number}" for number in made} <= set(networks)
    assert set(tags) == set(made)
    guest.ok("docker start -a made-1")  # the layers are whole, or were unpacked again
    assert guest.ok("docker run --rm busybox md5sum /bin/busybox | cut -d' ' -f1") == guest.ok(
        "docker save busybox | wc -c >/dev/null; md5sum /bin/busybox | cut -d' ' -f1"
    )
    assert inspect(guest, "{{.State.Running}}", "ran") == "true"
