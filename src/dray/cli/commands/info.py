"""`dray info`."""

from __future__ import annotations

from dray import __version__
from dray.base.errors import DrayError
from dray.base.units import bytes_size
from dray.cli.command import Command, StatusError
from dray.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values

    Info = dict[str, Any]


def _line(label: str, value: Any, indent: int = 1) -> str:
    shown = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
    return f"{' ' * indent}{label}: {shown}".rstrip() if shown == "" else f"{' ' * indent}{label}: {shown}"


def _some(info: Info, rows: tuple[tuple[str, str], ...], indent: int = 1) -> list[str]:
    return [_line(label, info[key], indent) for label, key in rows if info.get(key) not in (None, "")]


def _plugins(info: Info) -> list[str]:
    plugins = info.get("Plugins") or {}
    lines = [" Plugins:", "  Volume: " + " ".join(plugins.get("Volume") or ())]
    lines.append("  Network: " + " ".join(plugins.get("Network") or ()))
    if plugins.get("Authorization"):
        lines.append("  Authorization: " + " ".join(plugins["Authorization"]))
    lines.append("  Log: " + " ".join(plugins.get("Log") or ()))
    return lines


def _security(info: Info) -> list[str]:
    options = info.get("SecurityOptions") or []
    if not options:
        return []
    lines = [" Security Options:"]
    for option in options:
        fields = dict(part.partition("=")[::2] for part in option.split(","))
        lines.append(f"  {fields.pop('name', option)}")
        lines += [f"   {key[:1].upper() + key[1:]}: {value}" for key, value in fields.items()]
    return lines


def _swarm(info: Info) -> list[str]:
    swarm = info.get("Swarm") or {}
    state = swarm.get("LocalNodeState") or "inactive"
    lines = [f" Swarm: {state}"]
    if state not in ("inactive", "locked"):
        lines += [
            f"  NodeID: {swarm.get('NodeID', '')}",
            f"  Is Manager: {str(bool(swarm.get('ControlAvailable'))).lower()}",
        ]
        lines.append(f"  Node Address: {swarm.get('NodeAddr', '')}")
    return lines


def _daemon_versions(info: Info) -> list[str]:
    lines = []
    for label, key in (("containerd", "ContainerdCommit"), ("runc", "RuncCommit"), ("init", "InitCommit")):
        commit = info.get(key) or {}
        if key in info:
            lines.append(f" {label} version: {commit.get('ID', '')}")
    return lines


def _registries(info: Info) -> list[str]:
    config = info.get("RegistryConfig") or {}
    lines = []
    insecure = [name for name, index in (config.get("IndexConfigs") or {}).items() if not index.get("Secure")]
    insecure += config.get("InsecureRegistryCIDRs") or []
    if insecure:
        lines += [" Insecure Registries:", *(f"  {one}" for one in insecure)]
    if mirrors := config.get("Mirrors"):
        lines += [" Registry Mirrors:", *(f"  {one}" for one in mirrors)]
    return lines


def server_lines(info: Info) -> list[str]:
    """Return what the daemon said as lines."""
    lines = [
        _line("Containers", info.get("Containers", 0)),
        _line("Running", info.get("ContainersRunning", 0), 2),
        _line("Paused", info.get("ContainersPaused", 0), 2),
        _line("Stopped", info.get("ContainersStopped", 0), 2),
        _line("Images", info.get("Images", 0)),
        *_some(info, (("Server Version", "ServerVersion"), ("Storage Driver", "Driver"))),
        *(f"  {key}: {value}" for key, value in info.get("DriverStatus") or ()),
        *_some(
            info,
            (
                ("Logging Driver", "LoggingDriver"),
                ("Cgroup Driver", "CgroupDriver"),
                ("Cgroup Version", "CgroupVersion"),
            ),
        ),
        *_plugins(info),
    ]
    if spec_dirs := info.get("CDISpecDirs"):
        lines += [" CDI spec directories:", *(f"  {one}" for one in spec_dirs)]
    lines += _swarm(info)
    if runtimes := info.get("Runtimes"):
        lines += [
            " Runtimes: " + " ".join(sorted(runtimes)),
            f" Default Runtime: {info.get('DefaultRuntime', '')}",
        ]
    if info.get("OSType") == "linux":
        lines.append(f" Init Binary: {info.get('InitBinary', '')}")
        lines += _daemon_versions(info)
        lines += _security(info)
    lines += _some(
        info,
        (
            ("Kernel Version", "KernelVersion"),
            ("Operating System", "OperatingSystem"),
            ("OSType", "OSType"),
            ("Architecture", "Architecture"),
        ),
    )
    lines += [_line("CPUs", info.get("NCPU", 0)), _line("Total Memory", bytes_size(info.get("MemTotal", 0)))]
    lines += _some(info, (("Name", "Name"), ("ID", "ID"), ("Docker Root Dir", "DockerRootDir")))
    lines.append(_line("Debug Mode", bool(info.get("Debug"))))
    if info.get("Debug"):
        lines += [
            _line("File Descriptors", info.get("NFd", 0), 2),
            _line("Goroutines", info.get("NGoroutines", 0), 2),
        ]
        lines += [
            _line("System Time", info.get("SystemTime", ""), 2),
            _line("EventsListeners", info.get("NEventsListener", 0), 2),
        ]
    lines += _some(
        info,
        (
            ("HTTP Proxy", "HttpProxy"),
            ("HTTPS Proxy", "HttpsProxy"),
            ("No Proxy", "NoProxy"),
            ("Username", "IndexServerName"),
        )[:3],
    )
    if labels := info.get("Labels"):
        lines += [" Labels:", *(f"  {one}" for one in labels)]
    lines.append(_line("Experimental", bool(info.get("ExperimentalBuild"))))
    lines += _registries(info)
    lines.append(_line("Live Restore Enabled", bool(info.get("LiveRestoreEnabled"))))
    if license_text := info.get("ProductLicense"):
        lines.append(_line("Product License", license_text))
    if pools := info.get("DefaultAddressPools"):
        lines += [
            " Default Address Pools:",
            *(f"   Base: {one.get('Base')}, Size: {one.get('Size')}" for one in pools),
        ]
    if firewall := info.get("FirewallBackend"):
        lines.append(_line("Firewall Backend", firewall.get("Driver", "")))
    return [*lines, ""]


def run_info(app: App, values: Values, arguments: list[str]) -> int:
    """Print what client and daemon say of themselves."""
    from dray.cli.endpoint import context_name

    form = values["format"]
    template = None
    if form:
        from dray.cli.template import ParseError, Template

        try:
            template = Template("{{json .}}" if form == "json" else form)
        except ParseError as error:
            raise StatusError(64, f"template parsing error: {error}") from None
    client = {
        "Debug": app.debug,
        "Version": __version__,
        "Context": context_name(app),
        "Plugins": [],
        "Warnings": None,
    }
    info: Info = {}
    problem: DrayError | None = None
    try:
        info = app.client.system.info()
    except DrayError as error:
        problem = error
    if template is not None:
        from dray.cli.typed import typed

        errors = {"ServerErrors": [str(problem)]} if problem is not None else {}
        app.line(template.execute(typed({**info, **errors, "ClientInfo": client}, "info")))
        return 0
    app.line(
        f"Client:\n Version:    {__version__}\n Context:    {client['Context']}\n Debug Mode: {str(app.debug).lower()}\n"
    )
    app.line("Server:")
    if problem is not None:
        raise problem
    app.line("\n".join(server_lines(info)))
    for warning in info.get("Warnings") or ():
        app.error(warning)
    return 0


COMMANDS = {
    "system info": Command(
        "[OPTIONS]",
        run_info,
        flags=(Flag("format", "string", "Print with a template: 'json' or a Go template", short="f"),),
    ),
}
