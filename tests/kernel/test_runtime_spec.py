"""Fields of runtime-spec 1.3 that no engine's container has by default, each seen to be in force."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from dray.base.errors import DrayError, InvalidParameter, StartError, Unsupported
from dray.linux import cgroups, libc
from dray.runtime.model import ExecRequest, Stdio
from kernel.runtime_bundle import CGROUP, Box, docker_spec, drain, make_root, mount_entry, pipe, reap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_root(tmp_path_factory.mktemp("root"))
    (directory / "data").mkdir()
    for applet in ("taskset", "ionice", "nice", "ip", "uname", "cut", "chrt"):
        (directory / "bin" / applet).symlink_to("busybox")
    return directory


@pytest.fixture
def box(root: Path, tmp_path: Path) -> Iterator[Box]:
    before = len(os.listdir("/proc/self/fd"))
    box = Box(root, tmp_path)
    yield box
    box.close()
    cgroups.prune(CGROUP)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert len(os.listdir("/proc/self/fd")) == before


# --- how it is run --------------------------------------------------------------------------------------------


def test_scheduler_and_io_priority(box: Box) -> None:
    spec = docker_spec("sh", "-c", "cut -d' ' -f19,41 /proc/self/stat; ionice -p $$")
    spec["process"]["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    spec["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 6}
    assert box.run(spec).output.split("\n")[:2] == ["7 3", "best-effort: prio 6"]
    spec["process"]["scheduler"] = {"policy": "SCHED_DEADLINE", "runtime": 5, "deadline": 1}
    with pytest.raises(StartError, match=r"process\.scheduler"):
        box.run(spec)


def test_affinity_of_an_exec(box: Box) -> None:
    cpu = max(os.sched_getaffinity(0))
    spec = docker_spec("sleep", "100")
    id, _ = box.create(spec)
    box.runtime.start(id)
    process = {**spec["process"], "args": ["grep", "Cpus_allowed_list", "/proc/self/status"]}
    process["execCPUAffinity"] = {"initial": "0", "final": str(cpu)}
    assert box.exec(id, process).output.split() == ["Cpus_allowed_list:", str(cpu)]
    process["execCPUAffinity"] = {"final": "7999"}
    with pytest.raises(StartError, match=r"execCPUAffinity\.final"):
        box.exec(id, process)
    box.end(id)


def test_memory_policy(box: Box) -> None:
    spec = docker_spec("sh", "-c", "grep stack /proc/self/numa_maps | cut -d' ' -f2")
    spec["linux"]["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0"}
    if not Path("/proc/self/numa_maps").exists():
        with pytest.raises(StartError, match=r"linux\.memoryPolicy"):
            box.run(spec)
        pytest.skip("this kernel has no NUMA: the policy is refused")
    assert box.run(spec).output.strip() == "bind:0"


def test_personality(box: Box) -> None:
    spec = docker_spec("uname", "-m")
    spec["linux"]["personality"] = {"domain": "LINUX32"}
    assert box.run(spec).output.strip() in ("i686", "armv8l", "armv7l")


def test_names_of_the_host(box: Box) -> None:
    spec = docker_spec("cat", "/proc/sys/kernel/domainname")
    spec["domainname"] = "example.org"
    assert box.run(spec).output == "example.org\n"


def test_resctrl_is_refused_by_name(box: Box) -> None:
    spec = docker_spec("true")
    spec["linux"]["intelRdt"] = {"closID": "x"}
    with pytest.raises(Unsupported, match=r"linux\.intelRdt"):
        box.run(spec)


def test_limits_of_another_user(box: Box) -> None:
    """Without CAP_SYS_RESOURCE nobody may set another user's limits: the process lowers its own."""
    spec = docker_spec("sh", "-c", "ulimit -n; ulimit -H -n")
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60}]
    assert box.run(spec).output.split() == ["50", "60"]


# --- mounts ---------------------------------------------------------------------------------------------------


def mapping(inside: int, outside: int, size: int = 1) -> dict[str, list[dict[str, int]]]:
    entries = [{"containerID": inside, "hostID": outside, "size": size}]
    return {"uidMappings": entries, "gidMappings": entries}


def test_an_id_mapped_mount(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    for path in (source, source / "file"):
        os.chown(path, 1234, 1234)
    spec = docker_spec("sh", "-c", "stat -c '%u %g' /data/file; touch /data/new")
    spec["mounts"].append({**mount_entry("/data", "bind", str(source), "rbind"), **mapping(1234, 0)})
    ended = box.run(spec)
    assert ended.output.splitlines()[0] == "0 0"
    status = (source / "new").stat()
    assert (status.st_uid, status.st_gid) == (1234, 1234)


def test_an_id_mapped_mount_in_a_user_namespace(box: Box, tmp_path: Path) -> None:
    """`idmap` without mappings takes those of the container: what root owns outside, its root owns inside."""
    for directory in (box.lower, *box.lower.parents, *tmp_path.parents, tmp_path):
        if directory.stat().st_mode & 0o011 == 0 and "pytest" in str(directory):
            directory.chmod(0o711)
    source = tmp_path / "source"
    source.mkdir()
    spec = docker_spec("sh", "-c", "stat -c %u /data; touch /data/new")
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"].update(mapping(0, 100_000, 65_536))
    spec["mounts"].append(mount_entry("/data", "bind", str(source), "rbind", "idmap"))
    assert box.run(spec).output == "0\n"
    assert (source / "new").stat().st_uid == 0


def test_an_id_mapped_mount_where_the_file_system_cannot(box: Box) -> None:
    spec = docker_spec("true")
    spec["mounts"].append({**mount_entry("/data", "bind", "/proc", "bind"), **mapping(0, 1)})
    with pytest.raises(Unsupported, match="cannot have its ids mapped"):
        box.run(spec)


def test_a_shared_root_and_a_slave_mount(box: Box, tmp_path: Path) -> None:
    """What is mounted on the host later appears below a slave mount."""
    outside = tmp_path / "outside"
    outside.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(outside)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(outside)], check=True)
        (outside / "late").mkdir()
        spec = docker_spec("sleep", "100")
        spec["linux"]["rootfsPropagation"] = "rslave"
        spec["mounts"].append(mount_entry("/data", "bind", str(outside), "rbind", "rslave"))
        id, _ = box.create(spec)
        box.runtime.start(id)
        subprocess.run(["mount", "-t", "tmpfs", "none", str(outside / "late")], check=True)
        (outside / "late/seen").touch()
        assert box.exec(id, {**spec["process"], "args": ["ls", "/data/late"]}).output == "seen\n"
        box.end(id)
    finally:
        subprocess.run(["umount", "-R", str(outside)], check=True)


# --- the network's interfaces ---------------------------------------------------------------------------------


def test_an_interface_becomes_the_containers(box: Box) -> None:
    pid = os.fork()
    if pid == 0:  # a network namespace of its own, to take interfaces from
        code = 1
        try:
            libc.unshare(libc.CLONE_NEWNET)
            code = _give_interface(box)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    assert reap(pid) == 0


def _give_interface(box: Box) -> int:
    for line in (
        "link add give type veth peer name peer",
        "addr add 198.51.100.7/24 dev give",
        "link set peer up",
        "link set give up",
    ):
        subprocess.run(["ip", *line.split()], check=True)
    spec = docker_spec("ip", "-o", "addr", "show", "dev", "eth7")
    spec["linux"]["netDevices"] = {"give": {"name": "eth7"}}
    output = box.run(spec).output
    assert "inet 198.51.100.7/24" in output, output
    assert subprocess.run(["ip", "link", "show", "give"], capture_output=True, check=False).returncode
    with pytest.raises(InvalidParameter, match="'give'"):
        box.run(spec)
    return 0


# --- seccomp --------------------------------------------------------------------------------------------------

_RECV, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND (linux/seccomp.h)


# Answers each call it is told of with EXDEV, one process a filter; writes each state to its output.
_AGENT = f"""
import fcntl, os, socket, struct, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(2)
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    data, (fd,), _, _ = socket.recv_fds(connection, 1 << 16, 1)
    print(data.decode(), flush=True)
    connection.close()
    if os.fork() == 0:
        while True:
            try:
                note = bytearray(80)
                fcntl.ioctl(fd, {_RECV}, note)
                number, = struct.unpack_from("=Q", note)
                fcntl.ioctl(fd, {_SEND}, bytearray(struct.pack("=QqiI", number, 0, -18, 0)))
            except OSError:  # ENOENT: nobody is left under the filter
                os._exit(0)
    os.close(fd)
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[tuple[IO[str], Path]]:
    path = tmp_path / "agent"
    command = [sys.executable, "-c", _AGENT, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.stdout, path
        process.kill()


def filtered(path: Path) -> dict[str, Any]:
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(path),
        "listenerMetadata": "words",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    }


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_an_agent_decides_about_calls(box: Box, agent: tuple[IO[str], Path], no_new_privileges: bool) -> None:
    told, path = agent
    spec = docker_spec("sh", "-c", "mkdir /new; ls /new; ls -l /proc/self/fd | grep -c seccomp; exec sleep 100")
    spec["process"]["noNewPrivileges"] = no_new_privileges
    spec["linux"]["seccomp"] = filtered(path)
    with pipe() as (read, write):
        id, started = box.create(spec, stdio=Stdio(-1, write.fd, write.fd))
        box.runtime.start(id)
        write.close()
        output = b""
        while not output.endswith(b"\n0\n") and (part := os.read(read.fd, 4096)):
            output += part
        assert b"Invalid cross-device link" in output
        with pipe() as (said, says):
            process = {**spec["process"], "args": ["mkdir", "/other"]}
            order = ExecRequest(id, process, spec["linux"]["seccomp"], Stdio(-1, says.fd, says.fd))
            second = box.runtime.exec(order)
            says.close()
            assert "cross-device" in drain(said.fd)
            reap(second.pid)
        box.end(id)
    states = [json.loads(told.readline()) for _ in range(2)]
    assert [state["pid"] for state in states] == [started.pid, second.pid]
    assert (states[0]["metadata"], states[0]["fds"]) == ("words", ["seccompFd"])
    assert states[0]["state"]["id"] == id


def test_no_program_runs_without_its_agent(box: Box, tmp_path: Path) -> None:
    spec = docker_spec("sh", "-c", "echo ran > /ran")
    spec["linux"]["seccomp"] = filtered(tmp_path / "nobody")
    with pytest.raises(StartError, match="seccomp agent"):
        box.run(spec)
    assert not (box.bundle / "upper/ran").exists()


# --- hooks ----------------------------------------------------------------------------------------------------


def shell(script: str, **fields: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **fields}


def test_hooks_are_where_and_when_the_specification_says(box: Box, tmp_path: Path) -> None:
    """Each writes the status it was told, and which mount and network namespaces it is in."""
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    script = f"echo $KIND $(cat) $(readlink /proc/self/ns/mnt /proc/self/ns/net) >> {tmp_path}/told"
    spec = docker_spec("sleep", "100")
    spec["annotations"] = {"some": "annotation"}
    spec["hooks"] = {kind: [shell(script, env=[f"KIND={kind}", "PATH=/bin:/usr/bin"])] for kind in kinds}
    inside = 'read line; echo "$line" > /told; readlink /proc/self/ns/mnt >> /told'
    spec["hooks"]["startContainer"] = [shell(inside, env=["PATH=/bin"])]
    id, started = box.create(spec)
    assert not (box.bundle / "upper/told").exists()
    box.runtime.start(id)
    namespaces = [os.readlink(f"/proc/{started.pid}/ns/{kind}") for kind in ("mnt", "net")]
    here = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net")]
    box.end(id)
    told = {}
    for line in (tmp_path / "told").read_text().splitlines():
        kind, rest = line.split(" ", 1)
        state, mount, network = rest.rsplit(" ", 2)
        told[kind] = (json.loads(state), [mount, network])
    assert [told[kind][0]["status"] for kind in kinds] == ["creating"] * 3 + ["running", "stopped"]
    assert [told[kind][1] == here for kind in kinds] == [True, True, False, True, True]
    assert told["createContainer"][1] == namespaces
    assert told["createRuntime"][0]["pid"] == started.pid
    assert told["prestart"][0]["annotations"] == {"some": "annotation"}
    first, second = (box.bundle / "upper/told").read_text().splitlines()
    assert (json.loads(first)["status"], second) == ("created", namespaces[0])


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"])
def test_a_hook_that_fails_ends_the_container(box: Box, kind: str) -> None:
    spec = docker_spec("sleep", "100")
    spec["hooks"] = {kind: [shell("echo reason; exit 3")]}
    with pytest.raises(StartError, match="exit status 3, output: reason"):
        box.run(spec)


def test_a_poststop_hook_that_fails_only_warns(
    box: Box, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = docker_spec("true")
    spec["hooks"] = {"poststop": [shell("exit 3"), shell(f"echo ran > {tmp_path}/second")]}
    assert box.run(spec).code == 0
    assert (tmp_path / "second").exists()
    assert "exit status 3" in capfd.readouterr().err


def test_a_hook_that_takes_too_long_is_killed(box: Box) -> None:
    spec = docker_spec("true")
    spec["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]}
    begun = time.monotonic()
    with pytest.raises(StartError, match="timed out after 1 s"):
        box.run(spec)
    assert time.monotonic() - begun < 60


def test_unknown_kinds_of_namespace_and_hook_paths(box: Box) -> None:
    spec = docker_spec("true")
    spec["hooks"] = {"prestart": [{"path": "relative"}]}
    with pytest.raises(DrayError, match=r"hooks\.prestart"):
        box.run(spec)


# --- what a person is told ------------------------------------------------------------------------------------


def test_mounts_that_cannot_be_are_explained(box: Box, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    for source, target, words in (
        ("file", "/etc", "a file cannot be mounted on a directory"),
        ("directory", "/etc/passwd", "a directory cannot be mounted on a file"),
        ("missing", "/etc", "No such file or directory"),
    ):
        spec = docker_spec("true")
        spec["mounts"].append(mount_entry(target, "bind", str(tmp_path / source), "rbind"))
        with pytest.raises(DrayError, match=words) as caught:
            box.run(spec)
        assert "Errno" not in str(caught.value)
        assert "rootfs at " in str(caught.value)
        assert target in str(caught.value)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_proc_of_the_image_that_is_no_directory_is_explained(tmp_path: Path, kind: str) -> None:
    (tmp_path / "bundle").mkdir()
    box = Box(make_root(tmp_path / "image"), tmp_path / "bundle")
    (box.lower / "proc").rmdir()
    if kind == "link":
        (box.lower / "proc").symlink_to("/etc")
    else:
        (box.lower / "proc").touch()
    with pytest.raises(DrayError, match=f"/proc of the image is a {kind}"):
        box.run(docker_spec("true"))
    box.close()
    cgroups.prune(CGROUP)


@pytest.mark.parametrize("where", ["args", "env"])
def test_too_long_an_argument(box: Box, where: str) -> None:
    spec = docker_spec("sleep", "100")
    process = {**spec["process"], "args": ["/bin/true"]}
    process[where] = [*process[where], "X=" + "x" * 140_000]
    id, _ = box.create(spec)
    box.runtime.start(id)
    with pytest.raises(StartError, match='exec: "/bin/true": argument list too long') as caught:
        box.exec(id, process)
    assert caught.value.exit_code == 126
    box.end(id)
    with pytest.raises(StartError, match="argument list too long"):
        box.run({**spec, "process": process})
