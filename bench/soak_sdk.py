"""The calls that programs make most by docker-py, over and over: the daemon's descriptors and memory stay flat.

    python -m soak_sdk [--rounds 200]

A round makes a container, starts, inspects, execs in, reads logs, stats and top, copies in and out, streams events,
waits, commits, removes; makes and removes a network and a volume; lists everything. The first rounds warm up and are
not counted. The exit status is 1 when something grew.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from soak import memory

from conftest import House
from images import cache
from support.leaks import descriptors
from support.world import World

WARM = 20


def tar_of(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def one_round(client: Any, number: int) -> None:
    client.ping()
    client.version()
    client.info()
    network = client.networks.create(f"sdk-{number}")
    volume = client.volumes.create(f"sdk-{number}", labels={"round": str(number)})
    box = client.containers.create(
        "busybox",
        ["sh", "-c", "echo ready; cat /data/file; exec sleep 600"],
        name=f"sdk-{number}",
        network=network.name,
        volumes={volume.name: {"bind": "/data"}},
        environment={"A": "B"},
        labels={"soak": "sdk"},
        mem_limit="64m",
    )
    assert box.put_archive("/data", tar_of("file", b"content\n"))
    box.start()
    assert box.exec_run(["echo", "in"]).output == b"in\n"
    code, output = box.exec_run(["sh", "-c", "echo out; exit 3"], demux=True)
    assert (code, output[0]) == (3, b"out\n")
    stream, status = box.get_archive("/data/file")
    assert len(b"".join(stream)) >= 512
    assert status["size"] == 8
    assert b"ready" in box.logs()
    follow = box.logs(stream=True, follow=True)
    assert next(follow)
    follow.close()
    attached = box.attach_socket(params={"stdout": 1, "stream": 1})
    attached.close()
    box.stats(stream=False)
    box.top()
    box.diff()
    box.pause()
    box.unpause()
    box.rename(f"sdk-{number}-again")
    box.reload()
    events = client.events(since=int(time.time()) - 60, until=int(time.time()) + 1, decode=True)
    assert any(event["Type"] == "container" for event in events)
    box.kill()
    assert box.wait()["StatusCode"] == 137
    image = box.commit(repository="sdk", tag=str(number))
    box.remove(v=True)
    assert client.containers.run("busybox", ["echo", "run"], remove=True) == b"run\n"
    client.images.remove(image.id)
    volume.remove()
    network.remove()
    client.containers.list(all=True, filters={"label": "soak=sdk"})
    client.images.list()
    client.networks.list()
    client.volumes.list()
    client.df()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="soak_sdk", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cache.busybox_archive()
    cache.nginx_archive()
    world = World()
    world.enter()
    house = House(world, "drayd")
    try:
        engine = house.up()
        begin = time.monotonic()
        with engine.sdk() as client:
            for number in range(WARM):
                one_round(client, number)
            time.sleep(1)
            before = (sum(descriptors(engine.pid).values()), memory(engine.pid))
            for number in range(WARM, WARM + options.rounds):
                one_round(client, number)
            time.sleep(2)
            after = (sum(descriptors(engine.pid).values()), memory(engine.pid))
        left = house.leaks()
    finally:
        if os.environ.get("SOAK_KEEP_LOG") and house.engine is not None:
            Path(os.environ["SOAK_KEEP_LOG"]).write_bytes(house.engine.log.read_bytes())
        house.down()
        world.leave()
    report = {
        "rounds": options.rounds,
        "seconds": round(time.monotonic() - begin, 1),
        "descriptors of the daemon, before and after": [before[0], after[0]],
        "private KiB of the daemon, before and after": [before[1], after[1]],
        "left behind": left,
    }
    print(json.dumps(report, indent=1))
    return 1 if left or after[0] > before[0] + 5 or after[1] > before[1] + (16 << 10) else 0


if __name__ == "__main__":
    sys.exit(main())
