"""docker-py against the engine: what programs do, beside what people type."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from support.engines import Engine


@pytest.fixture
def sdk(engine: Engine) -> Iterator[Any]:
    with engine.sdk() as client:
        yield client


def test_run(sdk: Any) -> None:
    assert sdk.containers.run("busybox", ["echo", "hello"], remove=True) == b"hello\n"


def test_run_that_fails(sdk: Any) -> None:
    from docker.errors import ContainerError, ImageNotFound

    with pytest.raises(ContainerError) as caught:
        sdk.containers.run("busybox", ["sh", "-c", "echo why >&2; exit 7"], remove=True)
    assert caught.value.exit_status == 7
    with pytest.raises(ImageNotFound):
        sdk.api.create_container("nosuch:1")


def test_life(sdk: Any) -> None:
    box = sdk.containers.run("busybox", "sleep 600", name="box", detach=True, labels={"a": "1"}, mem_limit="64m")
    box.reload()
    assert (box.status, box.labels, box.attrs["HostConfig"]["Memory"]) == ("running", {"a": "1"}, 64 << 20)
    status, out = box.exec_run("echo in")
    assert (status, out) == (0, b"in\n")
    status, (out, err) = box.exec_run(["sh", "-c", "echo o; echo e >&2; exit 3"], demux=True)
    assert (status, out, err) == (3, b"o\n", b"e\n")
    box.pause()
    box.reload()
    assert box.status == "paused"
    box.unpause()
    assert box.top()["Titles"][1] == "PID"
    box.rename("other")
    box.stop(timeout=0)
    assert box.wait()["StatusCode"] == 137
    assert [one.name for one in sdk.containers.list(all=True, filters={"label": "a"})] == ["other"]
    box.remove()
    assert sdk.containers.list(all=True) == []


def test_logs_stream(sdk: Any) -> None:
    box = sdk.containers.run("busybox", ["sh", "-c", "for n in 1 2 3; do echo $n; sleep 0.05; done"], detach=True)
    assert b"".join(box.logs(stream=True)) == b"1\n2\n3\n"
    assert box.logs(tail=1) == b"3\n"


def test_attach_socket(sdk: Any) -> None:
    box = sdk.containers.create("busybox", "cat", stdin_open=True)
    link = sdk.api.attach_socket(box.id, params={"stdin": 1, "stdout": 1, "stream": 1})
    try:
        box.start()
        link._sock.sendall(b"frame\n")
        header = _exactly(link, 8)
        assert header == b"\x01\0\0\0\0\0\0\x06"
        assert _exactly(link, 6) == b"frame\n"
    finally:
        link._sock.close()
        link.close()
    box.remove(force=True)


def _exactly(link: Any, count: int) -> bytes:
    data = b""
    while len(data) < count:
        got = link._sock.recv(count - len(data))
        assert got, "the stream ended"
        data += got
    return data


def test_events(sdk: Any) -> None:
    stream = sdk.events(decode=True, filters={"type": "container"})
    seen: list[str] = []

    def read() -> None:
        for event in stream:
            seen.append(event["Action"])
            if event["Action"] == "destroy":
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        sdk.containers.run("busybox", "true", remove=True)
        reader.join(20)
    finally:
        stream.close()
        reader.join(20)
    assert [one for one in seen if one in ("create", "start", "die", "destroy")] == [
        "create",
        "start",
        "die",
        "destroy",
    ]


def test_images_and_volumes(sdk: Any) -> None:
    image = sdk.images.get("busybox:latest")
    assert image.tag("mine/sdk", tag="1")
    assert "mine/sdk:1" in sdk.images.get("mine/sdk:1").tags
    sdk.images.remove("mine/sdk:1")
    assert image.history()
    volume = sdk.volumes.create("sdk-volume", labels={"a": "1"})
    assert [one.name for one in sdk.volumes.list()] == ["sdk-volume"]
    out = sdk.containers.run(
        "busybox", "ls -d /v", volumes={"sdk-volume": {"bind": "/v", "mode": "rw"}}, remove=True
    )
    assert out == b"/v\n"
    volume.remove()


def test_ports(sdk: Any) -> None:
    box = sdk.containers.run("variants:web", detach=True, ports={"80/tcp": ("127.0.0.1", None)})
    box.reload()
    (binding,) = box.ports["80/tcp"]
    assert binding["HostIp"] == "127.0.0.1"
    box.remove(force=True)


def test_stats_once(sdk: Any) -> None:
    box = sdk.containers.run("busybox", "sleep 600", detach=True)
    stats = box.stats(stream=False)
    assert stats["memory_stats"]["usage"] > 0
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert stats["pids_stats"]["current"] == 1
    box.remove(force=True)


def test_info_and_version(sdk: Any) -> None:
    assert sdk.ping() is True
    assert sdk.version()["ApiVersion"]
    assert sdk.info()["Name"]
