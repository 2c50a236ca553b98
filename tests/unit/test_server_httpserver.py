"""The server loads aiohttp without its client, and leaves aiohttp whole for others."""

from __future__ import annotations

import os
import subprocess
import sys


def run(program: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    return done.stdout.strip()


def test_the_client_stays_out() -> None:
    program = (
        "import dray.server.listeners, sys; print([n for n in sys.modules if n.startswith('aiohttp.client')])"
    )
    assert run(program) == "['aiohttp.client_exceptions']"


def test_others_find_all_of_aiohttp() -> None:
    program = (
        "import dray.server.app, aiohttp\n"
        "from aiohttp import ClientSession, web\n"
        "from dray.server.httpserver import Response\n"
        "print(aiohttp.__version__ != '', aiohttp.ClientTimeout is not None, web.Response is Response)"
    )
    assert run(program) == "True True True"


def test_aiohttp_may_be_there_already() -> None:
    assert run("import aiohttp, dray.server.app; print(aiohttp.ClientSession.__name__)") == "ClientSession"
