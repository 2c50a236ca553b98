"""The create request from the socket to the spec: a real server, and an engine that stops before it writes.

Raw bytes go in as bodies; or they choose, through a generator seeded with them, fields of the request's structures
and values that are wrong in interesting ways. A status of 500 or more, or no answer, is a finding.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from typing import Any

import msgspec
from server_fakes import Fake, backends

from dray.api import models
from dray.base.errors import NotFound
from dray.engine import mounts, spec
from dray.engine.creation import Creator, Defaults
from dray.engine.merge import command, merged
from dray.engine.model import ContainerRecord
from dray.engine.remap import Remap
from dray.engine.sandbox import sandbox_ask
from dray.engine.spec import Facts, Machine
from dray.engine.validate import validate
from dray.linux.cgroups.facilities import Capabilities
from dray.server.listeners import Listener, Servers

TEXTS = [
    "", "x", "/", "/a", "..", "../..", "/a:/b", "/a:/b:ro", "a:/b:z,rw,rshared", ":::", "\0", "\n", "é" * 70, "a" * 300, "0", "-1",
    "99999999999999999999", "1:2:3", "root", "root:root", "4294967296", "host", "container:x", "container:", "private",
    "shareable", "bridge", "none", "default", "seccomp=unconfined", 'seccomp={"defaultAction":"SCMP_ACT_ALLOW"}',
    "seccomp={}", 'seccomp={"defaultAction":1,"syscalls":[1]}', "apparmor=x", "no-new-privileges", "label=disable",
    "systempaths=unconfined", "80/tcp", "80-90/udp", "90-80/tcp", "65536/tcp", "80/x", "ALL", "CAP_SYS_ADMIN", "NOPE",
    "net.ipv4.x", "kernel.shm_rmid_forced", "c 1:3 rwm", "a *:* rwm", "c 1:3", "b 99999999999:1 r", "/dev/null", "0-3,7",
    "0-99999999999", "3-1", ",", "always", "on-failure", "nope", "json-file", "max-size", "10m", "1e9", "10mm", "ctrl-p,q",
    "io.example=1", "=", "A=", "=A", "A=B", "127.0.0.1", "::1", "fe80::1%eth0", "999.1.1.1", "host-gateway", "x:host-gateway",
    "bind", "volume", "tmpfs", "image", "npipe", "cluster", "u0:0:1", "g0:1:99999999999", "02:42:ac:11:00:02", "\ud800",
]  # fmt: skip
NUMBERS = [
    0,
    1,
    -1,
    2,
    4,
    100,
    1000,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    -(2**63),
    6 << 20,
    0.5,
    1e308,
]


class Answers:
    """Makes values for the fields of structures; mostly of the right kind, sometimes of none."""

    def __init__(self, seed: bytes) -> None:
        self._random = random.Random(seed)

    def document(self, cls: type[msgspec.Struct], depth: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = {}
        fields = msgspec.structs.fields(cls)
        for field in self._random.sample(fields, min(len(fields), self._random.choice([1, 2, 3, 6]))):
            found[field.encode_name] = self.value(msgspec.inspect.type_info(field.type), depth + 1)
        return found

    def value(self, kind: Any, depth: int) -> Any:
        pick = self._random
        if depth > 6 or pick.random() < 0.05:
            return pick.choice([None, True, "x", 1, -1, 1.5, [], {}, [None], {"": None}, [[]], [{}], {"a": {}}])
        inspect = msgspec.inspect
        if isinstance(kind, inspect.UnionType):
            return self.value(pick.choice(kind.types), depth)
        if isinstance(kind, inspect.StructType):
            return self.document(kind.cls, depth)
        if isinstance(kind, inspect.ListType):
            return [self.value(kind.item_type, depth + 1) for _ in range(pick.choice([0, 1, 1, 2, 30]))]
        if isinstance(kind, inspect.DictType):
            return {
                pick.choice(TEXTS): self.value(kind.value_type, depth + 1) for _ in range(pick.choice([0, 1, 2]))
            }
        if isinstance(kind, inspect.IntType):
            return pick.choice(NUMBERS[:-2])
        if isinstance(kind, inspect.FloatType):
            return pick.choice(NUMBERS)
        if isinstance(kind, inspect.BoolType):
            return pick.random() < 0.5
        if isinstance(kind, inspect.NoneType):
            return None
        return pick.choice(TEXTS)


def body_of(data: bytes) -> bytes:
    """An odd first byte: what follows chooses a document. An even one: what follows is the body."""
    if not data or data[0] % 2 == 0:
        return data[1:]
    answers = Answers(data[1:])
    document = answers.document(models.ContainerConfig)
    document["Image"] = "busybox"
    document["HostConfig"] = answers.document(models.HostConfig)
    if data[0] % 4 == 1:
        document["NetworkingConfig"] = answers.document(models.NetworkingConfig)
    return json.dumps(document).encode()


class Engine(Fake):
    """Does what a creation and a start do with the ask, up to the OCI spec."""

    def __init__(self) -> None:
        super().__init__()
        self._creator = Creator(*[None] * 7, Defaults(), limits=_limits(), remap=Remap())  # type: ignore[arg-type]

    async def create(self, *arguments: Any) -> Any:
        _options, config, host, networking = arguments
        host = self._creator._with_defaults(host)
        warnings = validate(config, host, _limits(), cpus=4)
        whole = merged(config, models.ContainerConfig(cmd=["sh"], env=["PATH=/bin"]))
        _path, args = command(whole)
        whole.hostname = whole.hostname or "ab" * 6
        points = mounts.resolve(whole, host, mounts_of=_no_container)
        record = ContainerRecord(
            id="ab" * 32, name="x", created=1, config=whole, host_config=host, networking=networking,
            image_id="", image_ref="", manifest_digest="", path="", args=args, driver="vfs", mounts=points,
        )  # fmt: skip
        msgspec.json.encode(record)
        sandbox_ask(record)
        facts = Facts(
            id="ab" * 32,
            args=args,
            hosts="/h",
            hostname="/n",
            resolv_conf="/r",
            machine=Machine(kernel=(6, 1)),
            mounts=points,  # type: ignore[arg-type]
        )
        msgspec.json.encode(spec.build(whole, host, facts))
        msgspec.json.encode(networking)
        return models.ContainerCreateResponse(id="ab" * 32, warnings=warnings)


def _no_container(word: str) -> Any:
    raise NotFound(f"No such container: {word}")


def _limits() -> Capabilities:
    flags = {field.name: True for field in msgspec.structs.fields(Capabilities) if field.type is bool}
    return Capabilities(version=1, cpuset_cpus="0-3", cpuset_mems="0", **flags)


class Server:
    """One server for all inputs; its loop runs only while an input is served."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory(prefix="dray-fuzz-")
        self.path = f"{self._folder.name}/s"
        self._servers = Servers(backends(Engine()))
        self.loop.run_until_complete(self._servers.listen([Listener(url=f"unix://{self.path}")]))

    def ask(self, request: bytes) -> int:
        """The status of the answer; TimeoutError when there is none within ten seconds."""
        return self.loop.run_until_complete(asyncio.wait_for(self._ask(request), 10))

    async def _ask(self, request: bytes) -> int:
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            return int(head.split(b" ", 2)[1])
        finally:
            writer.close()
