"""A large image as Debian's packages make it: twelve layers, 1 GB, documentation and all."""

from __future__ import annotations

import tempfile
from pathlib import Path

from images.archive import Image
from images.busybox import PATH
from images.debian import closure, tree_tar, unpack

# Twelve groups: a layer has what its group needs and no layer below has. About 1 GB in 40,000 files.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("bash", "dash", "coreutils", "procps"),
    ("perl", "openssl", "ca-certificates"),
    ("python3",),
    ("git",),
    ("gcc-12",),
    ("g++-12", "make"),
    ("golang-1.19-src",),
    ("libboost1.74-dev",),
    ("openjdk-17-jre-headless",),
    ("python3-numpy", "python3-scipy", "python3-sympy"),
    ("vim-runtime", "ruby3.1"),
    ("postgresql-15", "php8.2-cli"),
)


def stack(downloads: Path) -> Image:
    """stack:latest, twelve layers of what Debian's packages put on a machine, documentation and all."""
    layers: list[bytes] = []
    known: set[Path] = set()
    for number in range(len(GROUPS)):
        wanted = [name for group in GROUPS[: number + 1] for name in group]
        debs = [deb for deb in closure(wanted, downloads) if deb not in known]
        known.update(debs)
        with tempfile.TemporaryDirectory(dir=downloads.parent) as folder:
            root = Path(folder)
            root.chmod(0o755)
            unpack(debs, root)
            if not layers:
                for path in ("root", "tmp", "proc", "sys", "dev"):
                    (root / path).mkdir(exist_ok=True)
                (root / "tmp").chmod(0o1777)
                (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
            layers.append(tree_tar(root))
    return Image(layers, {"Env": [PATH], "Cmd": ["bash"]}, ["docker.io/library/stack:latest"])
