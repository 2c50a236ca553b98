"""Root file systems assembled from Debian packages, without running their scripts: quick, and no chroot needed.

apt works out the closure of the wanted packages against an empty dpkg status and fetches it; dpkg-deb unpacks it
into a folder; the few files that the packages' scripts would have made are written here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from images.archive import MTIME, Image
from images.busybox import PATH


def closure(packages: Sequence[str], downloads: Path) -> list[Path]:
    """Fetch the packages and all they depend on; the .deb files, sorted by name."""
    (downloads / "partial").mkdir(parents=True, exist_ok=True)
    _apt(["--download-only", "install", *packages], downloads)
    return sorted(downloads.glob("*.deb"))


def names(packages: Sequence[str], downloads: Path) -> list[str]:
    """The names of the packages and all they depend on; nothing is fetched."""
    told = _apt(["--simulate", "install", *packages], downloads)
    return [line.split()[1] for line in told.splitlines() if line.startswith("Inst ")]


def _apt(words: Sequence[str], downloads: Path) -> str:
    """apt-get as if nothing were installed; what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        status = Path(folder) / "status"
        status.touch()
        settings = {
            "Dir::State::status": status,
            "Dir::Cache::archives": downloads,
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Debug::NoLocking": "true",
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        command = ["apt-get", *options, "--yes", *words]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
        )
    return done.stdout


def unpack(debs: Sequence[Path], root: Path) -> None:
    """Unpack packages into a merged-/usr tree."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for deb in debs:
        # tar keeps the links /bin, /lib, … only when told to: packages still ship files below them.
        data = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
        subprocess.run(["tar", "-C", str(root), "-x", "--keep-directory-symlink"], stdin=data.stdout, check=True)
        if data.stdout is not None:
            data.stdout.close()
        if data.wait() != 0:
            raise RuntimeError(f"dpkg-deb could not read {deb}")


def tree_tar(root: Path) -> bytes:
    """A folder as a layer: sorted by name, times fixed, owners kept."""
    with tempfile.TemporaryFile() as out:
        subprocess.run(
            [
                *("tar", "-C", str(root), "--sort=name", f"--mtime=@{MTIME}", "--numeric-owner"),
                *("--format=pax", "--pax-option=delete=atime,delete=ctime", "-c", "."),
            ],
            stdout=out,
            check=True,
        )
        out.seek(0)
        return out.read()


NGINX_PACKAGES = ("nginx", "bash", "dash", "coreutils", "socat", "procps")

PAGE = "<!DOCTYPE html><title>Welcome to nginx!</title><h1>Welcome to nginx!</h1>\n"

SITE = """server {
    listen 80 default_server;
    listen [::]:80 default_server;
    root /var/www/html;
    location / { try_files $uri $uri/ =404; }
}
"""


def nginx(downloads: Path) -> Image:
    """nginx from Debian, logging to its standard streams, with a shell and socat beside it."""
    debs = closure(NGINX_PACKAGES, downloads)
    with tempfile.TemporaryDirectory(dir=downloads.parent) as folder:
        root = Path(folder)
        root.chmod(0o755)
        unpack(debs, root)
        for unwanted in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/perl5", "usr/lib/perl5"):
            shutil.rmtree(root / unwanted, ignore_errors=True)
        etc = root / "etc"
        (etc / "passwd").write_text(
            "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n"
        )
        (etc / "group").write_text("root:x:0:\nwww-data:x:33:\nadm:x:4:\n")
        for path in ("root", "tmp", "proc", "sys", "dev", "run", "var/www/html", "var/log/nginx", "var/lib/nginx"):
            (root / path).mkdir(parents=True, exist_ok=True)
        (root / "tmp").chmod(0o1777)
        (root / "var/www/html/index.html").write_text(PAGE)
        (etc / "nginx/sites-enabled").mkdir(exist_ok=True)
        (etc / "nginx/sites-enabled/default").unlink(missing_ok=True)
        (etc / "nginx/sites-enabled/default").write_text(SITE)
        for stream, name in (("stdout", "access.log"), ("stderr", "error.log")):
            (root / "var/log/nginx" / name).unlink(missing_ok=True)
            (root / "var/log/nginx" / name).symlink_to(f"/dev/{stream}")
        if not (root / "usr/bin/sh").exists():
            (root / "usr/bin/sh").symlink_to("dash")
        layer = tree_tar(root)
    config = {
        "Env": [PATH],
        "Cmd": ["nginx", "-g", "daemon off;"],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT",
    }
    return Image([layer], config, ["nginx:latest"])


MARIADB_PACKAGES = ("mariadb-server-core", "mariadb-client-core", "dash", "coreutils")

MARIADB_ENTRY = """#!/bin/sh
set -e
if [ ! -d /var/lib/mysql/mysql ]; then
    {
        printf 'CREATE DATABASE mysql;\\nUSE mysql;\\n'
        printf "SET @auth_root_socket=NULL;\\n"
        cd /usr/share/mysql
        cat m*_system_tables.sql m*_performance_tables.sql m*_system_tables_data.sql
    } | mariadbd --bootstrap --user=mysql --datadir=/var/lib/mysql
fi
exec mariadbd --user=mysql --datadir=/var/lib/mysql --skip-networking --innodb-use-native-aio=0
"""


def mariadb(downloads: Path) -> Image:
    """MariaDB from Debian, its data in a volume at /var/lib/mysql, made at the first start."""
    debs = closure(MARIADB_PACKAGES, downloads)
    with tempfile.TemporaryDirectory(dir=downloads.parent) as folder:
        root = Path(folder)
        root.chmod(0o755)
        unpack(debs, root)
        for unwanted in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/perl5", "usr/lib/perl5"):
            shutil.rmtree(root / unwanted, ignore_errors=True)
        (root / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\nmysql:x:100:101::/nonexistent:/bin/false\n"
        )
        (root / "etc/group").write_text("root:x:0:\nmysql:x:101:\n")
        for path in ("root", "tmp", "proc", "sys", "dev", "run/mysqld", "var/lib/mysql"):
            (root / path).mkdir(parents=True, exist_ok=True)
        (root / "tmp").chmod(0o1777)
        for path in ("run/mysqld", "var/lib/mysql"):
            os.chown(root / path, 100, 101)
        if not (root / "usr/bin/sh").exists():
            (root / "usr/bin/sh").symlink_to("dash")
        (root / "entry").write_text(MARIADB_ENTRY)
        (root / "entry").chmod(0o755)
        layer = tree_tar(root)
    config = {"Env": [PATH], "Cmd": ["/entry"], "Volumes": {"/var/lib/mysql": {}}}
    return Image([layer], config, ["mariadb:latest"])


def is_tar(path: Path) -> bool:
    """Whether a file is there and a whole tar."""
    return path.exists() and tarfile.is_tarfile(path)
