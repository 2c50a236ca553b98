"""`docker run`: exit statuses, environment, users, names, devices of a container that ends by itself."""

from __future__ import annotations

import re

import pytest

from support.engines import Engine, until


def test_output_goes_to_the_stream_it_was_written_to(engine: Engine) -> None:
    done = engine.docker("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exit_status_is_the_programs_own(engine: Engine, status: int) -> None:
    assert engine.docker("run", "--rm", "busybox", "sh", "-c", f"exit {status}").returncode == status


def test_missing_program_is_127(engine: Engine) -> None:
    done = engine.docker("run", "--name", "box", "busybox", "nosuch")
    assert done.returncode == 127
    assert "nosuch" in done.stderr
    assert "not found" in done.stderr
    state = engine.state("box")
    assert (state["Status"], state["ExitCode"]) == ("created", 127)
    assert "nosuch" in state["Error"]


def test_missing_program_by_path_is_127(engine: Engine) -> None:
    done = engine.docker("run", "--rm", "busybox", "/no/such")
    assert done.returncode == 127
    assert "no such file or directory" in done.stderr


@pytest.mark.parametrize("program", ["/etc/passwd", "/etc"])
def test_what_cannot_be_executed_is_126(engine: Engine, program: str) -> None:
    done = engine.docker("run", "--rm", "busybox", program)
    assert done.returncode == 126
    assert "permission denied" in done.stderr.lower() or "is a directory" in done.stderr.lower()


def test_engine_errors_are_125(engine: Engine) -> None:
    done = engine.docker("run", "--rm", "--network", "nosuch", "busybox", "true")
    assert done.returncode == 125
    assert "nosuch" in done.stderr


def test_unknown_image_is_125(engine: Engine) -> None:
    done = engine.docker("run", "--rm", "--pull", "never", "nosuch:1", "true")
    assert done.returncode == 125
    assert "No such image: nosuch:1" in done.stderr


def test_killed_program_is_137(engine: Engine) -> None:
    done = engine.docker("run", "--rm", "busybox", "sh", "-c", "kill -9 $$; sleep 5")
    # pid 1 cannot kill itself by SIGKILL, so the shell goes on: the engine's own SIGKILL is tested below.
    assert done.returncode == 0
    with engine.spawn("run", "--name", "box", "busybox", "sleep", "600") as client:
        engine.until_state("box", "running")
        engine.ok("kill", "box")
        assert client.wait(20) == 137
    assert engine.state("box")["ExitCode"] == 137


def test_rm_removes_the_container(engine: Engine) -> None:
    engine.ok("run", "--rm", "--name", "box", "busybox", "true")
    assert "No such container: box" in engine.fails("inspect", "--type", "container", "box")


def test_name_conflict_names_the_holder(engine: Engine) -> None:
    first = engine.ok("create", "--name", "box", "busybox")
    message = engine.fails("create", "--name", "box", "busybox")
    assert f'The container name "/box" is already in use by container "{first}"' in message


def test_generated_names_are_two_words(engine: Engine) -> None:
    made = engine.ok("create", "busybox")
    assert re.fullmatch(r"/[a-z]+_[a-z]+\d?", engine.inspect(made)["Name"])


def test_environment(engine: Engine) -> None:
    out = engine.ok("run", "--rm", "-e", "A=1 2", "-e", "B=", "-h", "box", "busybox", "env")
    lines = set(out.splitlines())
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert lines >= {"A=1 2", "B=", "HOSTNAME=box", path, "HOME=/root"}
    assert len(lines) == 5


def identity(line: str) -> tuple[str, frozenset[str]]:
    """What id(1) prints, its groups without their order."""
    who, groups = line.split(" groups=")
    return who, frozenset(groups.split(","))


def test_image_environment_and_user(engine: Engine) -> None:
    out = engine.ok("run", "--rm", "variants:user", "sh", "-c", "pwd; id; env | sort; stat -c %u:%a .")
    where, who, *env, folder = out.splitlines()
    assert where == "/home/app/work"
    assert identity(who) == identity("uid=1000(app) gid=1000(app) groups=1000(app),26(tape),2000(extra)")
    assert {"COLOUR=blue", "EMPTY=", "HOME=/home/app"} <= set(env)
    assert folder.endswith(":755")


def test_environment_can_be_removed(engine: Engine) -> None:
    out = engine.ok("run", "--rm", "-e", "COLOUR", "variants:user", "env")
    assert "COLOUR" not in out


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("1000", "uid=1000(app) gid=1000(app) groups=1000(app),26(tape),2000(extra)"),
        ("app:extra", "uid=1000(app) gid=2000(extra) groups=2000(extra)"),
        ("1234", "uid=1234 gid=0(root) groups=0(root)"),
        ("1234:5678", "uid=1234 gid=5678 groups=5678"),
        ("daemon", "uid=1(daemon) gid=1(daemon) groups=1(daemon)"),
    ],
)
def test_user(engine: Engine, user: str, expected: str) -> None:
    assert identity(engine.ok("run", "--rm", "-u", user, "busybox", "id")) == identity(expected)


def test_unknown_user_is_refused(engine: Engine) -> None:
    assert "unable to find user nosuch" in engine.fails("run", "--rm", "-u", "nosuch", "busybox", "id", status=125)


def test_groups_are_added(engine: Engine) -> None:
    out = engine.ok("run", "--rm", "-u", "1234:5678", "--group-add", "extra", "--group-add", "99", "busybox", "id")
    assert sorted(out.split("groups=")[1].split(",")) == ["2000(extra)", "5678", "99"]


def test_working_directory_is_made(engine: Engine) -> None:
    assert engine.ok("run", "--rm", "-w", "/a/b/c", "busybox", "pwd") == "/a/b/c"


def test_entrypoint_and_command(engine: Engine) -> None:
    assert engine.ok("run", "--rm", "variants:entrypoint") == "entry default"
    assert engine.ok("run", "--rm", "variants:entrypoint", "other", "words") == "entry other words"
    assert engine.ok("run", "--rm", "--entrypoint", "/bin/pwd", "variants:entrypoint") == "/"


def test_no_command_is_an_error(engine: Engine) -> None:
    message = engine.fails("run", "--rm", "--entrypoint", "", "variants:entrypoint", status=125)
    assert "no command specified" in message.lower()


def test_hostname_and_domain(engine: Engine) -> None:
    out = engine.ok("run", "--rm", "-h", "box.example.org", "busybox", "sh", "-c", "hostname; cat /etc/hostname")
    assert out.splitlines() == ["box.example.org", "box.example.org"]


def test_default_hostname_is_the_short_id(engine: Engine) -> None:
    made = engine.ok("run", "-d", "busybox", "hostname")
    engine.ok("wait", made)
    assert engine.ok("logs", made) == made[:12]


def test_read_only_root(engine: Engine) -> None:
    done = engine.docker(
        "run", "--rm", "--read-only", "busybox", "sh", "-c", "touch /x; echo $?; touch /dev/shm/x"
    )
    assert done.returncode == 0
    assert done.stdout == "1\n"
    assert "Read-only file system" in done.stderr


def test_tmpfs(engine: Engine) -> None:
    command = "grep ' /scratch ' /proc/mounts; touch /scratch/x && ls /scratch"
    out = engine.ok(
        "run", "--rm", "--read-only", "--tmpfs", "/scratch:size=1m,mode=700", "busybox", "sh", "-c", command
    )
    mount, listed = out.splitlines()
    assert listed == "x"
    assert mount.startswith("tmpfs /scratch tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k,mode=700")


def test_ulimit_is_lowered(engine: Engine) -> None:
    command = "ulimit -Sn; ulimit -Hn; ulimit -Sc"
    out = engine.ok(
        "run", "--rm", "--ulimit", "nofile=100:200", "--ulimit", "core=0", "busybox", "sh", "-c", command
    )
    assert out.split() == ["100", "200", "0"]


def test_sysctl(engine: Engine) -> None:
    out = engine.ok(
        "run", "--rm", "--sysctl", "net.ipv4.ip_forward=0", "busybox", "cat", "/proc/sys/net/ipv4/ip_forward"
    )
    assert out == "0"


def test_shm_size(engine: Engine) -> None:
    assert "size=2048k" in engine.ok(
        "run", "--rm", "--shm-size", "2m", "busybox", "grep", "/dev/shm", "/proc/mounts"
    )


def test_capabilities(engine: Engine) -> None:
    def effective(*flags: str) -> int:
        out = engine.ok("run", "--rm", *flags, "busybox", "grep", "CapEff", "/proc/self/status")
        return int(out.split()[1], 16)

    assert effective() == 0xA80425FB
    assert effective("--cap-drop", "ALL") == 0
    assert effective("--cap-drop", "ALL", "--cap-add", "NET_ADMIN") == 1 << 12
    assert effective("-u", "1000") == 0


def test_no_new_privileges(engine: Engine) -> None:
    out = engine.ok(
        "run", "--rm", "--security-opt", "no-new-privileges", "busybox", "grep", "NoNewPrivs", "/proc/self/status"
    )
    assert out.split() == ["NoNewPrivs:", "1"]


def test_seccomp_is_on_unless_unconfined(engine: Engine) -> None:
    look = ("busybox", "grep", "Seccomp:", "/proc/self/status")
    assert engine.ok("run", "--rm", *look).split() == ["Seccomp:", "2"]
    assert engine.ok("run", "--rm", "--security-opt", "seccomp=unconfined", *look).split() == ["Seccomp:", "0"]


@pytest.mark.drayd_only("runc insists on all capabilities, and the machine may not have CAP_SYS_RESOURCE")
def test_privileged(engine: Engine) -> None:
    out = engine.ok(
        "run",
        "--rm",
        "--privileged",
        "busybox",
        "sh",
        "-c",
        "mount -t tmpfs none /mnt; ls /dev/kmsg; cat /proc/self/status",
    )
    assert "/dev/kmsg" in out
    assert re.search(r"Seccomp:\s+0", out)


def test_devices(engine: Engine) -> None:
    out = engine.ok(
        "run",
        "--rm",
        "--device",
        "/dev/zero:/dev/nought:r",
        "busybox",
        "sh",
        "-c",
        "head -c 3 /dev/nought | xxd -p; ls /dev",
    )
    first, *names = out.splitlines()
    assert first == "000000"
    assert {"null", "zero", "full", "random", "urandom", "tty", "nought", "shm", "mqueue", "pts", "ptmx"} <= set(
        names
    )


def test_init_reaps(engine: Engine) -> None:
    script = "sh -c 'sleep 0.1 & exit' ; sleep 0.5; cat /proc/1/comm; grep -h State /proc/[0-9]*/status"
    first, *states = engine.ok("run", "--rm", "--init", "busybox", "sh", "-c", script).splitlines()
    assert "init" in first
    assert not [line for line in states if "zombie" in line]


@pytest.mark.parametrize(("program", "code"), [("nosuch", 127), ("/etc/passwd", 126)])
def test_init_and_a_program_that_cannot_run(engine: Engine, program: str, code: int) -> None:
    assert engine.docker("run", "--rm", "--init", "busybox", program).returncode == code


def test_init_passes_signals_and_the_terminal_on(engine: Engine) -> None:
    script = 'trap "exit 9" TERM; while :; do sleep 0.1; done'
    engine.ok("run", "-d", "--init", "--name", "box", "busybox", "sh", "-c", script)
    engine.ok("stop", "-t", "20", "box")
    assert engine.inspect("box")["State"]["ExitCode"] == 9
    with engine.terminal("run", "-it", "--rm", "--init", "--name", "tty", "busybox", "sh") as tty:
        tty.expect("# ")
        tty.send("echo he''re; sleep 100\n")
        tty.expect("here")
        until(lambda: "sleep 100" in engine.ok("top", "tty", "-o", "pid,args"), what="the sleep")
        tty.send("\x03")
        tty.expect("# ")
        tty.send("exit 3\n")
        assert tty.wait() == 3


def test_cidfile(engine: Engine) -> None:
    path = engine.base / "cid"
    engine.ok("run", "--cidfile", str(path), "--name", "box", "busybox", "true")
    assert path.read_text() == engine.inspect("box")["Id"]
    path.unlink()


def test_labels_and_annotations(engine: Engine) -> None:
    engine.ok("create", "--name", "box", "-l", "a=1", "-l", "b", "variants:web")
    labels = engine.inspect("box")["Config"]["Labels"]
    assert labels == {"a": "1", "b": "", "org.example.role": "web", "org.example.note": "a b"}
