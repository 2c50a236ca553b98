"""The verbs of `dray-runtime`: each takes the parsed options and returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from dray.base import units
from dray.base.errors import Conflict, InvalidParameter, NotFound, Unsupported
from dray.base.files import write_atomic
from dray.base.malformed import MALFORMED
from dray.linux import processes
from dray.runtime import events, foreground, rootfs, state, template
from dray.runtime.lifecycle import BuiltinRuntime
from dray.runtime.model import CreateRequest, ExecRequest, Started, Stdio


def _runtime(options: argparse.Namespace) -> BuiltinRuntime:
    return BuiltinRuntime(options.root, pivot=not getattr(options, "no_pivot", False))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def do_create(options: argparse.Namespace) -> int:
    """Create a container."""
    runtime = _runtime(options)
    _create(runtime, options, detach=True)
    return 0


def do_run(options: argparse.Namespace) -> int:
    """Create, start and, in the foreground, wait and delete."""
    runtime = _runtime(options)
    started = _create(runtime, options, detach=options.detach)
    try:
        runtime.start(options.id)
    except BaseException:
        runtime.delete(options.id, force=True)
        raise
    if options.detach:
        return 0
    code = foreground.wait(started)
    if not options.keep:
        runtime.delete(options.id, force=True)
    return code


def _create(runtime: BuiltinRuntime, options: argparse.Namespace, *, detach: bool) -> Started:
    bundle = options.bundle.resolve()
    try:
        spec = msgspec.json.decode((bundle / "config.json").read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise InvalidParameter(f"{bundle}/config.json does not exist; `dray-runtime spec` writes one") from None
    except MALFORMED as error:
        raise InvalidParameter(f"{bundle}/config.json: {error}") from error
    terminal = bool((spec.get("process") or {}).get("terminal"))
    foreground.check_console_socket(options.console_socket, terminal=terminal, detach=detach)
    if options.debug:
        root = os.path.normpath(bundle / ((spec.get("root") or {}).get("path") or ""))
        print(rootfs.plan(spec, root).describe(), file=sys.stderr)
    stdio = Stdio() if terminal else Stdio(0, 1, 2)
    request = CreateRequest(
        options.id,
        bundle,
        spec,
        stdio=stdio,
        preserve_fds=_preserved(options, spec.get("process") or {}),
        new_keyring=not options.no_new_keyring,
    )
    started = runtime.create(request)
    return _hand_over(started, options)


def _hand_over(started: Started, options: argparse.Namespace) -> Started:
    """Send the terminal where it was asked for and write the pid file."""
    if options.console_socket and started.console is not None:
        foreground.send_console(options.console_socket, started.console)
        started = Started(started.pid)
    if options.pid_file:
        write_atomic(options.pid_file, str(started.pid).encode(), mode=0o644, durable=False)
    return started


def _preserved(options: argparse.Namespace, process: dict[str, Any]) -> int:
    """Return how many descriptors from 3 on the program keeps: those asked for, and those of sd_listen_fds(3).

    Passes LISTEN_FDS on, with a LISTEN_PID that fits: the program is the first of its pid namespace.
    """
    listening = os.environ.get("LISTEN_FDS", "")
    count: int = options.preserve_fds
    if listening.isdigit() and os.environ.get("LISTEN_PID", str(os.getpid())) == str(os.getpid()):
        count = max(count, int(listening))
        process["env"] = [*(process.get("env") or ()), f"LISTEN_FDS={listening}", "LISTEN_PID=1"]
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError:
            raise InvalidParameter(f"--preserve-fds={count}: descriptor {fd} is not open") from None
    return count


def do_start(options: argparse.Namespace) -> int:
    """Start a created container."""
    _runtime(options).start(options.id)
    return 0


def _full_state(container: state.Container) -> dict[str, Any]:
    root = (container.saved.spec.get("root") or {}).get("path") or ""
    return {
        **container.oci_state(),
        "rootfs": os.path.normpath(os.path.join(container.saved.bundle, root)),
        "created": container.saved.created,
        "owner": "",
    }


def do_state(options: argparse.Namespace) -> int:
    """Print the state of runtime-spec, with runc's additions."""
    container = state.load(options.root, options.id)
    _print_json(_full_state(container))
    container.close()
    return 0


def signal_number(text: str) -> int:
    """Return the number of `9`, `KILL` or `SIGKILL`; InvalidParameter for no signal."""
    if text.isdigit():
        number = int(text)
    else:
        name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
        number = getattr(signal.Signals, name, 0)
    if not 0 < number < 65:
        raise InvalidParameter(f"unknown signal {text!r}")
    return int(number)


def do_kill(options: argparse.Namespace) -> int:
    """Send a signal."""
    _runtime(options).kill(options.id, signal_number(options.signal), all_processes=options.all)
    return 0


def do_delete(options: argparse.Namespace) -> int:
    """Remove a container; with --force one that does not exist is no error."""
    try:
        _runtime(options).delete(options.id, force=options.force)
    except NotFound:
        if not options.force:
            raise
    return 0


def do_exec(options: argparse.Namespace) -> int:
    """Run a process in a container."""
    container = state.load(options.root, options.id)
    try:
        if container.paused and not options.ignore_paused:
            raise Conflict("cannot exec in a paused container (use --ignore-paused to override)")
        spec = container.saved.spec
    finally:
        container.close()
    process = _exec_process(options, spec)
    terminal = bool(process.get("terminal"))
    foreground.check_console_socket(options.console_socket, terminal=terminal, detach=options.detach)
    stdio = Stdio() if terminal else Stdio(0, 1, 2)
    preserved = _preserved(options, process)
    profile = (spec.get("linux") or {}).get("seccomp")
    request = ExecRequest(options.id, process, profile, stdio, preserve_fds=preserved)
    started = _hand_over(_runtime(options).exec(request), options)
    return 0 if options.detach else foreground.wait(started)


def _exec_process(options: argparse.Namespace, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the process object: that of --process, or the container's own changed by the flags."""
    if options.process is not None:
        process: dict[str, Any] = msgspec.json.decode(options.process.read_bytes(), type=dict[str, Any])
        return process
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise InvalidParameter("exec: name a command, or --process")
    process = {**spec["process"], "args": command, "terminal": options.tty}
    process["env"] = [*(process.get("env") or ()), *options.env]
    process["cwd"] = options.cwd or process.get("cwd") or "/"
    if options.user:
        uid, _, gid = options.user.partition(":")
        if not uid.isdigit() or (gid and not gid.isdigit()):
            raise InvalidParameter(f"--user {options.user!r}: give numbers, UID[:GID]")
        process["user"] = {**(process.get("user") or {}), "uid": int(uid), **({"gid": int(gid)} if gid else {})}
    if options.additional_gids:
        process["user"] = {**(process.get("user") or {}), "additionalGids": options.additional_gids}
    if options.no_new_privs:
        process["noNewPrivileges"] = True
    for option, field in (("apparmor", "apparmorProfile"), ("process_label", "selinuxLabel")):
        if getattr(options, option):
            process[field] = getattr(options, option)
    if options.cap:
        sets = process.get("capabilities") or {}
        process["capabilities"] = {
            **sets, **{kind: [*(sets.get(kind) or ()), *options.cap] for kind in ("bounding", "effective", "permitted")}
        }  # fmt: skip
    return process


def do_ps(options: argparse.Namespace) -> int:
    """List processes: pids as JSON, or the lines that ps(1) prints of them."""
    pids = _runtime(options).pids(options.id)
    if options.format == "json":
        print(json.dumps(pids))
        return 0
    read, write = os.pipe()
    arguments = ["ps", *(options.ps_options or ["-ef"])]
    pid = os.posix_spawnp("ps", arguments, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
    os.close(write)
    with open(read, encoding="utf-8", errors="replace") as output:
        lines = output.read().splitlines()
    code = processes.reap(pid)
    if code or not lines or "PID" not in lines[0].split():
        raise InvalidParameter(f"ps {' '.join(arguments[1:])} printed no PID column")
    column = lines[0].split().index("PID")
    print(lines[0])
    for line in lines[1:]:
        fields = line.split()
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            print(line)
    return 0


def do_pause(options: argparse.Namespace) -> int:
    """Freeze."""
    _runtime(options).pause(options.id)
    return 0


def do_resume(options: argparse.Namespace) -> int:
    """Thaw."""
    _runtime(options).resume(options.id)
    return 0


def do_update(options: argparse.Namespace) -> int:
    """Change limits."""
    _runtime(options).update(options.id, resources_of(options))
    return 0


def resources_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the OCI resources object that the flags of update ask for."""
    if options.resources is not None:
        data = sys.stdin.buffer.read() if options.resources == "-" else Path(options.resources).read_bytes()
        resources: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
        return resources
    resources = {}
    for flag, group, field in (
        ("cpu_period", "cpu", "period"),
        ("cpu_quota", "cpu", "quota"),
        ("cpu_share", "cpu", "shares"),
        ("cpuset_cpus", "cpu", "cpus"),
        ("cpuset_mems", "cpu", "mems"),
        ("cpu_burst", "cpu", "burst"),
        ("cpu_idle", "cpu", "idle"),
        ("cpu_rt_period", "cpu", "realtimePeriod"),
        ("cpu_rt_runtime", "cpu", "realtimeRuntime"),
        ("memory", "memory", "limit"),
        ("memory_reservation", "memory", "reservation"),
        ("memory_swap", "memory", "swap"),
        ("blkio_weight", "blockIO", "weight"),
        ("pids_limit", "pids", "limit"),
    ):
        value = getattr(options, flag)
        if value is not None:
            if group == "memory":
                value = -1 if value == "-1" else units.parse_bytes(value)
            resources.setdefault(group, {})[field] = value
    if not resources:
        raise InvalidParameter("update: name a limit, or --resources")
    return resources


def do_events(options: argparse.Namespace) -> int:
    """Print events until the container ends, or its numbers once."""
    if options.interval <= 0:
        raise InvalidParameter("--interval must be greater than 0")
    container = state.load(options.root, options.id)
    try:
        container.require_alive()
        if options.stats:
            events.show(container)
        else:
            events.watch(container, options.interval)
    finally:
        container.close()
    return 0


def do_checkpoint(options: argparse.Namespace) -> int:
    """Write the processes of a container down."""
    _require_criu("checkpoint")
    images = (options.image_path or Path("checkpoint")).resolve()
    images.mkdir(mode=0o700, parents=True, exist_ok=True)
    _runtime(options).checkpoint(options.id, images, leave_running=options.leave_running)
    return 0


def do_restore(options: argparse.Namespace) -> int:
    """Create a container from what `checkpoint` wrote, and in the foreground wait and delete."""
    _require_criu("restore")
    bundle = options.bundle.resolve()
    runtime = _runtime(options)
    spec = msgspec.json.decode((bundle / "config.json").read_bytes(), type=dict[str, Any])
    request = CreateRequest(options.id, bundle, spec, stdio=Stdio(0, 1, 2))
    started = runtime.restore(request, (options.image_path or Path("checkpoint")).resolve())
    _hand_over(started, options)
    if options.detach:
        return 0
    code = foreground.wait(started)
    runtime.delete(options.id, force=True)
    return code


def _require_criu(verb: str) -> None:
    from dray.runtime import checkpoint

    if reason := checkpoint.check({}, []):
        raise Unsupported(f"{verb} is not supported: {reason}")


def do_list(options: argparse.Namespace) -> int:
    """List containers."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(options.root)):
            with contextlib.suppress(NotFound):
                container = state.load(options.root, name)
                found.append(_full_state(container))
                container.close()
    if options.quiet:
        for entry in found:
            print(entry["id"])
    elif options.format == "json":
        print(json.dumps(found))
    else:
        rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED")]
        rows += [(e["id"], str(e["pid"]), e["status"], e["bundle"], e["created"]) for e in found]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        for row in rows:
            print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def do_spec(options: argparse.Namespace) -> int:
    """Write config.json."""
    path = options.bundle / "config.json"
    if path.exists():
        raise Conflict(f"{path} exists; remove it first")
    path.write_text(json.dumps(template.default_spec(rootless=options.rootless_spec), indent=2) + "\n")
    return 0


def do_features(options: argparse.Namespace) -> int:
    """Print the features object of runtime-spec."""
    _print_json(template.features())
    return 0
