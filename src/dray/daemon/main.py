"""drayd: read the configuration, start the zygote, then the loop, and serve until told to stop.

The order matters. The zygote is started first, while the process has one thread and no loop: only it and the shims
ever fork. Then the state is read, the shims are found again, the network is put right, and only when everything
acknowledged earlier is there the sockets answer.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dray.base.errors import Conflict, DrayError
from dray.base.files import owned_fd
from dray.daemon import config as configuration
from dray.daemon.config import DaemonConfig

log = logging.getLogger("dray.daemon")

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR,
           "fatal": logging.CRITICAL}  # fmt: skip


class _TextFormatter(logging.Formatter):
    """One line per record, as dockerd writes them: time="…" level=… msg="…"."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return f'time="{moment}.{int(record.msecs * 1e6):09d}Z" level={record.levelname.lower()} msg={json.dumps(text)}'


class _JSONFormatter(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return json.dumps({"level": record.levelname.lower(), "msg": text, "time": f"{moment}Z"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; the exit status is 0 after a requested stop, 1 if it could not start or serve."""
    try:
        config, validate = configuration.load(sys.argv[1:] if arguments is None else arguments)
    except DrayError as error:
        print(f"drayd: {error}\nSee 'drayd --help'.", file=sys.stderr)
        return 1
    if validate:
        print("configuration OK")
        return 0
    if os.geteuid() != 0:
        print(
            "drayd: it needs to be started as root: it mounts file systems and makes namespaces", file=sys.stderr
        )
        return 1
    _set_up_log(config)
    try:
        return _run(config)
    except (DrayError, OSError) as error:
        log.debug("the daemon ends", exc_info=error)
        print(f"drayd: {error}", file=sys.stderr)
        return 1


def _raise_descriptor_limit() -> None:
    """Allow as many connections as the hard limit does; containers, which the zygote starts, keep what they had."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _set_up_log(config: DaemonConfig) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JSONFormatter() if config["log-format"] == "json" else _TextFormatter())
    logging.basicConfig(level=_LEVELS[config.log_level], handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _run(config: DaemonConfig) -> int:
    gc.disable()  # nothing that the start makes is garbage: a sixth of its time; `serve` turns it on again
    from dray.shim.spawn import Zygote

    os.umask(0o022)
    pidfile = _PidFile(config["pidfile"])
    with contextlib.ExitStack() as stack:
        for key in ("data-root", "exec-root"):
            stack.enter_context(_locked(config[key], key))
        pidfile.take()
        stack.callback(pidfile.release)
        zygote = Zygote.spawn()
        _raise_descriptor_limit()
        try:
            import asyncio

            from dray.daemon.wiring import serve

            return asyncio.run(serve(config, zygote))
        finally:
            zygote.close()


@contextlib.contextmanager
def _locked(directory: str, key: str) -> Iterator[None]:
    """Keep a directory for this daemon alone: two would undo each other's work. The kernel lets go with the process."""
    os.makedirs(directory, mode=0o711, exist_ok=True)
    path = os.path.join(directory, "dray.lock")
    with owned_fd(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another drayd uses {directory} (it holds {path}): stop it, or choose another folder with --{key}"
            ) from None
        yield


class _PidFile:
    """The daemon's pid file: at most one daemon per file."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def take(self) -> None:
        """Write our pid; Conflict if a daemon of that file lives."""
        if self._path.exists():
            text = self._path.read_text().strip()
            if text.isdigit() and int(text) != os.getpid() and _is_daemon(int(text)):
                raise Conflict(
                    f"process with PID {text} is still running: ensure drayd is not running or delete {self._path}"
                )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(str(os.getpid()))

    def release(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


def _is_daemon(pid: int) -> bool:
    """Tell whether a pid belongs to a daemon; the number may be another process's by now."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"dray.daemon" in command or b"drayd" in command


if __name__ == "__main__":
    sys.exit(main())
