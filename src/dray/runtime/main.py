"""The `dray-runtime` command: the built-in runtime with runc's verbs and flags.

State lies in --root (default /run/dray/runtime; see `runtime.state`). Errors go to stderr and, with --log, to a
file, as text or JSON; the exit status is 1, of `exec` 255, of `run` and `exec` in the foreground the program's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dray import __version__
from dray.base.errors import DrayError, Unsupported
from dray.linux import interpreter

Verb = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parser().parse_args(arguments)
    if options.verb in ("create", "run", "exec") and arguments is None:
        interpreter.reexec()
    try:
        if options.systemd_cgroup:
            raise Unsupported("--systemd-cgroup: the cgroup driver is cgroupfs; leave the flag out")
        from dray.runtime import verbs

        verb: Verb = getattr(verbs, f"do_{options.verb}")
        return verb(options)
    except (DrayError, OSError) as error:
        message = f"{error}"
        if options.verb in ("create", "run", "exec"):
            message = f"{options.verb} failed: unable to start container process: {message}"
        _log(options, message)
        print(f"dray-runtime: {message}", file=sys.stderr)
        return 255 if options.verb == "exec" else 1


def _log(options: argparse.Namespace, message: str) -> None:
    if not options.log:
        return
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if options.log_format == "json":
        line = json.dumps({"level": "error", "msg": message, "time": now})
    else:
        line = f"time={json.dumps(now)} level=error msg={json.dumps(message)}"
    with open(options.log, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    top = argparse.ArgumentParser(
        prog="dray-runtime", description="Run containers from OCI bundles.", allow_abbrev=False
    )
    top.add_argument("--root", type=Path, default=Path("/run/dray/runtime"), help="directory of container state")
    top.add_argument("--log", help="file for errors, besides stderr")
    top.add_argument("--log-format", choices=("text", "json"), default="text")
    top.add_argument("--debug", action="store_true", help="also print the plan of the root file system")
    top.add_argument("--systemd-cgroup", action="store_true", help="refused: cgroups are managed directly")
    top.add_argument("--rootless", choices=("true", "false", "auto"), default="auto", help=argparse.SUPPRESS)
    top.add_argument("-v", "--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, help: str, *, container: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help, description=help, allow_abbrev=False)
        if container:
            sub.add_argument("id", help="container id")
        return sub

    for name, help in (("create", "create a container"), ("run", "create and start a container")):
        _creation_flags(verb(name, help), run=name == "run")
    verb("start", "start a created container")
    verb("state", "print a container's state as JSON")
    kill = verb("kill", "send a signal to a container's init")
    kill.add_argument("signal", nargs="?", default="SIGTERM")
    kill.add_argument("-a", "--all", action="store_true", help="send it to every process")
    verb("delete", "remove a stopped container").add_argument(
        "-f", "--force", action="store_true", help="kill it first"
    )
    _exec_flags(verb("exec", "run a process in a container"))
    ps = verb("ps", "list the processes of a container")
    ps.add_argument("-f", "--format", choices=("table", "json"), default="table")
    ps.add_argument("ps_options", nargs=argparse.REMAINDER, help="options of ps(1), default -ef")
    verb("pause", "freeze a container")
    verb("resume", "thaw a container")
    _update_flags(verb("update", "change a container's resource limits"))
    events = verb("events", "print a container's numbers, and when it runs out of memory")
    events.add_argument("--interval", type=_seconds, default=5.0, help="between numbers, such as 5s (default)")
    events.add_argument("--stats", action="store_true", help="print the numbers once")
    writing = verb("checkpoint", "write a container's processes down, by criu")
    writing.add_argument("--leave-running", action="store_true", help="do not kill them afterwards")
    restoring = verb("restore", "create a container from a checkpoint, by criu")
    restoring.add_argument("-b", "--bundle", type=Path, default=Path(), help="directory with config.json")
    restoring.add_argument("-d", "--detach", action="store_true", help="do not wait for the container")
    restoring.add_argument("--pid-file", help="file for init's pid")
    restoring.add_argument("--console-socket", help=argparse.SUPPRESS)
    for sub in (writing, restoring):
        sub.add_argument("--image-path", type=Path, help="directory of the checkpoint (./checkpoint)")
    listing = verb("list", "list containers", container=False)
    listing.add_argument("-f", "--format", choices=("table", "json"), default="table")
    listing.add_argument("-q", "--quiet", action="store_true", help="ids only")
    spec = verb("spec", "write an example config.json", container=False)
    spec.add_argument("-b", "--bundle", type=Path, default=Path())
    spec.add_argument("--rootless", action="store_true", dest="rootless_spec")
    verb("features", "print what this runtime can do as JSON", container=False)
    return top


def _creation_flags(sub: argparse.ArgumentParser, *, run: bool) -> None:
    sub.add_argument("-b", "--bundle", type=Path, default=Path(), help="directory with config.json")
    sub.add_argument("--console-socket", help="unix socket that receives the terminal's master")
    sub.add_argument("--pid-file", help="file for init's pid")
    sub.add_argument("--no-pivot", action="store_true", help="MS_MOVE instead of pivot_root (ramdisks)")
    sub.add_argument("--preserve-fds", type=int, default=0, help="pass on this many descriptors from 3 on")
    sub.add_argument("--no-new-keyring", action="store_true", help="keep the caller's session keyring")
    if run:
        sub.add_argument("-d", "--detach", action="store_true", help="do not wait for the container")
        sub.add_argument("--keep", action="store_true", help="do not delete the container when it ends")


def _exec_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("command", nargs=argparse.REMAINDER)
    sub.add_argument("-p", "--process", type=Path, help="process.json")
    sub.add_argument("-d", "--detach", action="store_true")
    sub.add_argument("--pid-file")
    sub.add_argument("--console-socket")
    sub.add_argument("--cwd")
    sub.add_argument("-e", "--env", action="append", default=[])
    sub.add_argument("-t", "--tty", action="store_true")
    sub.add_argument("-u", "--user", help="UID[:GID]")
    sub.add_argument("-g", "--additional-gids", type=int, action="append", default=[])
    sub.add_argument("-c", "--cap", action="append", default=[])
    sub.add_argument("--no-new-privs", action="store_true")
    sub.add_argument("--apparmor")
    sub.add_argument("--process-label")
    sub.add_argument("--ignore-paused", action="store_true")
    sub.add_argument("--preserve-fds", type=int, default=0, help="pass on this many descriptors from 3 on")


def _update_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("-r", "--resources", help="file with an OCI resources object, - for stdin")
    numbers = ("blkio-weight", "cpu-period", "cpu-quota", "cpu-share", "cpu-burst", "cpu-idle", "pids-limit")
    for flag in (*numbers, "cpu-rt-period", "cpu-rt-runtime"):
        sub.add_argument(f"--{flag}", type=int)
    for flag in ("memory", "memory-reservation", "memory-swap", "cpuset-cpus", "cpuset-mems"):
        sub.add_argument(f"--{flag}")


def _seconds(text: str) -> float:
    """Read `5s`, `200ms` or `2m`."""
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)


class _Version(argparse.Action):
    """Prints the version in lines, as runc does: engines read the one that begins with `spec:`."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(_version())
        parser.exit()


def _version() -> str:
    from dray.runtime.state import OCI_VERSION

    return f"dray-runtime version {__version__}\nspec: {OCI_VERSION}"


if __name__ == "__main__":
    sys.exit(main())
