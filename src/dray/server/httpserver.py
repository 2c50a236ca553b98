"""The server's half of aiohttp.

``import aiohttp`` also loads aiohttp's HTTP client, which no daemon of ours uses: 110 ms and 7 MB. So its package is
first entered as an empty one whose submodules can be imported one by one. Whoever asks it for anything else, now or
later, gets the whole of it.

Everything of ours that needs aiohttp takes it from here.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any


def _enter_package() -> None:
    if "aiohttp" in sys.modules:
        return
    spec = importlib.util.find_spec("aiohttp")
    if spec is None or spec.loader is None or spec.submodule_search_locations is None:
        return  # the imports below say what is missing
    loader, folders = spec.loader, list(spec.submodule_search_locations)
    package = ModuleType("aiohttp")
    package.__spec__, package.__path__, package.__file__ = spec, folders, spec.origin
    package.__dict__["__version__"] = ""  # read by a submodule for a header that we set ourselves

    def find(name: str) -> Any:
        if name.startswith("__") or importlib.machinery.PathFinder.find_spec(f"aiohttp.{name}", folders):
            raise AttributeError(name)  # submodules are the import system's business
        del package.__dict__["__getattr__"]
        loader.exec_module(package)
        return getattr(package, name)

    package.__dict__["__getattr__"] = find
    sys.modules["aiohttp"] = package


_enter_package()

from aiohttp import hdrs  # noqa: E402
from aiohttp.streams import StreamReader  # noqa: E402
from aiohttp.web_protocol import RequestHandler  # noqa: E402
from aiohttp.web_request import BaseRequest  # noqa: E402
from aiohttp.web_response import Response, StreamResponse  # noqa: E402
from aiohttp.web_server import Server  # noqa: E402

__all__ = ["BaseRequest", "RequestHandler", "Response", "Server", "StreamReader", "StreamResponse", "hdrs"]
