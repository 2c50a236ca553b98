"""The main job: nginx from Debian, published, limited, entered, read."""

from __future__ import annotations

from support.engines import Engine, until
from support.world import HOST_ADDRESS


def test_nginx_end_to_end(nginx_engine: Engine) -> None:
    from test_e2e_network import page

    engine = nginx_engine
    engine.ok("run", "-d", "-p", "8080:80", "--cpus=.5", "--memory=200m", "--name", "my-nginx", "nginx")
    for address in ("127.0.0.1", HOST_ADDRESS):
        assert "<h1>Welcome to nginx!</h1>" in page(address, 8080)
    second = engine.ok(
        *("run", "--rm", "nginx", "bash", "-c"),
        f"exec 3<>/dev/tcp/{HOST_ADDRESS}/8080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3",
    )
    assert "<h1>Welcome to nginx!</h1>" in second
    assert "0.0.0.0:8080->80/tcp" in engine.ok("ps")
    until(lambda: engine.ok("logs", "my-nginx").count('"GET / HTTP/1.') >= 3, what="three requests in the log")
    with engine.terminal("exec", "-it", "my-nginx", "bash") as tty:
        tty.expect("# ")
        tty.send("echo $((6*7)) $(tty); exit\n")
        tty.expect("42 /dev/pts/0")
        assert tty.wait() == 0
    engine.ok("stop", "my-nginx")
    assert engine.state("my-nginx")["ExitCode"] == 0
    engine.ok("rm", "my-nginx")


def test_nginx_with_runc(nginx_engine: Engine) -> None:
    from test_e2e_network import page

    engine = nginx_engine
    engine.ok("run", "-d", "-p", "8080:80", "--runtime", "runc", "--name", "my-nginx", "nginx")
    assert "<h1>Welcome to nginx!</h1>" in page("127.0.0.1", 8080)
    assert engine.inspect("my-nginx")["HostConfig"]["Runtime"] == "runc"
