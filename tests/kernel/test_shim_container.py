"""The whole chain with the built-in runtime: zygote, shim, init, a program in its namespaces."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import uuid
from pathlib import Path

import pytest

from dray.base.errors import StartError, Unavailable
from dray.shim.model import AttachRequest, ExecCreate, LogSpec, TaskCreate
from dray.shim.tasks import Zygote
from shim_harness import Bench, read_all, read_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# Where runc makes a cgroup of its own on a machine with v1 controllers.
UNIFIED = [Path("/sys/fs/cgroup/unified/shimtest"), Path("/sys/fs/cgroup/shimtest")]

BUSYBOX = shutil.which("busybox") or "/bin/busybox"


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory):
    root = tmp_path_factory.mktemp("rootfs")
    for name in ("bin", "proc", "dev", "sys", "tmp", "etc"):
        (root / name).mkdir()
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in ("sh", "cat", "echo", "sleep", "true", "stty", "head", "ps", "dd", "tail"):
        os.link(root / "bin/busybox", root / "bin" / name)
    return root


class Containers(Bench):
    def __init__(self, root, zygote, rootfs):
        super().__init__(root, zygote)
        self.rootfs = rootfs

    def container(self, *args, resources=None, **options) -> TaskCreate:
        identity = "shimtest" + uuid.uuid4().hex[:16]
        run_dir, state_dir = self.root / identity / "run", self.root / identity / "state"
        run_dir.mkdir(parents=True)
        state_dir.mkdir()
        (run_dir / "config.json").write_text(
            json.dumps(
                {
                    "ociVersion": "1.2.0",
                    "process": {
                        "args": list(args),
                        "env": ["PATH=/bin"],
                        "cwd": "/",
                        "user": {"uid": 0, "gid": 0},
                        "terminal": options.get("tty", False),
                    },
                    "root": {"path": str(self.rootfs)},
                    "mounts": [
                        {"destination": "/proc", "type": "proc", "source": "proc"},
                        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                        {
                            "destination": "/dev/pts",
                            "type": "devpts",
                            "source": "devpts",
                            "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
                        },
                    ],
                    "linux": {
                        "namespaces": [
                            {"type": kind} for kind in ("pid", "mount", "uts", "ipc", "network", "cgroup")
                        ],
                        "cgroupsPath": f"/shimtest/{identity}",
                        "resources": resources or {},
                    },
                }
            )
        )
        log = LogSpec(path=str(state_dir / "log"))
        return TaskCreate(
            id=identity, run_dir=str(run_dir), state_dir=str(state_dir), rootfs=[], log=log, **options
        )


@pytest.fixture
async def bench(tmp_path, rootfs):
    from dray.linux import cgroups

    zygote = Zygote.spawn()
    try:
        yield Containers(tmp_path, zygote, rootfs)
    finally:
        zygote.close()
        cgroups.prune("/shimtest")
        for parent in UNIFIED:
            with contextlib.suppress(OSError):
                parent.rmdir()


def attachment(**options):
    ours, theirs = socket.socketpair()
    return ours, (AttachRequest(**options), theirs.detach())


async def finish(task):
    await task.kill(signal.SIGKILL)
    status = await task.wait()
    await task.release()
    return status


async def test_a_container_runs_logs_and_ends(bench):
    request = bench.container("sh", "-c", "echo $$; exit 3")
    client, attached = attachment(framed=False)
    with client:
        task = await bench.tasks.create(request, attachments=[attached])
        assert await read_all(client) == b"1\n"
    assert (await task.wait()).exit_code == 3
    assert bench.log(request) == "1\n"
    await task.release()
    assert not Path(request.run_dir).exists()


async def test_a_missing_program_is_127_and_leaves_nothing(bench):
    request = bench.container("nosuch")
    with pytest.raises(StartError) as caught:
        await bench.tasks.create(request)
    assert caught.value.exit_code == 127
    assert not Path(request.run_dir).exists()
    await asyncio.sleep(0)
    assert bench.listener.events == []


async def test_a_terminal_and_an_exec_with_one(bench):
    request = bench.container("cat", tty=True, open_stdin=True, console_size=(20, 60))
    client, attached = attachment(stdin=True)
    with client:
        task = await bench.tasks.create(request, attachments=[attached])
        client.sendall(b"hello\n")
        await read_until(client, b"hello\r\nhello\r\n")
        process = {"args": ["sh", "-c", "stty size; read x; stty size"], "cwd": "/", "env": ["PATH=/bin"]}
        process |= {"user": {"uid": 0, "gid": 0}, "terminal": True}
        other, (attach, fd) = attachment(stdin=True, exec_id="x")
        with other:
            await task.exec(ExecCreate("x", process, tty=True, console_size=(33, 44), attach=attach), fd)
            await read_until(other, b"33 44")
            await task.resize(11, 22, "x")
            other.sendall(b"\n")
            await read_until(other, b"11 22")
            await read_all(other)
        assert await bench.listener.event("exec_exited") == ("exec_exited", "x", 0)
        assert (await finish(task)).exit_code == 137


async def test_pause_pids_and_exec_codes(bench):
    task = await bench.tasks.create(bench.container("sleep", "100"))
    assert await task.pids() == [task.pid]
    await task.pause()
    await task.resume()
    await task.update({"memory": {"limit": 64 << 20}})
    process = {"cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    await task.exec(ExecCreate("a", {**process, "args": ["sh", "-c", "exit 9"]}))
    assert await bench.listener.event("exec_exited") == ("exec_exited", "a", 9)
    with pytest.raises(StartError) as caught:
        await task.exec(ExecCreate("b", {**process, "args": ["nosuch"]}))
    assert caught.value.exit_code == 127
    await finish(task)


async def test_a_killed_shim_kills_the_container_and_its_cgroup(bench):
    request = bench.container("sh", "-c", "sleep 1000 & sleep 1000")
    task = await bench.tasks.create(request)
    os.kill(int((Path(request.run_dir) / "shim.pid").read_text()), signal.SIGKILL)
    await bench.listener.event("lost")
    from dray.linux import cgroups

    paths = cgroups.load(f"/shimtest/{request.id}", request.id).paths
    assert not any(os.path.exists(path) for path in paths.values())
    await task.release()


@pytest.mark.parametrize("name", ["runc", "crun"])
async def test_an_external_runtime_behind_the_same_shim(bench, name):
    binary = shutil.which(name)
    if binary is None:
        pytest.skip(f"{name} is not installed")
    request = bench.container("sh", "-c", "cat; exit 4", runtime=binary, open_stdin=True, stdin_once=True)
    client, attached = attachment(stdin=True, framed=False)
    with client:
        try:
            task = await bench.tasks.create(request, attachments=[attached])
        except StartError as error:
            if "hybrid" in str(error):
                pytest.skip(f"{name} does not run on this machine: {error}")
            raise
        process = {"cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
        await task.exec(ExecCreate("a", {**process, "args": ["sh", "-c", "exit 9"]}))
        assert await bench.listener.event("exec_exited") == ("exec_exited", "a", 9)
        client.sendall(b"through\n")
        client.shutdown(socket.SHUT_WR)
        assert await read_all(client) == b"through\n"
    assert (await task.wait()).exit_code == 4
    await task.release()
    assert not Path(request.run_dir).exists()

    request = bench.container("sleep", "1000", runtime=binary)
    task = await bench.tasks.create(request)
    os.kill(int((Path(request.run_dir) / "shim.pid").read_text()), signal.SIGKILL)
    await bench.listener.event("lost")
    assert not Path(f"/proc/{task.pid}").exists() or "Z" in Path(f"/proc/{task.pid}/stat").read_text()
    assert not any((parent / request.id).exists() for parent in UNIFIED)
    await task.release()


async def test_memory_that_runs_out_is_told(bench):
    request = bench.container("tail", "/dev/zero", resources={"memory": {"limit": 8 << 20, "swap": 8 << 20}})
    task = await bench.tasks.create(request)
    status = await task.wait()
    assert status.exit_code == 137
    assert status.oom_killed
    assert await bench.listener.event("oom") == ("oom", task.id)
    await task.release()


async def test_a_network_namespace_comes_with_a_socket_inside(bench):
    namespace, netlink = await bench.zygote.new_network_namespace()
    try:
        assert os.fstat(namespace).st_ino != os.stat("/proc/self/ns/net").st_ino
        with socket.socket(fileno=os.dup(netlink)) as route:
            assert route.getsockname()[0] != 0
            assert route.getblocking()
        request = bench.container("sh", "-c", "cat /proc/net/dev", fds=["network"])
        task = await bench.tasks.create(request, descriptors=[namespace])
        assert (await task.wait()).exit_code == 0
        assert "lo:" in bench.log(request)
        await task.release()
    finally:
        os.close(namespace)
        os.close(netlink)


def cgroups_of(identity):
    return [folder for folder in Path("/sys/fs/cgroup").glob(f"*/shimtest/{identity}") if folder.is_dir()]


async def test_a_shim_killed_in_the_middle_of_a_create_leaves_nothing(bench, tmp_path):
    """Nobody was told of the container yet, so nobody else cleans up."""
    request = bench.container("sleep", "600")
    config = Path(request.run_dir, "config.json")
    spec = json.loads(config.read_text())
    reached = tmp_path / "reached"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {reached}; exec sleep 30"]}
    spec["hooks"] = {"createRuntime": [hook]}
    config.write_text(json.dumps(spec))
    creating = asyncio.create_task(bench.tasks.create(request))
    while not reached.exists():
        await asyncio.sleep(0.01)
    assert cgroups_of(request.id)
    os.kill(int(Path(request.run_dir, "shim.pid").read_text()), signal.SIGKILL)
    with pytest.raises(Unavailable):
        await creating
    assert not cgroups_of(request.id)
    assert not Path(request.run_dir).exists()


async def test_a_shim_killed_after_it_told_the_end_leaves_nothing(bench):
    request = bench.container("true")
    task = await bench.tasks.create(request)
    await task.wait()
    os.kill(int(Path(request.run_dir, "shim.pid").read_text()), signal.SIGKILL)
    for folder in request_cgroups(request):  # as if the shim had not come to it any more
        folder.mkdir(exist_ok=True)
    await task.release()
    assert not cgroups_of(request.id)
    assert not Path(request.run_dir).exists()


def request_cgroups(request):
    return [parent / request.id for parent in Path("/sys/fs/cgroup").glob("*/shimtest")]
