"""The busybox image and its variants, from Debian's busybox-static.

`busybox:latest` is one layer: the program, a link for each applet, /etc/passwd, /etc/group and the usual folders.
The variants share that layer and differ in their configuration; `variants:volume` has a second layer.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from images.archive import Entry, Image, folder, layer_tar, link, text

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
app:x:1000:1000:An application:/home/app:/bin/sh
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = """root:x:0:
daemon:x:1:
tape:x:26:app
app:x:1000:
extra:x:2000:app
nogroup:x:65534:
"""


def binary() -> Path:
    """The statically linked busybox of this machine."""
    path = Path("/usr/bin/busybox")
    return path if path.exists() else Path("/bin/busybox")


def base_layer() -> bytes:
    """The one layer of busybox:latest."""
    program = binary()
    applets = subprocess.run([str(program), "--list"], capture_output=True, text=True, check=True).stdout.split()
    entries = [
        folder("bin/"),
        Entry("bin/busybox", data=program.read_bytes()),
        *(link(f"bin/{name}", "busybox") for name in sorted(applets) if name != "busybox"),
        folder("etc/"),
        text("etc/passwd", PASSWD),
        text("etc/group", GROUP),
        text("etc/shadow", "root:*:19000:0:99999:7:::\n", mode=0o600),
        folder("home/"),
        folder("home/app/", uid=1000, gid=1000),
        folder("proc/"),
        folder("sys/"),
        folder("dev/"),
        folder("root/", mode=0o700),
        folder("tmp/", mode=0o1777),
        folder("usr/"),
        folder("var/"),
        folder("var/www/"),
        text("var/www/index.html", "busybox page\n"),
    ]
    return layer_tar(entries)


def variants(layer: bytes) -> list[Image]:
    """All images of the archive, busybox:latest first."""
    base: dict[str, Any] = {"Env": [PATH], "Cmd": ["sh"]}
    data = layer_tar(
        [
            folder("data/", uid=1000, gid=1000, mode=0o750),
            text("data/file", "from the image\n", uid=1000, gid=1000),
            folder("data/sub/"),
            link("data/sub/link", "../file"),
        ]
    )
    return [
        Image([layer], base, ["busybox:latest"]),
        Image([layer, data], base | {"Volumes": {"/data": {}}}, ["variants:volume"]),
        Image([layer], base | {"Entrypoint": ["/bin/echo", "entry"], "Cmd": ["default"]}, ["variants:entrypoint"]),
        Image(
            [layer],
            base | {"User": "app", "WorkingDir": "/home/app/work", "Env": [PATH, "COLOUR=blue", "EMPTY="]},
            ["variants:user"],
        ),
        Image(
            [layer],
            base
            | {
                "Cmd": ["sleep", "600"],
                "Healthcheck": {
                    "Test": ["CMD-SHELL", "test -f /tmp/ok"],
                    "Interval": 1_000_000_000,
                    "Timeout": 2_000_000_000,
                    "Retries": 1,
                },
            },
            ["variants:healthy"],
        ),
        Image(
            [layer],
            base
            | {
                "Cmd": ["httpd", "-f", "-p", "80", "-h", "/var/www"],
                "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
                "StopSignal": "SIGINT",
                "Labels": {"org.example.role": "web", "org.example.note": "a b"},
            },
            ["variants:web"],
        ),
    ]
