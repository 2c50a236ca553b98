"""The built-in runtime against a real kernel: what a container sees, and what is left of it."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dray.base.errors import Conflict, Internal, InvalidParameter, NotFound, StartError
from dray.linux import cgroups, libc
from dray.runtime.lifecycle import BuiltinRuntime
from dray.runtime.model import CreateRequest
from kernel.runtime_bundle import CGROUP, Box, docker_spec, drain, make_root, mount_entry, reap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("root"))


@pytest.fixture
def box(root: Path, tmp_path: Path) -> Iterator[Box]:
    """A bundle; afterwards no mount, descriptor or cgroup may be left."""
    fds_before = set(os.listdir("/proc/self/fd"))
    box = Box(root, tmp_path)
    yield box
    box.close()
    cgroups.prune(CGROUP)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert len(os.listdir("/proc/self/fd")) == len(fds_before)
    memory = cgroups.load(f"{CGROUP}/x", "x").paths
    for directory in memory.values():
        assert not os.path.exists(os.path.dirname(directory))


def open_to_all(path: Path) -> None:
    """Let mapped users through to a directory below pytest's private ones."""
    for directory in (path, *path.parents):
        if directory.stat().st_mode & 0o011 == 0 and "pytest" in str(directory):
            directory.chmod(0o711)


def process(box_spec: dict[str, Any], *args: str, **fields: Any) -> dict[str, Any]:
    return {**box_spec["process"], "args": list(args), **fields}


def test_a_program_runs_and_its_exit_code_is_kept(box: Box) -> None:
    ended = box.run(docker_spec("sh", "-c", "echo out; echo err >&2; exit 7"))
    assert (ended.output, ended.code) == ("out\nerr\n", 7)


def test_namespaces_are_the_containers_own(box: Box) -> None:
    kinds = ("mnt", "net", "uts", "pid", "ipc")
    script = f"for k in {' '.join(kinds)}; do readlink /proc/self/ns/$k; done; hostname; cat /proc/1/comm; true"
    lines = box.run(docker_spec("sh", "-c", script)).output.split()
    for kind, link in zip(kinds, lines, strict=False):
        assert link != os.readlink(f"/proc/self/ns/{kind}")
    assert lines[5:] == ["box", "sh"]


def test_devices_and_links(box: Box) -> None:
    output = box.run(
        docker_spec("sh", "-c", "stat -c '%n %t:%T %a' /dev/null /dev/tty; readlink /dev/fd; readlink /dev/ptmx")
    ).output
    assert output.split("\n")[:4] == ["/dev/null 1:3 666", "/dev/tty 5:0 666", "/proc/self/fd", "pts/ptmx"]


def test_extra_device(box: Box) -> None:
    spec = docker_spec("stat", "-c", "%t:%T %a %u", "/dev/extra")
    spec["linux"]["devices"] = [
        {"path": "/dev/extra", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 0}
    ]
    assert box.run(spec).output == "1:5 640 7\n"


def test_masked_and_readonly_paths(box: Box) -> None:
    spec = docker_spec(
        "sh", "-c", "cat /proc/interrupts | wc -c; ls /sys/firmware | wc -l; echo x > /proc/sys/vm/swappiness"
    )
    ended = box.run(spec)
    assert ended.output.split("\n")[:2] == ["0", "0"]
    assert "Read-only file system" in ended.output


def test_readonly_root(box: Box) -> None:
    spec = docker_spec("touch", "/file")
    spec["root"]["readonly"] = True
    assert "Read-only file system" in box.run(spec).output


def test_user_groups_home_and_umask(box: Box) -> None:
    spec = docker_spec(
        "sh", "-c", "id -u; id -G; echo $HOME; umask; echo written > /dev/stdout; grep CapEff /proc/self/status"
    )
    spec["process"]["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [5, 6], "umask": 0o27}
    lines = box.run(spec).output.split("\n")
    assert lines[:5] == ["1000", "1000 5 6", "/home/ada", "0027", "written"]
    assert lines[5].split()[1] == "0" * 16


def test_working_directory_is_made(box: Box) -> None:
    spec = docker_spec("sh", "-c", "pwd; stat -c %u:%a .")
    spec["process"]["cwd"] = "/made/below"
    assert box.run(spec).output == "/made/below\n0:755\n"


def test_no_new_privileges(box: Box) -> None:
    spec = docker_spec("grep", "NoNewPrivs", "/proc/self/status")
    spec["process"]["noNewPrivileges"] = True
    assert box.run(spec).output.split() == ["NoNewPrivs:", "1"]


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_seccomp_filter_is_in_force(box: Box, no_new_privileges: bool) -> None:
    spec = docker_spec("sh", "-c", "grep Seccomp: /proc/self/status; mkdir /forbidden")
    spec["process"]["noNewPrivileges"] = no_new_privileges
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
    }
    output = box.run(spec).output
    assert output.startswith("Seccomp:\t2\n")
    assert "Function not implemented" in output


def test_capabilities_are_exact(box: Box) -> None:
    spec = docker_spec("grep", "Cap", "/proc/self/status")
    sets = {"bounding": 1, "effective": 1, "permitted": 1, "inheritable": 1, "ambient": 1}
    spec["process"]["capabilities"] = {kind: ["CAP_KILL"] for kind in sets}
    values = {line.split()[0]: line.split()[1] for line in box.run(spec).output.splitlines()}
    assert set(values.values()) == {f"{1 << 5:016x}"}
    spec = docker_spec("grep", "CapInh", "/proc/self/status")
    assert box.run(spec).output.split()[1] == "0" * 16


def test_a_capability_that_the_runtime_lacks_is_named(box: Box) -> None:
    lacking = [name for name in ("CAP_SYS_RESOURCE",) if name in _missing()]
    if not lacking:
        pytest.skip("this machine grants every capability")
    spec = docker_spec("true")
    spec["process"]["capabilities"]["permitted"] += lacking
    with pytest.raises(StartError, match="CAP_SYS_RESOURCE"):
        box.run(spec)


def _missing() -> list[str]:
    from dray.linux import privileges

    return privileges.missing((1 << len(privileges.CAPABILITIES)) - 1)


def test_rlimits(box: Box) -> None:
    spec = docker_spec("sh", "-c", "ulimit -n; ulimit -Hn")
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    assert box.run(spec).output == "100\n200\n"


def test_signals_are_as_a_program_expects(box: Box) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        output = box.run(docker_spec("grep", "-E", "SigBlk|SigIgn", "/proc/self/status")).output
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    assert [line.split()[1] for line in output.splitlines()] == ["0" * 16] * 2


def test_sysctl(box: Box) -> None:
    spec = docker_spec("cat", "/proc/sys/kernel/shmmax", "/proc/sys/net/ipv4/ip_forward")
    spec["linux"]["sysctl"] = {"kernel.shmmax": "4096", "net.ipv4.ip_forward": "1"}
    assert box.run(spec).output == "4096\n1\n"


def test_mounts(box: Box, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_text("from the host\n")
    spec = docker_spec(
        "sh", "-c", "cat /deep/in/file /etc/one; touch /deep/in/x; touch /etc/one && echo wrote; ls /up"
    )
    spec["mounts"] += [
        mount_entry("/deep/in", "bind", str(volume), "rbind", "ro", "rprivate"),
        mount_entry("/etc/one", "bind", str(volume / "file"), "bind", "rw"),
        mount_entry("/up", "tmpfs", "tmpfs", "rw", "rprivate", "size=1m"),
    ]
    output = box.run(spec).output
    assert output.count("from the host") == 2
    assert "/deep/in/x: Read-only file system" in output
    assert "wrote" in output


def test_recursive_readonly_reaches_submounts(box: Box, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    (outer / "inner").mkdir(parents=True)
    pid, pidfd = libc.clone3(libc.CLONE_NEWNS)
    if pid == 0:  # the submount exists in a mount namespace of its own only
        try:
            libc.mount("", "/", "", libc.MS_PRIVATE | libc.MS_REC)
            libc.mount("tmpfs", outer / "inner", "tmpfs")
            outputs = []
            for word in ("ro", "rro"):
                spec = docker_spec("sh", "-c", "touch /v/inner/x && echo wrote || echo refused")
                spec["mounts"].append(mount_entry("/v", "bind", str(outer), "rbind", word))
                outputs.append(Box(box.lower, tmp_path, BuiltinRuntime()).run(spec).output.split()[-1])
            os._exit(0 if outputs == ["wrote", "refused"] else 3)
        except BaseException:
            os._exit(4)
    os.close(pidfd)
    assert reap(pid) == 0


def test_tmpfs_copy_up(box: Box) -> None:
    spec = docker_spec("sh", "-c", "cat /etc/passwd | wc -l; touch /etc/x")
    spec["mounts"].append(mount_entry("/etc", "tmpfs", "tmpfs", "ro", "tmpcopyup"))
    output = box.run(spec).output
    assert output.startswith("2\n")
    assert "Read-only" in output


def test_a_missing_source_is_named(box: Box) -> None:
    spec = docker_spec("true")
    spec["mounts"].append(mount_entry("/x", "bind", "/nonexistent-source", "rbind"))
    with pytest.raises(Exception, match="/nonexistent-source"):
        box.run(spec)


@pytest.mark.parametrize(
    ("program", "message", "code"),
    [
        ("nosuch", 'exec: "nosuch": executable file not found in $PATH', 127),
        ("/nosuch", 'exec: "/nosuch": stat /nosuch: no such file or directory', 127),
        ("/etc", 'exec: "/etc": is a directory', 126),
        ("/etc/passwd", 'exec: "/etc/passwd": permission denied', 126),
    ],
)
def test_a_program_that_cannot_run(box: Box, program: str, message: str, code: int) -> None:
    with pytest.raises(StartError) as caught:
        box.run(docker_spec(program))
    assert (str(caught.value), caught.value.exit_code) == (message, code)


def test_execve_itself_fails(box: Box) -> None:
    script = box.bundle / "garbage"
    script.write_bytes(b"not a program")
    script.chmod(0o755)
    spec = docker_spec("/garbage")
    spec["mounts"].append(mount_entry("/garbage", "bind", str(script), "bind"))
    with pytest.raises(StartError, match="exec format error") as caught:
        box.run(spec)
    assert caught.value.exit_code == 126


def test_terminal(box: Box) -> None:
    spec = docker_spec("sh", "-c", "tty; stty size; stat -c %t /dev/console; test -t 0 && echo yes")
    spec["process"]["terminal"] = True
    id, started = box.create(spec, console_size=(11, 22))
    assert started.console is not None
    box.runtime.start(id)
    assert drain(started.console).split() == ["/dev/pts/0", "11", "22", "88", "yes"]
    os.close(started.console)
    assert reap(box.live.pop(id)) == 0
    box.runtime.delete(id)


def test_exec(box: Box) -> None:
    spec = docker_spec("sleep", "100")
    id, started = box.create(spec)
    box.runtime.start(id)
    ended = box.exec(
        id, process(spec, "sh", "-c", "id -u; readlink /proc/self/ns/pid; grep CapInh /proc/self/status")
    )
    lines = ended.output.split("\n")
    assert lines[0] == "0"
    assert lines[1] == os.readlink(f"/proc/{started.pid}/ns/pid")
    assert lines[2].split()[1] == "0" * 16
    assert os.readlink("/proc/self/ns/pid_for_children") == os.readlink("/proc/self/ns/pid")
    assert box.exec(id, process(spec, "sh", "-c", "exit 9")).code == 9
    with pytest.raises(StartError) as caught:
        box.exec(id, process(spec, "nosuch"))
    assert caught.value.exit_code == 127
    cgroup = box.exec(
        id, process(spec, "sh", "-c", "cat /proc/self/cgroup; cat /proc/1/cgroup")
    ).output.splitlines()
    assert cgroup[: len(cgroup) // 2] == cgroup[len(cgroup) // 2 :]
    assert box.end(id) == 137
    with pytest.raises(NotFound):
        box.exec(id, process(spec, "true"))


def test_exec_with_a_terminal(box: Box) -> None:
    from dray.runtime.model import ExecRequest

    spec = docker_spec("sleep", "100")
    id, _ = box.create(spec)
    box.runtime.start(id)
    request = ExecRequest(id, process(spec, "sh", "-c", "tty; stty size", terminal=True), console_size=(5, 6))
    started = box.runtime.exec(request)
    assert drain(started.console).split() == ["/dev/pts/0", "5", "6"]
    os.close(started.console)
    assert reap(started.pid) == 0
    box.end(id)


def test_pause_pids_and_states(box: Box) -> None:
    id, started = box.create(docker_spec("sleep", "100"))
    assert box.runtime.state(id)["status"] == "created"
    box.runtime.start(id)
    with pytest.raises(Conflict):
        box.runtime.start(id)
    assert box.runtime.pids(id) == [started.pid]
    box.runtime.pause(id)
    assert box.runtime.state(id)["status"] == "paused"
    box.runtime.resume(id)
    assert box.runtime.state(id)["status"] == "running"
    with pytest.raises(Conflict, match="not stopped"):
        box.runtime.delete(id)
    box.runtime.kill(id, signal.SIGKILL)
    assert reap(box.live.pop(id)) == 137
    assert box.runtime.state(id)["status"] == "stopped"
    box.runtime.delete(id)


def test_delete_before_start(box: Box) -> None:
    id, _ = box.create(docker_spec("true"))
    box.runtime.delete(id)
    assert reap(box.live.pop(id)) == 137


def test_init_dies_with_its_shim(box: Box) -> None:
    read, write = os.pipe()
    shim = os.fork()
    if shim == 0:
        try:
            id, started = box.create(docker_spec("sleep", "100"))
            box.runtime.start(id)
            os.write(write, f"{started.pid} {id}".encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    init, name = os.read(read, 200).decode().split()
    os.close(read)
    pidfd = libc.pidfd_open(int(init))
    os.kill(shim, signal.SIGKILL)
    os.waitpid(shim, 0)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(10_000), "init outlived the process that made it"
    os.close(pidfd)
    assert name.startswith("dray-test-")
    cgroups.load(f"{CGROUP}/{name}", name).delete()


def test_join_a_network_namespace_by_descriptor(box: Box) -> None:
    pid, pidfd = libc.clone3(libc.CLONE_NEWNET)
    if pid == 0:
        signal.pause()
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        output = box.run(docker_spec("readlink", "/proc/self/ns/net"), namespace_fds={"network": fd}).output
        assert output.strip() == os.readlink(f"/proc/self/fd/{fd}")
        os.close(fd)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)


def test_share_namespaces_of_another_container(box: Box) -> None:
    first, started = box.create(docker_spec("sleep", "100"))
    box.runtime.start(first)
    spec = docker_spec("sh", "-c", "readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc; cat /proc/1/comm")
    for entry in spec["linux"]["namespaces"]:
        if entry["type"] in ("pid", "ipc"):
            entry["path"] = f"/proc/{started.pid}/ns/{entry['type']}"
    other = box.bundle / "other"
    other.mkdir()
    second = Box(box.lower, other)
    output = second.run(spec).output.split()
    assert output == [os.readlink(f"/proc/{started.pid}/ns/{kind}") for kind in ("pid", "ipc")] + ["sleep"]
    box.end(first)


def test_time_namespace_with_offset(box: Box) -> None:
    if not os.path.exists("/proc/self/ns/time"):
        pytest.skip("this kernel has no time namespaces")
    spec = docker_spec("cat", "/proc/uptime")
    spec["linux"]["namespaces"].append({"type": "time"})
    spec["linux"]["timeOffsets"] = {"boottime": {"secs": 500_000}}
    assert float(box.run(spec).output.split()[0]) > 500_000


def test_cgroup_namespace(box: Box) -> None:
    spec = docker_spec("sh", "-c", "cat /proc/self/cgroup; ls /sys/fs/cgroup")
    spec["linux"]["namespaces"].append({"type": "cgroup"})
    lines = box.run(spec).output.splitlines()
    assert all(line.endswith(":/") for line in lines if ":" in line)


def test_user_namespace(box: Box, tmp_path: Path) -> None:
    open_to_all(tmp_path)
    open_to_all(box.lower)
    spec = docker_spec(
        "sh", "-c", "id -u; cat /proc/self/uid_map; stat -c %t:%T /dev/null; echo ok > /dev/null && echo wrote"
    )
    spec["linux"]["namespaces"].append({"type": "user"})
    mapping = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = mapping
    assert box.run(spec).output.split() == ["0", "0", "100000", "65536", "1:3", "wrote"]


def test_exec_into_a_user_namespace(box: Box, tmp_path: Path) -> None:
    open_to_all(tmp_path)
    open_to_all(box.lower)
    spec = docker_spec("sleep", "100")
    spec["linux"]["namespaces"].append({"type": "user"})
    mapping = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = mapping
    id, started = box.create(spec)
    box.runtime.start(id)
    output = box.exec(id, process(spec, "sh", "-c", "id -u; readlink /proc/self/ns/user")).output.split()
    assert output == ["0", os.readlink(f"/proc/{started.pid}/ns/user")]
    box.end(id)


def test_hooks_run_in_order_and_a_failing_one_undoes_the_container(box: Box, tmp_path: Path) -> None:
    record = tmp_path / "record"

    def hook(kind: str) -> dict[str, Any]:
        return {"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind} >> {record}; cat > {tmp_path}/{kind}.json"]}

    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    spec = docker_spec("true")
    spec["hooks"] = {kind: [hook(kind)] for kind in kinds}
    spec["hooks"]["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", "echo in-container > /started"]}]
    box.run(spec)
    assert record.read_text().split() == list(kinds)
    assert (box.bundle / "upper/started").read_text() == "in-container\n"
    assert '"status":"creating"' in (tmp_path / "prestart.json").read_text()
    spec["hooks"] = {"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", "echo no; exit 3"]}]}
    with pytest.raises(StartError, match="exit status 3, output: no"):
        box.run(spec)


def children() -> set[str]:
    """This process's children, ended ones included: other tests' may be among them."""
    tasks = Path("/proc/self/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}


def test_a_failed_create_leaves_nothing(box: Box) -> None:
    before = children()
    with pytest.raises(InvalidParameter):
        box.create({**docker_spec("true"), "root": None})
    spec = docker_spec("true")
    spec["process"]["cwd"] = "/etc/passwd"
    with pytest.raises((StartError, Exception)):
        box.create(spec)
    assert children() <= before


def test_a_cgroup_that_is_taken_is_refused_and_left_alone(box: Box) -> None:
    id, started = box.create(docker_spec("sleep", "100"))
    box.runtime.start(id)
    spec = docker_spec("true")
    spec["linux"]["cgroupsPath"] = f"{CGROUP}/{id}"
    for document in (spec, msgspec.json.encode(spec)):
        with pytest.raises(Conflict, match="not empty"):
            BuiltinRuntime().create(CreateRequest(f"{id}-second", box.bundle, document, box.rootfs()))
    assert box.runtime.pids(id) == [started.pid]


def test_a_create_that_fails_late_removes_the_cgroup_that_init_made(box: Box) -> None:
    spec = docker_spec("true")
    spec["mounts"].append(mount_entry("/x", "bind", "/nonexistent-source", "rbind"))
    id = f"dray-test-{os.getpid()}-late"
    spec["linux"]["cgroupsPath"] = f"{CGROUP}/{id}"
    with pytest.raises(Internal, match="/nonexistent-source"):
        box.runtime.create(CreateRequest(id, box.bundle, msgspec.json.encode(spec), box.rootfs()))
    paths = cgroups.load(f"{CGROUP}/{id}", id).paths.values()
    assert not any(os.path.exists(path) for path in paths)
