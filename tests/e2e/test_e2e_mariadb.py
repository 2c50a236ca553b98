"""A database whose data outlives its container: MariaDB from Debian's packages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from images.debian import MARIADB_ENTRY
from support.engines import Engine, until


def ask(engine: Engine, statement: str) -> str:
    return engine.ok("exec", "db", "mariadb", "-N", "-e", statement)


LISTENS = MARIADB_ENTRY.replace(" --skip-networking", "")


def start(engine: Engine, *, network: str = "none") -> None:
    command = () if network == "none" else ("sh", "-c", LISTENS)
    engine.ok(
        "run", "-d", "--name", "db", "--network", network, "-v", "dbdata:/var/lib/mysql", "mariadb", *command
    )
    until(
        lambda: engine.docker("exec", "db", "mariadb", "-e", "SELECT 1").returncode == 0,
        timeout=60,
        what="MariaDB to answer: " + engine.docker("logs", "db").stderr[-2000:],
    )


def test_a_database_survives_its_container(engine: Engine) -> None:
    from images import cache

    engine.load(cache.mariadb_archive())
    start(engine)
    ask(engine, "CREATE DATABASE shop; CREATE TABLE shop.t (a INT, b TEXT); INSERT INTO shop.t VALUES (1, 'kept')")
    engine.ok("stop", "-t", "30", "db")
    engine.ok("rm", "db")
    start(engine)
    assert ask(engine, "SELECT a, b FROM shop.t").split() == ["1", "kept"]
    ask(engine, "INSERT INTO shop.t VALUES (2, 'again')")
    engine.ok("rm", "-f", "db")
    start(engine)
    assert ask(engine, "SELECT COUNT(*) FROM shop.t") == "2", "InnoDB recovered what was committed"
    engine.ok("rm", "-f", "-v", "db")
    assert engine.ok("volume", "ls", "-q") == "dbdata"


APP = """
try=0
until mariadb -h db -u app -psecret shop -e "INSERT INTO visits VALUES ('$(cat /etc/hostname)')"; do
    try=$((try+1)); [ $try -lt 100 ] || exit 1
    sleep 0.1
done 2>/tmp/err
mariadb -N -h db -u app -psecret shop -e 'SELECT who FROM visits'
"""


@pytest.fixture
def shop(engine: Engine) -> Iterator[Engine]:
    engine.ok("network", "create", "shop")
    yield engine
    engine.remove_everything()
    engine.ok("network", "rm", "shop")


def test_an_application_finds_its_database_by_name(shop: Engine) -> None:
    """Two containers on a network of their own; the database is replaced by another container of the same name."""
    from images import cache

    shop.load(cache.mariadb_archive())
    start(shop, network="shop")
    ask(shop, "CREATE DATABASE shop; CREATE TABLE shop.visits (who TEXT)")
    ask(shop, "CREATE USER app@'%' IDENTIFIED BY 'secret'; GRANT ALL ON shop.* TO app@'%'")
    application = ("run", "--rm", "--network", "shop", "--entrypoint", "sh")
    assert shop.ok(*application, "-h", "first", "mariadb", "-c", APP) == "first"
    shop.ok("rm", "-f", "db")
    shop.ok("run", "-d", "--name", "filler", "--network", "shop", "busybox", "sleep", "600")  # takes its address
    start(shop, network="shop")
    assert shop.ok(*application, "-h", "second", "mariadb", "-c", APP).split() == ["first", "second"]
    elsewhere = shop.docker(
        "run", "--rm", "--entrypoint", "sh", "mariadb", "-c", "mariadb -h db -u app -psecret shop"
    )
    assert elsewhere.returncode != 0, "the name is known in its network alone"
