"""Every flag of `docker container run`, with what shows that it is obeyed, or refused by name.

One `Case` is one run of busybox. The table of docs/compatibility.md (`tests/parity/options.toml`) names these cases,
and a unit test holds the two together: what the table calls obeyed has a case that looks at the effect, what it calls
refused has a case that reads the refusal's words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

V1 = not Path("/sys/fs/cgroup/cgroup.controllers").exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run.

    name: the flag, or another id that begins with it
    options: what stands before the image; `{folder}` is a scratch folder, `{device}` a block device of the host,
        `{bfq}` one that the scheduler bfq serves
    script: what `sh -c` does in the container; its output must match `output` fully (a regular expression)
    inspect, shown: a template for `docker inspect` of the container, and the regular expression that it matches
    refused, status: words on standard error of a run that ends with this status, and runs nothing
    warns: words on standard error of a run that goes on
    book: a file of the container's cgroup as (controller, v1 name, v2 name, value on v1, value on v2)
    needs: the machine's capability (`linux.cgroups.facilities`) without which `otherwise` is what happens
    """

    name: str
    options: tuple[str, ...] = ()
    script: str = "true"
    output: str = ""
    inspect: str = ""
    shown: str = ""
    refused: str = ""
    status: int = 125
    warns: str = ""
    book: tuple[str, str, str, str, str] | None = None
    needs: str = ""
    otherwise: Case | None = None

    @property
    def flag(self) -> str:
        """The flag alone."""
        return self.name.split(" ", 1)[0]

    @property
    def state(self) -> str:
        """`refused`, `discarded` (with a warning) or `obeyed`."""
        if self.refused:
            return "refused"
        return "discarded" if self.warns and not (self.output or self.shown or self.book) else "obeyed"


_BLOCK = "{device}"


def _cgroup(
    name: str, *options: str, book: tuple[str, str, str, str, str], needs: str = "", discarded: str = ""
) -> Case:
    otherwise = Case(name=name, options=options, warns=discarded) if discarded else None
    return Case(name=name, options=options, book=book, script="sleep 600", needs=needs, otherwise=otherwise)


def _throttle(kind: str, value: str, file: str, key: str) -> Case:
    return _cgroup(
        f"--device-{kind}",
        f"--device-{kind}",
        f"{_BLOCK}:{value}",
        book=("blkio", f"blkio.throttle.{file}", "io.max", r"\d+:\d+ 1048576", rf"\d+:\d+ .*{key}=1048576.*"),
    )


def _status(field: str) -> str:
    return f"grep ^{field}: /proc/self/status | tr -s '\\t ' ' '"


CASES: tuple[Case, ...] = (
    Case(name="--add-host", options=("--add-host", "db:192.0.2.9"), script="grep db /etc/hosts", output=r"192.0.2.9\s+db"),
    Case(
        name="--annotation",
        options=("--annotation", "org.example.a=b"),
        inspect="{{json .HostConfig.Annotations}}",
        shown='{"org.example.a":"b"}',
    ),
    Case(name="--attach", options=("-a", "stderr"), script="echo seen; echo unseen >&2", output=""),
    _cgroup(
        "--blkio-weight",
        "--blkio-weight",
        "300",
        book=("blkio", "blkio.bfq.weight", "io.bfq.weight", "300", "default 300"),
        needs="blkio_weight",
        discarded="does not support Block I/O weight",
    ),
    _cgroup(
        "--blkio-weight-device",
        "--blkio-weight-device",
        "{bfq}:300",
        book=("blkio", "blkio.bfq.weight_device", "io.bfq.weight", r"[^$]*\d+:\d+ 300", r"[^$]*\d+:\d+ 300"),
        needs="blkio_weight_device",
        discarded="does not support Block I/O weight_device",
    ),
    Case(name="--cap-add", options=("--cap-add", "NET_ADMIN"), script=_status("CapBnd"), output="CapBnd: 00000000a80435fb"),
    Case(name="--cap-drop", options=("--cap-drop", "ALL"), script=_status("CapBnd"), output="CapBnd: 0000000000000000"),
    Case(
        name="--cgroup-parent",
        options=("--cgroup-parent", "/dray/options-test", "--cgroupns", "host"),
        script="cat /proc/self/cgroup",
        output=r"[^$]*/dray/options-test/[0-9a-f]{64}[^$]*",
    ),
    Case(name="--cgroupns", options=("--cgroupns", "host"), script="cat /proc/self/cgroup", output=r"[^$]*/[0-9a-f]{64}[^$]*"),
    Case(name="--cidfile", options=("--cidfile", "{folder}/id"), inspect="{{.HostConfig.ContainerIDFile}}", shown=".*/id"),
    Case(name="--cpu-count", options=("--cpu-count", "2"), refused="only supported on a Docker daemon running on windows", status=1),
    Case(name="--cpu-percent", options=("--cpu-percent", "2"), refused="only supported on a Docker daemon running on windows", status=1),
    _cgroup(
        "--cpu-period",
        *("--cpu-period", "50000", "--cpu-quota", "25000"),
        book=("cpu", "cpu.cfs_period_us", "cpu.max", "50000", "25000 50000"),
    ),
    _cgroup(
        "--cpu-quota",
        *("--cpu-quota", "25000"),
        book=("cpu", "cpu.cfs_quota_us", "cpu.max", "25000", "25000 100000"),
    ),
    Case(
        name="--cpu-rt-period",
        options=("--cpu-rt-period", "900000"),
        book=("cpu", "cpu.rt_period_us", "", "900000", ""),
        script="sleep 600",
        needs="cpu_realtime",
        otherwise=Case(name="--cpu-rt-period", refused="kernel does not support CPU real-time scheduler"),
    ),
    Case(
        name="--cpu-rt-runtime",
        options=("--cpu-rt-runtime", "1000"),
        refused="cpu.rt_runtime_us",
        needs="cpu_realtime",
        otherwise=Case(name="--cpu-rt-runtime", refused="kernel does not support CPU real-time scheduler"),
    ),
    _cgroup("--cpu-shares", "--cpu-shares", "512", book=("cpu", "cpu.shares", "cpu.weight", "512", "(20|59)")),
    _cgroup("--cpus", "--cpus", "1.5", book=("cpu", "cpu.cfs_quota_us", "cpu.max", "150000", "150000 100000")),
    Case(name="--cpuset-cpus", options=("--cpuset-cpus", "0"), script=_status("Cpus_allowed_list"), output="Cpus_allowed_list: 0"),
    Case(name="--cpuset-mems", options=("--cpuset-mems", "0"), script=_status("Mems_allowed_list"), output="Mems_allowed_list: 0"),
    Case(name="--detach", options=("-d",), script="sleep 600", inspect="{{.State.Status}}", shown="running"),
    Case(name="--device", options=("--device", "/dev/null:/dev/nothing:rw"), script="stat -c %t:%T /dev/nothing", output="1:3"),
    Case(
        name="--device-cgroup-rule",
        options=("--device-cgroup-rule", "c 1:11 rmw", "--cap-add", "MKNOD"),
        script="mknod /tmp/kmsg c 1 11 && echo made",
        output="made",
    ),
    _throttle("read-bps", "1mb", "read_bps_device", "rbps"),
    _throttle("read-iops", "1048576", "read_iops_device", "riops"),
    _throttle("write-bps", "1mb", "write_bps_device", "wbps"),
    _throttle("write-iops", "1048576", "write_iops_device", "wiops"),
    Case(name="--dns", options=("--dns", "192.0.2.53"), script="cat /etc/resolv.conf", output=r"[^$]*192.0.2.53[^$]*"),
    Case(name="--dns-option", options=("--dns-option", "ndots:3"), script="cat /etc/resolv.conf", output=r"[^$]*ndots:3[^$]*"),
    Case(name="--dns-search", options=("--dns-search", "example.org"), script="cat /etc/resolv.conf", output=r"[^$]*search example.org[^$]*"),
    Case(name="--domainname", options=("--domainname", "example.org"), script="cat /proc/sys/kernel/domainname", output="example.org"),
    Case(name="--entrypoint", options=("--entrypoint", "/bin/sh"), inspect="{{json .Config.Entrypoint}}", shown=r'\["/bin/sh"\]'),
    Case(name="--env", options=("-e", "A=b c", "-e", "PATH"), script='echo "$A"', output="b c"),
    Case(name="--env-file", options=("--env-file", "{folder}/env"), script='echo "$ONE/$TWO/$THREE"', output='1/"2" # 3/'),
    Case(name="--expose", options=("--expose", "80-81/udp"), inspect="{{json .Config.ExposedPorts}}", shown='{"80/udp":{},"81/udp":{}}'),
    Case(name="--gpus", options=("--gpus", "all"), refused=r'could not select device driver "" with capabilities: [[gpu]]'),
    Case(name="--group-add", options=("--group-add", "tape", "--group-add", "4711"), script="id -G", output="0 26 4711"),
    Case(
        name="--health-cmd",
        options=("--health-cmd", "exit 3", "--health-interval", "1h"),
        inspect="{{json .Config.Healthcheck.Test}}",
        shown=r'\["CMD-SHELL","exit 3"\]',
    ),
    Case(name="--help", options=("--help",), output=r"[^$]*Usage:  docker run [^$]*"),
    Case(name="--hostname", options=("-h", "box"), script="hostname", output="box"),
    Case(name="--interactive", options=("-i",), script="cat", output="given"),
    Case(name="--io-maxbandwidth", options=("--io-maxbandwidth", "1k"), refused="only supported on a Docker daemon running on windows", status=1),
    Case(name="--io-maxiops", options=("--io-maxiops", "5"), refused="only supported on a Docker daemon running on windows", status=1),
    Case(name="--ipc", options=("--ipc", "none"), script="mount | grep -c /dev/shm; true", output="0"),
    Case(name="--isolation", options=("--isolation", "default"), script="echo ran", output="ran"),
    Case(name="--isolation of Windows", options=("--isolation", "hyperv"), refused="linux only supports 'default'"),
    Case(name="--label", options=("-l", "a=b"), inspect='{{index .Config.Labels "a"}}', shown="b"),
    Case(name="--label-file", options=("--label-file", "{folder}/labels"), inspect="{{json .Config.Labels}}", shown='{"one":"1"}'),
    Case(
        name="--log-driver",
        options=("--log-driver", "none"),
        inspect="{{.HostConfig.LogConfig.Type}}",
        shown="none",
    ),
    Case(name="--log-driver unknown", options=("--log-driver", "nonsense"), refused='error looking up logging plugin nonsense'),
    Case(name="--log-opt", options=("--log-opt", "max-size=1m"), inspect="{{json .HostConfig.LogConfig.Config}}", shown='.*"max-size":"1m".*'),
    Case(name="--mac-address", options=("--mac-address", "92:d0:c6:0a:29:33"), script="cat /sys/class/net/eth0/address", output="92:d0:c6:0a:29:33"),
    _cgroup("--memory", "-m", "64m", book=("memory", "memory.limit_in_bytes", "memory.max", str(64 << 20), str(64 << 20))),
    _cgroup(
        "--memory-reservation",
        *("--memory-reservation", "32m"),
        book=("memory", "memory.soft_limit_in_bytes", "memory.low", str(32 << 20), str(32 << 20)),
    ),
    _cgroup(
        "--memory-swap",
        *("-m", "64m", "--memory-swap", "96m"),
        book=("memory", "memory.memsw.limit_in_bytes", "memory.swap.max", str(96 << 20), str(32 << 20)),
        needs="swap_limit",
        discarded="does not support swap limit",
    ),
    _cgroup(
        "--memory-swappiness",
        *("--memory-swappiness", "13"),
        book=("memory", "memory.swappiness", "", "13", ""),
        needs="memory_swappiness",
        discarded="does not support memory swappiness",
    ),
    Case(
        name="--mount",
        options=("--mount", "type=bind,source={folder},target=/in,readonly"),
        script="touch /in/x 2>/dev/null || ls /in/env",
        output="/in/env",
    ),
    Case(name="--name", options=("--name", "called"), inspect="{{.Name}}", shown="/called"),
    Case(name="--network", options=("--network", "none"), script="ls /sys/class/net", output="lo"),
    Case(name="--no-healthcheck", options=("--no-healthcheck",), inspect="{{json .Config.Healthcheck.Test}}", shown=r'\["NONE"\]'),
    _cgroup(
        "--oom-kill-disable",
        *("--oom-kill-disable", "-m", "64m"),
        book=("memory", "memory.oom_control", "", r"oom_kill_disable 1[^$]*", ""),
        needs="oom_kill_disable",
        discarded="OomKillDisable discarded",
    ),
    Case(name="--oom-score-adj", options=("--oom-score-adj", "500"), script="cat /proc/self/oom_score_adj", output="500"),
    Case(name="--pid", options=("--pid", "host"), script="test $$ -gt 50 && echo many", output="many"),
    _cgroup("--pids-limit", "--pids-limit", "50", book=("pids", "pids.max", "pids.max", "50", "50")),
    Case(name="--platform", options=("--platform", "linux/amd64"), script="echo ran", output="ran"),
    Case(name="--platform of another", options=("--pull", "never", "--platform", "linux/s390x"), refused="does not provide the specified platform (linux/s390x)"),
    Case(name="--privileged", options=("--privileged",), script=_status("Seccomp"), output="Seccomp: 0"),
    Case(name="--pull", options=("--pull", "never"), script="echo ran", output="ran"),
    Case(name="--quiet", options=("--quiet",), script="echo ran", output="ran"),
    Case(name="--read-only", options=("--read-only",), script="touch /x 2>&1 || true", output=".*Read-only file system"),
    Case(name="--rm", options=("--rm",), script="echo gone", output="gone"),
    Case(name="--runtime", options=("--runtime", "runc"), inspect="{{.HostConfig.Runtime}}", shown="runc", script="echo ran", output="ran"),
    Case(name="--runtime unknown", options=("--runtime", "nonsense"), refused="unknown or invalid runtime name: nonsense"),
    Case(name="--security-opt", options=("--security-opt", "no-new-privileges"), script=_status("NoNewPrivs"), output="NoNewPrivs: 1"),
    Case(name="--security-opt seccomp", options=("--security-opt", "seccomp=unconfined"), script=_status("Seccomp"), output="Seccomp: 0"),
    Case(
        name="--security-opt systempaths",
        options=("--security-opt", "systempaths=unconfined"),
        script="mount | grep -c -E ' /proc/(kcore|keys|sys) ' || true",
        output="0",
    ),
    Case(
        name="--security-opt writable-cgroups",
        options=("--security-opt", "writable-cgroups=true"),
        script="mkdir /sys/fs/cgroup/pids/x 2>/dev/null || mkdir /sys/fs/cgroup/x && echo made",
        output="made",
    ),
    Case(name="--security-opt label", options=("--security-opt", "label=type:svirt_t"), warns="SELinux is not in use here"),
    Case(name="--security-opt unknown", options=("--security-opt", "nonsense=1"), refused='invalid --security-opt 2: "nonsense=1"'),
    Case(name="--security-opt credentialspec", options=("--security-opt", "credentialspec=file://x.json"), refused="invalid --security-opt 2"),
    Case(name="--shm-size", options=("--shm-size", "8m"), script="df -k /dev/shm | tail -n 1 | awk '{print $2}'", output="8192"),
    Case(name="--stop-signal", options=("--stop-signal", "SIGUSR1"), inspect="{{.Config.StopSignal}}", shown="SIGUSR1"),
    Case(name="--stop-timeout", options=("--stop-timeout", "7"), inspect="{{.Config.StopTimeout}}", shown="7"),
    Case(name="--storage-opt", options=("--storage-opt", "size=10G"), refused="--storage-opt is supported only for overlay over xfs with 'pquota' mount option"),
    Case(name="--storage-opt unknown", options=("--storage-opt", "nonsense=1"), refused="unknown option nonsense"),
    Case(name="--sysctl", options=("--sysctl", "net.core.somaxconn=99"), script="cat /proc/sys/net/core/somaxconn", output="99"),
    Case(name="--sysctl of the host", options=("--sysctl", "vm.swappiness=3"), refused="sysctl 'vm.swappiness=3' is not allowed"),
    Case(name="--tmpfs", options=("--tmpfs", "/t:size=4m,mode=700"), script="stat -c %a /t; df -k /t | tail -n 1 | awk '{print $2}'", output="700\n4096"),
    Case(name="--tty", options=("-t",), script="test -t 1 && echo terminal", output="terminal\r"),
    Case(name="--ulimit", options=("--ulimit", "nofile=100:200"), script="ulimit -Sn; ulimit -Hn", output="100\n200"),
    Case(name="--use-api-socket", options=("--use-api-socket",), script="test -S /var/run/docker.sock && echo socket", output="socket"),
    Case(name="--user", options=("-u", "app"), script="id -u; id -g", output="1000\n1000"),
    Case(name="--userns", options=("--userns", "host"), script="cat /proc/self/uid_map | tr -s ' '", output=" 0 0 4294967295"),
    Case(name="--uts", options=("--uts", "host"), script='test "$(hostname)" != "" && readlink /proc/self/ns/uts', output="{uts}"),
    Case(name="--volume", options=("-v", "{folder}:/in"), script="ls /in/env", output="/in/env"),
    Case(name="--volume-driver", options=("--volume-driver", "local", "-v", "named:/v"), script="touch /v/x && echo ran", output="ran"),
    Case(name="--workdir", options=("-w", "/made/here"), script="pwd", output="/made/here"),
)  # fmt: skip

ULIMITS = {
    "core": 5, "cpu": 60, "data": 1 << 30, "fsize": 1 << 30, "locks": 9, "memlock": 65536, "msgqueue": 4096, "nice": 0,
    "nofile": 100, "nproc": 5000, "rss": 1 << 30, "rtprio": 0, "rttime": 500000, "sigpending": 77, "stack": 1 << 22,
}  # fmt: skip
