"""`store.metadata`: atomic, surviving a killed process, fast to open."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dray.base.errors import Internal
from dray.base.records import Change
from dray.store.metadata import Metadata


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "metadata.db"


def test_round_trip_and_removal(database: Path) -> None:
    records = Metadata(database)
    records.write([Change("image", "b", b"2"), Change("image", "a", b"1"), Change("volume", "a", b"3")])
    assert records.get("image", "a") == b"1"
    assert records.scan("image") == [("a", b"1"), ("b", b"2")]
    records.write([Change("image", "a", None), Change("image", "b", b"4")])
    records.close()
    again = Metadata(database)
    assert again.scan("image") == [("b", b"4")]
    assert again.get("image", "a") is None
    assert again.get("volume", "a") == b"3"
    again.close()


def test_a_failing_write_changes_nothing(database: Path) -> None:
    records = Metadata(database)
    records.write([Change("k", "a", b"1")])
    with pytest.raises(sqlite3.Error):
        records.write([Change("k", "a", b"2"), Change("k", object(), b"x")])  # type: ignore[arg-type]
    assert records.get("k", "a") == b"1"
    records.write([Change("k", "b", b"3")])
    assert records.get("k", "b") == b"3"
    records.close()


def test_survives_kill(database: Path) -> None:
    script = (
        "import sys; from dray.store.metadata import Metadata; from dray.base.records import Change\n"
        "records = Metadata(sys.argv[1]); number = 0\n"
        "while True:\n"
        "    records.write([Change('k', str(number), b'x' * 500), Change('last', 'n', str(number).encode())])\n"
        "    print(number, flush=True); number += 1\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(database)], stdout=subprocess.PIPE)
    assert process.stdout
    for _ in range(200):
        acknowledged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
    process.stdout.close()
    records = Metadata(database)
    last = int(records.get("last", "n") or b"-1")
    assert last >= acknowledged
    assert len(records.scan("k")) == last + 1
    records.close()


def test_concurrent_writers_and_syncs(database: Path) -> None:
    records = Metadata(database)

    def work(name: str) -> None:
        for number in range(50):
            records.write([Change(name, str(number), b"v")])
            records.sync()

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(records.scan(f"t{n}")) == 50 for n in range(4))
    records.close()


def test_the_log_is_folded_in(database: Path) -> None:
    records = Metadata(database)
    for number in range(3000):
        records.write([Change("k", str(number % 10), b"x" * 4000)])
    records.sync()
    assert os.stat(database).st_size > 4096
    for number in range(3000):
        records.write([Change("k", str(number % 10), b"y" * 4000)])
    records.sync()
    assert os.stat(f"{database}-wal").st_size < 100 << 20
    records.close()
    assert sqlite3.connect(database).execute("SELECT count(*) FROM record").fetchone() == (10,)


def test_a_newer_schema_is_refused(database: Path) -> None:
    Metadata(database).close()
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(Internal, match="schema version 99"):
        Metadata(database)


def test_a_damaged_file_is_named(database: Path) -> None:
    database.write_bytes(b"this is no database" * 100)
    with pytest.raises(Internal, match=r"metadata\.db"):
        Metadata(database)


def test_private(database: Path) -> None:
    Metadata(database).close()
    assert os.stat(database).st_mode & 0o077 == 0


def test_a_program_that_looks_at_the_database_does_not_take_the_log_away(database: Path) -> None:
    look = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT key FROM record').fetchall())"

    def keys() -> str:
        done = subprocess.run(
            [sys.executable, "-c", look, str(database)], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    records = Metadata(database)
    records.write([Change("k", "a", b"1")])
    assert keys() == "[('a',)]"
    records.write([Change("k", "b", b"2")])
    assert keys() == "[('a',), ('b',)]"
    records.close()


def _limited(database: Path, script: str) -> str:
    """Run a script that may not make any file larger than the database is: a disk that is full."""
    program = (
        "import resource, signal, sys\n"
        "from dray.base.records import Change; from dray.store.metadata import Metadata\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + script, str(database), str(64 << 10)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() + done.stderr.strip()


def test_opening_writes_nothing_once_the_schema_is_there(database: Path) -> None:
    Metadata(database).close()
    records = Metadata(database)
    assert Path(f"{database}-wal").stat().st_size == 0
    records.close()


def test_a_full_disk_is_told_with_the_file_and_what_to_do(database: Path) -> None:
    Metadata(database).close()
    told = _limited(
        database,
        "records = Metadata(sys.argv[1])\n"
        "try: records.write([Change('k', 'a', b'x' * 200000)])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "records.write([Change('k', 'b', b'small')]); print(records.scan('k'))",
    )
    assert told.startswith(f"Internal {database}: ")
    assert told.endswith("[('b', b'small')]")


def test_a_damaged_database_is_told_with_the_file(database: Path) -> None:
    records = Metadata(database)
    records.write([Change("k", str(number), b"x" * 3000) for number in range(50)])
    records.close()
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(60000))
    with pytest.raises(Internal, match=str(database)):
        Metadata(database).scan("k")
