"""The same words, the same output and exit status: docker and dray talk to one dockerd, case by case."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_both import DRAY, Outcome, environment, run

from dray.cli.main import main
from images import cache
from support.engines import Dockerd
from support.terminal import Terminal
from support.world import World

CASES = r"""
nosuch
--nosuch
run
run --nosuch x
run -m x busybox
rm
container nosuch
container --foo
ps x
rename a
run --cpus abc busybox
run --detach=maybe busybox
run -e
run -Z busybox
logs --tail
run -p 99999999:1 busybox
rm nosuch
inspect nosuch
inspect --type foo nosuch
container inspect nosuch
image inspect nosuch
volume inspect nosuch
network inspect nosuch
run --rm --network none busybox nosuch
run --rm --network none busybox /tmp
exec nosuch ls
logs nosuch
rmi nosuch
tag nosuch x
ps --format {{.Foo}} -a
ps --format {{.Foo
run 'Bad!' x
run -d --rm --restart always busybox
run --pull bogus busybox
run -a bogus busybox
run -d -a stdout busybox
start nosuch
start -a nosuch nosuch2
attach nosuch
cp x y
cp nosuch:/x /tmp
wait nosuch
port nosuch
kill nosuch
system nosuch
image nosuch
network create
save
help nosuch
volume prune -f --filter label=zz
network prune -f
volume prune -a
volume rm nosuch
volume rm -f nosuch
volume ls
volume ls -q
volume ls --format json
volume ls --format '{{.Name}} {{.Driver}}'
volume ls --format raw
network rm nosuch
network rm -f nosuch
network inspect none
network connect nosuch web
volume inspect v1
inspect v1
inspect none
inspect web
inspect busybox
inspect -s web
inspect -f '{{.Name}}' web nosuch done
inspect -f '{{.Name}}' nosuch
inspect -s --type volume v1
update web
update --restart=no web
run -it --network none busybox
cp web:/etc/passwd /tmp/nosuchdir/
cp web:/nosuch /tmp
cp web:/x done:/y
export nosuch
save -o /nosuch/x busybox
tag busybox Bad:x
rmi -f nosuch
port web 80
port web x
port web
rm web
rm -f nosuch
kill -s FOO web
rename web web
rename nosuch x
logs --since foo web
ps
ps -a
ps -a --no-trunc -s
ps -q
ps -aq --no-trunc
ps --format json
ps --format raw
ps -a --format 'table {{.Names}}\t{{.Ports}}\t{{.Labels}}'
ps --filter name=we --format '{{.Names}}'
ps --filter bogus=1
ps --filter foo
ps -n -5
images
images --digests
images -q
images --no-trunc
images busy*
images nosuch
images --format json
images --format '{{.Repository}}:{{.Tag}} {{.ID}} {{.Size}} {{.CreatedAt}}'
history busybox
history --no-trunc busybox
history -q busybox
history --format json busybox
history -H=false busybox
system df
system df --format json
system df --format '{{.Type}} {{.Size}}'
diff done
diff web
logs done
logs -t done
logs --tail 1 done
logs --details done
logs -n 0 done
run --network none --rm busybox sh -c 'echo a; echo b >&2; exit 9'
run --network none --rm -a stderr busybox sh -c 'echo a; echo b >&2'
run --network none --rm -t busybox echo tty
start -a c1
logs --until foo web
run --rm --network none --help=false busybox x y
inspect -f '{{.ID}} {{.HostConfig.Binds}} {{.Config.Healthcheck}} {{.HostConfig.PidsLimit}} {{.SizeRw}} {{.Config.Labels.foo}}' web
inspect -f '{{.Nope}}' web
inspect -f '{{.State.Foo.Bar}}' web
inspect -f '{{range $k,$v := .NetworkSettings.Networks}}{{$k}}={{$v.NetworkID}}{{end}}' web
inspect -f '{{json .NetworkSettings.Ports}} {{len .Args}} {{index .Args 0}}' web
inspect -f '{{index .Args 5}}' web
inspect -f '{{printf "%s %v %q %05d" .Name .State.Running .Path .State.Pid}}' web
inspect -f '{{pad .Name 2 3}}|{{truncate .Image 10}}{{title .Path}}{{println .Path}}{{/* c */}}x {{- " y"}}' web
inspect -f '{{slice .Image 0 6}} {{html "<a>"}} {{js "a\"b"}} {{urlquery "a b"}}' web
inspect -f '{{$x := 5}}{{$x}} {{1.5}} {{0x10}} {{`raw`}} {{nil}}' web
inspect -f '{{template "x"}}' web
inspect -f '{{define "T"}}hi {{.}}{{end}}{{template "T" .Path}}' web
inspect -f '{{nosuch .}}' web
inspect -f '{{if}}{{end}}' web
inspect -f '{{end}}' web
inspect -f '{{' web
inspect -f '{{"a}}' web
inspect -f '{{len 3}}' web
inspect -f '{{range 3}}{{.}}{{end}}' web
inspect -f '{{.Config.Env}} {{.RepoTags}} {{.Config.Cmd}} {{.RootFS}} {{.Size}} {{.Config.Labels}} {{.GraphDriver.Name}}' busybox
inspect -f '{{.Name}} {{.Labels}} {{.Options}} {{.UsageData}}' v1
inspect -f '{{.Name}} {{.IPAM.Config}} {{.Containers}} {{.Options}}' none
inspect -f '{{json .}}' v1
inspect --format json v1
inspect -f '{{.State.Status}}' --type container web done
inspect -f '{{with .State}}{{.Status}}{{else}}x{{end}} {{if and .State.Running (eq .State.Status "running")}}up{{end}}' web
inspect -f '{{.Name | printf "%s-%s" "a" | upper}}' web
inspect -f '{{range .Config.Env}}{{.}}{{else}}none{{end}}' web
inspect -f '{{split .Image ":"}} {{join .Args ","}} {{lower "ABC"}}' web
inspect -f '{{not true}} {{and 1 0}} {{or 0 "x"}} {{lt 1 2}} {{print 1 2 "a" "b" 3}} {{ge 2 2}} {{ne "a" "b"}}' web
inspect -f '{{.State.Pid.Foo}}' web
inspect -f '{{.Path.Foo}}' web
inspect -f '{{index .Config.Labels "a"}}-{{index .Config.Labels "zz"}}' web
ps --format '{{.Names}} {{.Foo}}'
ps --format '{{.Names | upper}} {{json .Labels}} {{len .Names}}'
ps --format '{{if eq .State "running"}}R{{end}} {{.Label "a"}} {{.Label}}'
ps --format 'table {{.ID}} {{.Names}}'
ps --format 'table'
ps --format json --no-trunc
network create --subnet foo xx
network create --subnet 10.0.0.0/24 --gateway 10.1.0.1 xx
network connect
container ls --help-me
run --name
run -it=foo busybox
run -eA=1 -eB --network none --rm busybox sh -c 'echo $A $B'
run --env-file /nosuch busybox
run --label-file /nosuch busybox
run --health-cmd x --no-healthcheck busybox
run --memory-swappiness 200 busybox
run --pid foo busybox
run --uts foo busybox
run --userns foo busybox
run --cgroupns foo busybox
run --security-opt foo busybox
run --security-opt seccomp=/nosuch busybox
run --storage-opt foo busybox
run --log-driver none --log-opt a=b busybox
run --restart a:b busybox
run --network a --network a busybox
run --network host --network foo busybox
run --network name=foo,bar=x busybox
run --network none --rm --ip 1.2.3.4 busybox true
run --expose 80:80 busybox
run --expose x busybox
run -p 80:x busybox
run -p 1.2.3.4.5:80:80 busybox
run -p 80-81:90-95 busybox
run -p 80/foo busybox
run --mount type=bind busybox
run --mount type=foo,dst=/x busybox
run --mount type=bind,src=/nosuch,dst=/x --network none busybox
run --mount foo busybox
run --mount foo=bar,dst=/x busybox
run --mount type=tmpfs,dst=/x,volume-nocopy=true busybox
run --mount type=bind,dst=/x,src=/,readonly=foo busybox
run --mount type=bind,dst=/x,src=/,bind-recursive=foo busybox
run --mount type=bind,dst=/x,src=/,bind-recursive=readonly busybox
run --mount type=tmpfs,dst=/x,tmpfs-size=foo busybox
run --mount type=tmpfs,dst=/x,tmpfs-mode=foo busybox
run --mount ' type=bind' busybox
run --ulimit foo busybox
run --ulimit nofile busybox
run --ulimit nofile=a busybox
run --ulimit nofile=5:4 busybox
run --ulimit foo=5 busybox
run --ulimit nofile=1:2:3 busybox
run --device foo busybox
run --device /dev/null:/x:foo busybox
run --device /dev/null:x busybox
run --device-cgroup-rule foo busybox
run --blkio-weight-device foo busybox
run --blkio-weight-device /dev/x:5 busybox
run --device-read-bps foo busybox
run --device-read-bps /dev/x:foo busybox
run --device-write-iops /dev/x:foo busybox
run --blkio-weight 99999999 busybox
run --blkio-weight x busybox
run --dns foo busybox
run --dns-search 'a b' busybox
run --add-host foo busybox
run --add-host foo:bar busybox
run --link a:b:c busybox
run --sysctl foo=bar busybox
run --gpus foo=bar busybox
run --gpus count=x busybox
run --gpus 1,2 busybox
run --health-interval x busybox
run --health-interval -1s busybox
run --health-retries -1 busybox
run --stop-timeout x busybox
run --cpus 0.00000000001 busybox
run -e =x busybox
run -l =x busybox
run -v '' busybox
run --ip foo busybox
run --entrypoint echo --rm --network none busybox hi
exec -e =x web ls
exec -w /nosuch web ls
exec -u nosuch web ls
update --memory x web
update --restart foo web
start
rename a b c
image rm
network inspect
cp '' web:/x
history
history nosuch
tag a
--config
network ls --filter driver=null
network ls --format '{{.Name}} {{.Driver}}' --filter type=builtin
context show
version --format '{{.Server.Version}}'
info --format '{{.Driver}} {{.NCPU}} {{json .Plugins.Network}}'
commit web Bad
kill done
stop nosuch nosuch2
attach done
wait done nosuch
exec web nosuch
exec web echo hi
exec web sh -c 'exit 3'
exec -it web true
stats --no-stream done
top web -o pid,comm
start -ai done
"""

# (what is typed at the prompt or piped in, words)
WITH_INPUT = [
    ("n\n", "container prune"),
    ("n\n", "image prune"),
    ("n\n", "image prune -a"),
    ("n\n", "network prune"),
    ("n\n", "volume prune"),
    ("n\n", "system prune"),
    ("n\n", "system prune -a --volumes"),
    ("n\n", "system prune --filter label=a"),
    ("y\n", "container prune --filter label=nothing-has-it"),
    ("hello\n", "run -i --network none --rm busybox cat"),
    ("hello\n", "run -a stdin -a stdout -i --network none --rm busybox cat"),
    ("hello\n", "exec -i web cat"),
    ("", "exec -i web cat"),
    ("secret", "login --password-stdin localhost:1"),
]


class BareDockerd(Dockerd):
    """dockerd without networks: what the cases need, and quick to start."""

    def command(self) -> list[str]:
        return ["dockerd", *self.common_flags(), "--bridge=none", "--iptables=false"]


@pytest.fixture(scope="module")
def dockerd(world: World) -> Iterator[BareDockerd]:
    one = BareDockerd()
    one.start()
    try:
        one.load(cache.busybox_archive())
        one.ok("run", "-d", "--name", "web", "--network", "none", "--label", "a=b", "busybox", "sleep", "10000")
        one.docker(
            "run", "--name", "done", "--network", "none", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3"
        )
        one.ok("volume", "create", "v1")
        yield one
    finally:
        one.remove_everything()
        one.stop()
        one.destroy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli-output")


@pytest.mark.parametrize("line", [line for line in CASES.split("\n") if line])
def test_same_output(
    line: str,
    dockerd: BareDockerd,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words, env = shlex.split(line), environment(dockerd.host, folder)
    docker = run(["docker", *words], env, cwd=folder)
    monkeypatch.chdir(folder)
    for name in os.environ.keys() - env.keys():
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    capfd.readouterr()
    dray = Outcome(main(words), *capfd.readouterr())
    if words[0] == "images":
        # Images of one age come in any order.
        docker.sort()
        dray.sort()
    assert dray == docker


@pytest.mark.parametrize(("typed", "line"), WITH_INPUT)
def test_same_with_input(typed: str, line: str, dockerd: BareDockerd, folder: Path) -> None:
    words, env = shlex.split(line), environment(dockerd.host, folder)
    docker = run(["docker", *words], env, stdin=typed)
    assert run([*DRAY, *words], env, stdin=typed) == docker


@pytest.mark.parametrize("client", [["docker"], DRAY], ids=["docker", "dray"])
class TestTerminal:
    """At a real terminal; each case on both clients, so that docker tells whether the case is right."""

    def test_size_resize_and_status(self, client: list[str], dockerd: BareDockerd, folder: Path) -> None:
        env = environment(dockerd.host, folder) | {"TERM": "xterm"}
        argv = [*client, "run", "-it", "--rm", "--network", "none", "busybox", "sh"]
        with Terminal(argv, env=env, rows=30, columns=100) as terminal:
            terminal.expect("# ")
            terminal.send("until [ \"$(stty size)\" = '30 100' ]; do sleep 0.1; done; echo first-$((40+2))\n")
            terminal.expect("first-42")
            terminal.resize(11, 77)
            terminal.send("until [ \"$(stty size)\" = '11 77' ]; do sleep 0.1; done; echo then-$((40+2))\n")
            terminal.expect("then-42")
            terminal.send("exit 5\n")
            assert terminal.process.wait(timeout=30) == 5

    def test_detach_and_attach_again(self, client: list[str], dockerd: BareDockerd, folder: Path) -> None:
        env = environment(dockerd.host, folder) | {"TERM": "xterm"}
        name = f"detached-{os.path.basename(client[0])}"
        with Terminal(
            [*client, "run", "-it", "--name", name, "--network", "none", "busybox", "sh"], env=env
        ) as terminal:
            terminal.expect("# ")
            terminal.send(b"\x10\x11")
            assert terminal.process.wait(timeout=30) == 0
        assert dockerd.get(f"/containers/{name}/json")["State"]["Running"]
        with Terminal([*client, "attach", "--detach-keys", "a,b", name], env=env) as terminal:
            terminal.expect("# ")
            terminal.send("ab")
            assert terminal.process.wait(timeout=30) == 1
            terminal.expect("read escape sequence")
        with Terminal([*client, "attach", name], env=env) as terminal:
            terminal.expect("# ")
            terminal.send("exit 4\n")
            assert terminal.process.wait(timeout=30) == 4
        dockerd.ok("rm", name)

    def test_exec_has_a_terminal(self, client: list[str], dockerd: BareDockerd, folder: Path) -> None:
        env = environment(dockerd.host, folder) | {"TERM": "xterm"}
        with Terminal([*client, "exec", "-it", "web", "sh"], env=env) as terminal:
            terminal.expect("# ")
            terminal.send("tty; exit 3\n")
            terminal.expect("/dev/pts/0")
            assert terminal.process.wait(timeout=30) == 3

    def test_signals_reach_the_container(self, client: list[str], dockerd: BareDockerd, folder: Path) -> None:
        env = environment(dockerd.host, folder)
        script = "trap 'exit 9' INT; echo ready; while :; do sleep 0.1; done"
        argv = [*client, "run", "--rm", "--network", "none", "busybox", "sh", "-c", script]
        with Terminal(argv, env=env) as terminal:
            terminal.expect("ready")
            terminal.send(b"\x03")
            assert terminal.process.wait(timeout=30) == 9


COPIES_IN = (
    "src {c}:/t/new",
    "src {c}:/t/dir",
    "src/. {c}:/t/dir",
    "src/f {c}:/t/file",
    "src/f {c}:/t/dir/",
    "src/l {c}:/t/link",
)
COPIES_OUT = (
    "{c}:/t/new out/a",
    "{c}:/t/new out/b",
    "{c}:/t/new/. out/b",
    "{c}:/t/file out/f",
    "{c}:/t/new/l out/l",
    "-L {c}:/t/new/l out/l2",
    "{c}:/t/new out/f",
    "-a {c}:/t/new out/c",
    "{c}:/t/file out/missing/x",
)


def _tree(folder: Path) -> list[tuple[object, ...]]:
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
        found.append(
            (
                str(path.relative_to(folder)),
                status.st_mode,
                status.st_uid,
                int(status.st_mtime) if path.is_file() else 0,
                content,
            )
        )
    return found


def test_copies_end_where_docker_puts_them(dockerd: BareDockerd, tmp_path: Path) -> None:
    (tmp_path / "src" / "d").mkdir(parents=True)
    (tmp_path / "src" / "f").write_text("f")
    (tmp_path / "src" / "d" / "g").write_text("g")
    (tmp_path / "src" / "l").symlink_to("f")
    (tmp_path / "src" / "abs").symlink_to("/etc")
    seen = []
    for client in (["docker"], DRAY):
        name = f"copies-{len(seen)}"
        dockerd.ok("run", "-d", "--name", name, "--network", "none", "busybox", "sleep", "1000")
        dockerd.ok("exec", name, "mkdir", "-p", "/t/dir")
        env = environment(dockerd.host, tmp_path)
        statuses = [
            run([*client, "cp", *one.format(c=name).split()], env, cwd=tmp_path).status for one in COPIES_IN
        ]
        inside = dockerd.ok("exec", name, "sh", "-c", "cd /t && find . -exec stat -c '%n %f %u %s %N' {} + | sort")
        (tmp_path / "out" / "b").mkdir(parents=True)
        statuses += [
            run([*client, "cp", *one.format(c=name).split()], env, cwd=tmp_path).status for one in COPIES_OUT
        ]
        (tmp_path / "out").rename(tmp_path / name)
        seen.append((statuses, inside, _tree(tmp_path / name)))
        dockerd.ok("rm", "-f", name)
    assert seen[1] == seen[0]
    assert seen[0][0].count(0) == len(COPIES_IN) + len(COPIES_OUT) - 2
