"""The API over a path socket with fake backends: heads, errors, versions, streams, exact bytes."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dray.base.errors import Conflict
from dray.server.listeners import Listener
from unit.server_fakes import ID, Fake, exchange, get, post, serving

COMMON = {b"Api-Version": b"1.55", b"Docker-Experimental": b"false", b"Ostype": b"linux"}


@pytest.fixture
async def fake() -> Fake:
    return Fake()


@pytest.fixture
async def path(fake: Fake, tmp_path: Path) -> AsyncIterator[str]:
    path = str(tmp_path / "api.sock")
    async with serving(fake, Listener(url=f"unix://{path}")):
        yield path


def parse(answer: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    return int(status.split()[1]), headers, body


async def ask(path: str, request: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    return parse(await exchange(path, request))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_ping_tells_everything_in_headers(path: str, method: str) -> None:
    status, headers, body = await ask(path, get("/_ping", method=method))
    assert status == 200
    assert COMMON.items() <= headers.items()
    assert headers[b"Server"].startswith(b"dray/")
    assert headers[b"Builder-Version"] == b"1"
    assert headers[b"Swarm"] == b"inactive"
    assert headers[b"Cache-Control"] == b"no-cache, no-store, must-revalidate"
    assert headers[b"Pragma"] == b"no-cache"
    assert headers[b"Content-Type"] == b"text/plain; charset=utf-8"
    assert (headers[b"Content-Length"], body) == ((b"2", b"OK") if method == "GET" else (b"0", b""))


@pytest.mark.parametrize(
    ("request_line", "status", "message"),
    [
        ("/v1.99/info", 400, "client version 1.99 is too new. Maximum supported API version is 1.55"),
        ("/v1.9/nosuch", 404, "page not found"),
        ("/nosuch", 404, "page not found"),
        ("/containers/nosuch/json", 404, "No such container: nosuch"),
        ('/containers/json?filters={"color":["x"]}', 400, "invalid filter 'color'"),
        ("/containers/json?limit=x", 400, "invalid value for limit: 'x' is not a number"),
        ("/containers/web/logs", 400, "Bad parameters: you must choose at least one stream"),
        ("/events?since=2&until=1", 400, "`since` time (2) cannot be after `until` time (1)"),
        ("/swarm", 503, None),
        ("/volumes/x/y", 404, "get x/y: no such volume"),
        ("/containers/web/checkpoints", 501, None),
        ("/system/df?type=cake", 400, "unknown object type: cake"),
    ],
)
async def test_errors_are_json_with_the_exact_type(
    path: str, request_line: str, status: int, message: str | None
) -> None:
    answered, headers, body = await ask(path, get(request_line.replace('"', "%22")))
    assert answered == status
    assert headers[b"Content-Type"] == b"application/json"
    assert body.endswith(b"}\n")
    if message is not None:
        assert json.loads(body) == {"message": message}
    assert (b"Api-Version" in headers) == (message != "page not found")


async def test_clients_too_old_get_plain_text(path: str) -> None:
    status, headers, body = await ask(path, get("/v1.12/info"))
    assert status == 400
    assert COMMON.items() <= headers.items()
    assert headers[b"Content-Type"].startswith(b"text/plain")
    assert body == (
        b"client version 1.12 is too old. Minimum supported API version is 1.24, "
        b"please upgrade your client to a newer version\n"
    )


async def test_a_wrong_method_is_a_404_and_options_is_empty(path: str) -> None:
    assert (await ask(path, get("/info", method="DELETE")))[0] == 404
    status, _, body = await ask(path, get("/info", method="OPTIONS"))
    assert (status, body) == (200, b"")


async def test_routes_have_a_first_version(path: str) -> None:
    assert (await ask(path, post("/v1.24/containers/prune")))[0] == 404
    assert (await ask(path, post("/v1.25/containers/prune")))[0] == 200


async def test_create_decodes_adapts_and_warns(path: str, fake: Fake) -> None:
    body = {
        "Image": "busybox",
        "Cmd": "true",
        "Shape": 1,
        "HostConfig": {"Memory": 4, "Colour": "x", "PidsLimit": -1},
    }
    status, _, answer = await ask(
        path, post("/v1.43/containers/create?name=/web&platform=linux", json.dumps(body).encode())
    )
    assert status == 201
    assert json.loads(answer) == {
        "Id": ID,
        "Warnings": ["Unknown field ignored: Shape", "Unknown field ignored: HostConfig.Colour"],
    }
    options, config, host_config, networking = fake.last("create")
    assert (options.name, options.platform) == ("web", "linux")
    assert (config.cmd, config.image, config.entrypoint) == (["true"], "busybox", None)
    assert (host_config.memory, host_config.pids_limit) == (4, None)
    assert networking.endpoints_config is None
    assert type(config).__name__ == "ContainerConfig"


async def test_create_of_a_missing_image_is_the_404_that_makes_clients_pull(path: str) -> None:
    status, _, body = await ask(path, post("/containers/create", b'{"Image":"missing"}'))
    assert (status, json.loads(body)) == (404, {"message": "No such image: missing:latest"})


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"{}", "text/plain", "unsupported Content-Type header (text/plain): must be 'application/json'"),
        (b"{} {}", "application/json", "unexpected content after JSON"),
        (b'{"Cmd":{}}', "application/json", "invalid JSON: Expected `array | null`, got `object` - at `Cmd`"),
        (b"", "application/json", "invalid JSON: got EOF while reading request body"),
        (b"[" * 3000000, "application/json", "invalid JSON: nested too deeply"),
        (b" " * (5 << 20), "application/json", f"request body is larger than {4 << 20} bytes"),
    ],
)
async def test_bad_bodies_are_400(path: str, body: bytes, content_type: str, message: str) -> None:
    request = get("/containers/create", f"Content-Type: {content_type}", method="POST", body=body)
    status, _, answer = await ask(path, request)
    assert (status, json.loads(answer)["message"]) == (400, message)


@pytest.mark.parametrize(("name", "status"), [("web", 204), ("running", 304), ("paused", 409), ("broken", 500)])
async def test_start_answers_by_kind(path: str, name: str, status: int) -> None:
    answered, headers, body = await ask(path, post(f"/containers/{name}/start"))
    assert answered == status
    assert COMMON.items() <= headers.items()
    assert bool(body) == (status >= 400)


async def test_start_refuses_a_body(path: str) -> None:
    assert (await ask(path, post("/containers/web/start", b'{"Binds":[]}')))[0] == 400
    chunked = get("/containers/web/start", "Transfer-Encoding: chunked", method="GET").replace(b"GET", b"POST", 1)
    assert (await ask(path, chunked + b"0\r\n\r\n"))[0] == 400
    assert (await ask(path, post("/containers/web/start", b"{}")))[0] == 204


@pytest.mark.parametrize(("query", "timeout"), [("", None), ("?t=-1", -1), ("?t=0", 0), ("?t=30", 30)])
async def test_stop_reads_its_timeout(path: str, fake: Fake, query: str, timeout: int | None) -> None:
    await ask(path, post(f"/containers/web/stop{query}"))
    assert fake.last("stop") == ("web", {"signal": "", "timeout": timeout})


@pytest.mark.parametrize(
    ("value", "truth"), [("1", True), ("yes", True), ("", False), ("0", False), ("FALSE", False), ("none", False)]
)
async def test_booleans_are_gos(path: str, fake: Fake, value: str, truth: bool) -> None:
    await ask(path, get(f"/containers/json?all={value}&limit=-1"))
    assert fake.last("list")[0]["all"] is truth
    assert fake.last("list")[0]["limit"] == 0


@pytest.mark.parametrize("query", ["h=1", "w=1", "h=&w=1", "h=-1&w=1", "h=1&w=4294967296", "h=x&w=1"])
async def test_resize_needs_both_sizes(path: str, query: str) -> None:
    assert (await ask(path, post(f"/containers/web/resize?{query}")))[0] == 400


async def test_resize_does_not_swap(path: str, fake: Fake) -> None:
    assert (await ask(path, post("/containers/web/resize?h=24&w=80")))[0] == 200
    assert fake.last("resize") == ("web", 24, 80)


async def test_wait_sends_its_head_before_the_result(path: str, fake: Fake) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(post("/v1.47/containers/web/wait?condition=next-exit"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head
    assert fake.last("wait") == ("web", "next-exit")
    fake.gate.set()
    assert b'{"StatusCode":7}\n' in await reader.readuntil(b"0\r\n\r\n")
    writer.close()


async def test_a_client_that_asks_first_is_told_to_go_on(path: str, fake: Fake) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    body = b'{"Image":"busybox"}'
    request = post("/containers/create", body, "Expect: 100-continue")
    writer.write(request.removesuffix(body))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert b" 201 Created" in await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def test_execs_tolerate_what_docker_py_repeats(
    path: str, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    body = b'{"Cmd":["true"],"Container":"web","Detach":false,"Colour":1}'
    assert (await ask(path, post("/containers/web/exec", body)))[0] == 201
    assert "unknown fields ignored: Colour" in caplog.text


async def test_a_wait_is_cancelled_when_the_client_goes(path: str, fake: Fake) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(post("/containers/web/wait"))
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await until(lambda: fake.cancelled == ["wait"])


async def until(condition: object) -> None:
    async with asyncio.timeout(5):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_wait_checks_its_condition_first(path: str) -> None:
    assert (await ask(path, post("/containers/web/wait?condition=never")))[0] == 400


async def test_progress_is_one_object_a_line_and_unescaped(path: str) -> None:
    answer = await exchange(path, post("/images/create?fromImage=a&tag=b", b"", "Connection: close"))
    assert b"Content-Type: application/json\r\n" in answer
    assert b"Transfer-Encoding: chunked\r\n" in answer
    assert b'\r\n{"status":"Pulling <&>","id":"1"}\r\n\r\n0\r\n\r\n' in answer


async def test_progress_that_fails_early_is_a_status_and_late_a_line(path: str) -> None:
    status, _, body = await ask(path, post("/images/create?fromImage=nowhere"))
    assert (status, json.loads(body)) == (404, {"message": "pull access denied for nowhere"})
    answer = await exchange(path, post("/images/create?fromImage=fails", b"", "Connection: close"))
    assert b" 200 OK" in answer
    assert b'{"errorDetail":{"message":"manifest unknown"},"error":"manifest unknown"}\r\n' in answer


async def test_a_pull_is_cancelled_when_the_client_goes(path: str, fake: Fake) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(post("/images/create?fromImage=slow"))
    await reader.readuntil(b"Pulling")
    writer.close()
    await until(lambda: fake.cancelled == ["pull"])


async def test_credentials_are_decoded_and_nonsense_ignored(path: str, fake: Fake) -> None:
    header = base64.urlsafe_b64encode(b'{"username":"u","password":"p"}').decode()
    await exchange(
        path, post("/images/a/b/push?tag=c", b"", f"X-Registry-Auth: {header}", "X-Meta-A: 1", "Connection: close")
    )
    name, tag, options = fake.last("pull")
    assert (name, tag, options["auth"].username, options["meta"]) == ("a/b", "c", "u", {"X-Meta-A": "1"})
    await exchange(path, post("/images/create?fromImage=a", b"", "X-Registry-Auth: %%%", "Connection: close"))
    assert fake.last("pull")[2]["auth"] is None


async def test_an_upload_streams_while_output_flows(path: str, fake: Fake) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"POST /images/load?quiet=0 HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n")
    await reader.readuntil(b"Loading")  # before a byte of the body was sent
    data = os.urandom(1 << 16)
    for _ in range(64):
        writer.write(b"10000\r\n" + data + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await reader.readuntil(b"0\r\n\r\n")
    assert fake.received == data * 64
    assert fake.last("load") == (False, ())
    writer.close()


async def test_archives_go_both_ways(path: str, fake: Fake) -> None:
    status, headers, _ = await ask(path, get("/containers/web/archive?path=/etc", method="HEAD"))
    assert status == 200
    stated = json.loads(base64.b64decode(headers[b"X-Docker-Container-Path-Stat"]))
    assert stated == {
        "name": "etc",
        "size": 4096,
        "mode": 2147484141,
        "mtime": "2024-01-01T00:00:00Z",
        "linkTarget": "",
    }
    answer = await exchange(path, get("/containers/web/archive?path=/etc", "Connection: close"))
    assert b"Content-Type: application/x-tar\r\n" in answer
    assert answer.count(b"x" * 1000) == 3
    status, _, body = await ask(
        path, get("/containers/web/archive?path=/tmp&copyUIDGID=1", method="PUT", body=b"tar" * 100000)
    )
    assert (status, body, fake.received) == (200, b"", b"tar" * 100000)
    assert fake.last("write")[2] == {"no_overwrite_dir_non_dir": False, "copy_uid_gid": True}
    assert (await ask(path, get("/containers/web/archive", method="HEAD")))[0] == 400


async def test_a_download_that_fails_late_is_cut(path: str, fake: Fake) -> None:
    fake.tty = True
    answer = await exchange(path, get("/containers/web/export"))
    assert not answer.endswith(b"0\r\n\r\n")
    assert fake.cancelled == ["bytes"]


async def test_events_flush_their_head_and_are_shaped(path: str, fake: Fake) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(get("/v1.45/events?since=1.5&filters=%7B%22type%22%3A%5B%22container%22%5D%7D"))
    assert b"application/json\r\n" in await reader.readuntil(b"\r\n\r\n")
    assert fake.last("events") == (1_500_000_000, 0, {"type": ["container"]})
    fake.gate.set()
    body = await reader.readuntil(b"0\r\n\r\n")
    lines = [json.loads(line) for line in body.split(b"\r\n") if line.startswith(b"{")]
    assert [line["status"] for line in lines] == ["start"]  # no image create before 1.46
    assert (lines[0]["from"], lines[0]["id"]) == ("busybox", ID)
    writer.close()


@pytest.mark.parametrize(
    ("accept", "content_type", "prefix"),
    [
        ("", b"application/jsonl", b"{"),
        ("application/x-ndjson", b"application/x-ndjson", b"{"),
        ("application/json-seq", b"application/json-seq", b"\x1e{"),
    ],
)
async def test_event_formats_are_negotiated(
    path: str, fake: Fake, accept: str, content_type: bytes, prefix: bytes
) -> None:
    fake.gate.set()
    answer = await exchange(path, get("/events", f"Accept: {accept}", "Connection: close"))
    assert b"Content-Type: " + content_type + b"\r\n" in answer
    assert b"\r\n" + prefix in answer
    assert b'"status"' not in answer


async def test_stats_stream_until_the_client_goes(path: str, fake: Fake) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(get("/containers/web/stats"))
    for _ in range(3):
        await reader.readuntil(b'"os_type":"linux"')
    writer.close()
    await until(lambda: fake.cancelled == ["stats"])
    status, _, body = await ask(path, get("/containers/web/stats?stream=0&one-shot=1"))
    assert (status, json.loads(body)["id"]) == (200, ID)
    assert fake.last("stats") == (False, True)
    assert (await ask(path, get("/containers/none/stats")))[0] == 404


async def test_names_contain_slashes(path: str, fake: Fake) -> None:
    await ask(path, get("/v1.47/images/host:5000/a/b:c/history"))
    await ask(path, get("/v1.47/images/a%2Fb/history"))
    assert [arguments for verb, arguments in fake.calls if verb == "history"] == [
        ("host:5000/a/b:c", ""),
        ("a/b", ""),
    ]
    assert (await ask(path, get("/networks/")))[0] == 200


async def test_missing_parts_are_named(path: str) -> None:
    status, _, body = await ask(path, post("/build"))
    assert (status, json.loads(body)) == (501, {"message": "building images is not available in this daemon"})
    status, _, body = await ask(path, post("/build?version=2"))
    assert (status, b"DOCKER_BUILDKIT=0" in body) == (501, True)


async def test_responses_are_shaped_by_version(path: str) -> None:
    new = json.loads((await ask(path, get("/v1.52/containers/web/json")))[2])
    old = json.loads((await ask(path, get("/v1.43/containers/web/json")))[2])
    assert "IPAddress" not in new["NetworkSettings"]
    assert old["NetworkSettings"]["IPAddress"] == "172.17.0.2"
    assert old["NetworkSettings"]["Networks"]["bridge"]["Aliases"] == ["a", ID[:12]]
    assert "DNSNames" not in old["NetworkSettings"]["Networks"]["bridge"]
    assert old["GraphDriver"] == {"Data": None, "Name": "overlayfs"}
    assert json.loads((await ask(path, get("/v1.43/images/json")))[2])[0]["VirtualSize"] == 5
    assert "VirtualSize" not in json.loads((await ask(path, get("/v1.44/images/json")))[2])[0]
    assert json.loads((await ask(path, get("/v1.41/system/df")))[2])["LayersSize"] == 7
    assert json.loads((await ask(path, get("/v1.55/system/df")))[2])["ImageUsage"]["TotalSize"] == 7


async def test_volumes_are_created_without_a_swarm(path: str) -> None:
    status, _, body = await ask(path, post("/volumes/create", b'{"Name":"data"}'))
    assert status == 201
    assert json.loads(body).keys() == {"Name", "Driver", "Mountpoint", "Labels", "Scope", "Options"}
    assert (await ask(path, post("/volumes/create", b'{"ClusterVolumeSpec":{}}')))[0] == 503


async def test_volume_prune_means_all_for_old_clients(path: str) -> None:
    assert json.loads((await ask(path, post("/v1.41/volumes/prune")))[2])["VolumesDeleted"] == ["true"]
    assert json.loads((await ask(path, post("/v1.42/volumes/prune")))[2])["VolumesDeleted"] == []


async def test_keep_alive_serves_many_requests(path: str) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    for _ in range(3):
        writer.write(get("/_ping"))
        assert (await reader.readuntil(b"\r\n\r\nOK")).startswith(b"HTTP/1.1 200 OK")
    writer.write(get("/_ping") * 5)  # pipelined
    for _ in range(5):
        await reader.readuntil(b"\r\n\r\nOK")
    writer.close()


async def test_the_socket_is_private_and_taken_once(path: str, fake: Fake) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(Conflict, match="another daemon"):
        async with serving(fake, Listener(url=f"unix://{path}")):
            pass
    assert (await ask(path, get("/_ping")))[0] == 200


async def test_a_stale_socket_is_replaced_and_a_file_is_not(tmp_path: Path, fake: Fake) -> None:
    import socket

    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    async with serving(fake, Listener(url=f"unix://{stale}")):
        assert (await ask(str(stale), get("/_ping")))[0] == 200
    assert not stale.exists()
    stale.write_text("precious")
    with pytest.raises(Conflict, match="no socket"):
        async with serving(fake, Listener(url=f"unix://{stale}")):
            pass
    assert stale.read_text() == "precious"
