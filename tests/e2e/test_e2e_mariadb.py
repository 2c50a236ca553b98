"""A database whose data outlives its container: MariaDB from Debian's packages."""

from __future__ import annotations

from support.engines import Engine, until


def ask(engine: Engine, statement: str) -> str:
    return engine.ok("exec", "db", "mariadb", "-N", "-e", statement)


def start(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "db", "--network", "none", "-v", "dbdata:/var/lib/mysql", "mariadb")
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
