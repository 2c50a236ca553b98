"""drayd's configuration: flags and `daemon.json`, dockerd's own names for both.

A key in both places is an error that names it (as dockerd has it), an unknown key is an error that names it, and
so is an option that cannot be obeyed.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dray import __version__
from dray.base import units
from dray.base.errors import InvalidParameter
from dray.daemon.options import BY_KEY, OPTIONS, Option
from dray.daemon.registries import DEFAULT_FILE, registry_settings
from dray.store import drivers

# What `features` may name: None can be switched, the others are what they are.
FEATURES: dict[str, bool | None] = {"cdi": None, "containerd-snapshotter": True}
LEVELS = ("debug", "info", "warn", "error", "fatal")


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """The merged, checked configuration; `config["data-root"]` by daemon.json's keys. `file` and the command line's
    `arguments` are where it came from."""

    values: dict[str, Any]
    file: str
    arguments: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def shm_size(self) -> int:
        """Bytes of /dev/shm."""
        return units.parse_bytes(str(self.values["default-shm-size"]))

    @property
    def log_level(self) -> str:
        """The level of the daemon's own log."""
        return "debug" if self.values["debug"] else str(self.values["log-level"])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(125, f"drayd: {message}\nSee 'drayd --help'.\n")


def _flag_value(text: str) -> bool:
    if text.lower() in ("true", "t", "1"):
        return True
    if text.lower() in ("false", "f", "0"):
        return False
    raise argparse.ArgumentTypeError(f"invalid boolean value {text!r}: use true or false")


def parser() -> argparse.ArgumentParser:
    """Return the parser of drayd's command line."""
    made = _Parser(
        prog="drayd",
        usage="drayd [OPTIONS]",
        description="The dray daemon: a Docker Engine. Options are also read from daemon.json, by the same names.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
    )
    made.add_argument("--config-file", metavar="PATH", help=f"The configuration file (default {DEFAULT_FILE})")
    made.add_argument("--validate", action="store_true", help="Check the configuration and exit")
    made.add_argument("-v", "--version", action="version", version=f"dray daemon version {__version__}")
    for option in OPTIONS:
        if option.flag:
            _add(made, option)
    return made


def _add(made: argparse.ArgumentParser, option: Option) -> None:
    names = ([f"-{option.short}"] if option.short else []) + [f"--{option.flag}"]
    shown = argparse.SUPPRESS if option.refused else option.help
    default = argparse.SUPPRESS
    if option.kind == "bool":
        made.add_argument(
            *names,
            dest=option.key,
            nargs="?",
            const=True,
            type=_flag_value,
            default=default,
            help=shown,
            metavar="BOOL",
        )
    elif option.kind == "int":
        made.add_argument(*names, dest=option.key, type=int, default=default, help=shown, metavar="N")
    elif option.kind == "str":
        made.add_argument(*names, dest=option.key, default=default, help=shown, metavar="VALUE")
    else:
        made.add_argument(*names, dest=option.key, action="append", default=default, help=shown, metavar="VALUE")


def load(arguments: Sequence[str]) -> tuple[DaemonConfig, bool]:
    """Read the command line and the configuration file; return the configuration and whether only to validate.

    InvalidParameter names the option that is unknown, given twice, of the wrong type, or not to be had.
    """
    parsed = vars(parser().parse_args(arguments))
    file, validate = parsed.pop("config_file"), parsed.pop("validate")
    flags = {key: _from_flag(BY_KEY[key], value) for key, value in parsed.items()}
    in_file = _read_file(file or DEFAULT_FILE, required=file is not None)
    for key, value in in_file.items():
        _check_type(BY_KEY[key], value)
    both = sorted(set(flags) & set(in_file))
    if both:
        shown = ", ".join(f"{key}: (from flag: {flags[key]}, from file: {in_file[key]})" for key in both)
        raise InvalidParameter(
            f"the following directives are specified both as a flag and in the configuration file: {shown}"
        )
    given = {**in_file, **flags}
    for key, value in given.items():
        option = BY_KEY[key]
        if option.refused and value not in (False, "", [], {}):
            raise InvalidParameter(f"option {key!r} cannot be set: {option.refused}; take it out")
    values = {option.key: option.default for option in OPTIONS if not option.refused}
    values.update({key: value for key, value in given.items() if not BY_KEY[key].refused})
    config = DaemonConfig(values, file or DEFAULT_FILE, tuple(arguments))
    _check(config)
    return config, bool(validate)


def _read_file(path: str, *, required: bool) -> dict[str, Any]:
    try:
        text = Path(path).read_text("utf-8-sig")
    except FileNotFoundError:
        if required:
            raise InvalidParameter(
                f"unable to configure the daemon with file {path}: there is no such file"
            ) from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"unable to configure the daemon with file {path}: {error}") from error
    try:
        document = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        raise InvalidParameter(
            f"unable to configure the daemon with file {path}: invalid JSON: {error}"
        ) from error
    if not isinstance(document, dict):
        raise InvalidParameter(f"unable to configure the daemon with file {path}: it must hold a JSON object")
    unknown = sorted(key for key in document if key not in BY_KEY)
    if unknown:
        raise InvalidParameter(
            f"unable to configure the daemon with file {path}: the following directives don't match any "
            f"configuration option: {', '.join(unknown)}"
        )
    return document


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "bool": (bool,), "list": (list,), "map": (dict,), "json": (dict, list),
}  # fmt: skip


def _check_type(option: Option, value: Any) -> None:
    if not isinstance(value, _TYPES[option.kind]) or (option.kind == "int" and isinstance(value, bool)):
        wanted = {"str": "a string", "int": "a number", "bool": "true or false", "list": "a list", "map": "an object",
                  "json": "an object or a list"}[option.kind]  # fmt: skip
        raise InvalidParameter(f"configuration option {option.key!r} must be {wanted}, not {json.dumps(value)}")


def _pair(key: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidParameter(f"invalid value {text!r} for --{BY_KEY[key].flag}: use name=value")
    return name, value


def _from_flag(option: Option, value: Any) -> Any:
    """Give a repeated flag the shape that its key has in daemon.json."""
    if option.kind == "map":
        return dict(_pair(option.key, text) for text in value)
    if option.refused or option.kind != "json":
        return value
    if option.key == "features":
        return {name: _switch(word) for name, word in (_feature(text) for text in value)}
    if option.key == "runtimes":
        return {name: {"path": path} for name, path in (_pair(option.key, text) for text in value)}
    if option.key == "default-ulimits":
        return {name: _ulimit(name, limits) for name, limits in (_pair(option.key, text) for text in value)}
    if option.key == "default-network-opts":
        found: dict[str, dict[str, str]] = {}
        for driver, text in (_pair(option.key, text) for text in value):
            found.setdefault(driver, {}).update([_pair(option.key, text)])
        return found
    assert option.key == "default-address-pools"
    return [_pool(text) for text in value]


def _feature(text: str) -> tuple[str, str]:
    name, _, word = text.partition("=")
    return name, word or "true"


def _switch(word: str) -> bool:
    try:
        return _flag_value(word)
    except argparse.ArgumentTypeError as error:
        raise InvalidParameter(f"--feature: {error}") from None


def _ulimit(name: str, text: str) -> dict[str, Any]:
    soft, colon, hard = text.partition(":")
    try:
        return {"Name": name, "Soft": int(soft), "Hard": int(hard if colon else soft)}
    except ValueError:
        raise InvalidParameter(f"invalid ulimit {name}={text}: use name=soft[:hard]") from None


def _pool(text: str) -> dict[str, Any]:
    fields = dict(_pair("default-address-pools", piece) for piece in text.split(","))
    try:
        return {"base": fields["base"], "size": int(fields["size"])}
    except (KeyError, ValueError):
        raise InvalidParameter(f"invalid default address pool {text!r}: use base=CIDR,size=N") from None


def accept_mark(text: str) -> tuple[int, int] | None:
    """Read `bridge-accept-fwmark`, `mark` or `mark/mask`, as (value, mask); None for nothing."""
    if not text:
        return None
    mark, slash, mask = text.partition("/")
    try:
        found = int(mark, 0), int(mask, 0) if slash else 0xFFFFFFFF
    except ValueError:
        found = (-1, -1)
    if not all(0 <= number <= 0xFFFFFFFF for number in found):
        raise InvalidParameter(f"invalid firewall mark {text!r} in bridge-accept-fwmark: use mark or mark/mask")
    return found


def _check(config: DaemonConfig) -> None:
    """Refuse values that make no sense, by name."""
    if config["log-level"] not in LEVELS:
        raise InvalidParameter(f"invalid logging level: {config['log-level']}: use one of {', '.join(LEVELS)}")
    if config["log-format"] not in ("text", "json"):
        raise InvalidParameter(f"invalid log-format {config['log-format']!r}: use text or json")
    drivers.check_name(config["storage-driver"])
    drivers.check_options(config["storage-opts"])
    accept_mark(config["bridge-accept-fwmark"])
    for driver, opts in config["default-network-opts"].items():
        if not isinstance(opts, dict) or not all(isinstance(value, str) for value in opts.values()):
            raise InvalidParameter(f"default-network-opts: {driver} must hold an object of option names and texts")
    if config["respect-host-firewall"] and not config["iptables"]:
        raise InvalidParameter(
            "respect-host-firewall needs no iptables=false: ports are then forwarded in user space"
        )
    if config["firewall-backend"] != "nftables":
        raise InvalidParameter("firewall-backend must be nftables: dray writes no iptables rules")
    for option in config["exec-opts"]:
        if option != "native.cgroupdriver=cgroupfs":
            raise InvalidParameter(f"invalid exec-opt {option!r}: only native.cgroupdriver=cgroupfs is supported")
    for key, allowed in (
        ("default-ipc-mode", ("private", "shareable")),
        ("default-cgroupns-mode", ("private", "host")),
    ):
        if config[key] not in allowed:
            raise InvalidParameter(f"{key} must be one of {', '.join(allowed)}, not {config[key]!r}")
    for label in config["labels"]:
        if "=" not in label:
            raise InvalidParameter(f"bad attribute format: {label}: a label is key=value")
    for name, runtime in config["runtimes"].items():
        if name == "dray" or not isinstance(runtime, dict) or not runtime.get("path"):
            raise InvalidParameter(f"runtime {name!r}: give it a path (the name dray is built in)")
        unknown = sorted(set(runtime) - {"path", "runtimeArgs"})
        if unknown:
            raise InvalidParameter(f"runtime {name!r}: unsupported {', '.join(unknown)}; use path and runtimeArgs")
    if config["default-runtime"] not in {"dray", "runc", "crun", *config["runtimes"]}:
        raise InvalidParameter(f"specified default runtime '{config['default-runtime']}' does not exist")
    for name, wanted in config["features"].items():
        if name not in FEATURES or not isinstance(wanted, bool):
            known = ", ".join(sorted(FEATURES))
            raise InvalidParameter(f"features: {name!r} cannot be set to {json.dumps(wanted)}: there is {known}")
        if FEATURES[name] is not None and wanted != FEATURES[name]:
            raise InvalidParameter(
                f"features: {name} cannot be switched: it is always {json.dumps(FEATURES[name])}"
            )
    if config["shutdown-timeout"] < -1:
        raise InvalidParameter(
            f"invalid shutdown-timeout: {config['shutdown-timeout']}: use seconds, or -1 for ever"
        )
    for key in ("max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts"):
        if config[key] < 1:
            raise InvalidParameter(f"invalid {key}: {config[key]}: at least 1 is needed")
    registry_settings(config.values, file=config.file)
    for key in ("bip", "bip6", "fixed-cidr", "fixed-cidr-v6"):
        if config[key]:
            _parsed(key, config[key], ipaddress.ip_interface)
    for key in ("default-gateway", "default-gateway-v6", "ip"):
        if config[key]:
            _parsed(key, config[key], ipaddress.ip_address)
    for address in config["dns"]:
        _parsed("dns", address, ipaddress.ip_address)
    if config["bridge"] and (config["bip"] or config["bip6"]) and config["bridge"] == "none":
        raise InvalidParameter("bip cannot be set with --bridge=none")
    profile = config["seccomp-profile"]
    if profile not in ("builtin", "unconfined", "") and not os.path.isfile(profile):
        raise InvalidParameter(f"seccomp-profile {profile!r}: there is no such file")
    config.shm_size  # noqa: B018 - raises if it is no size


def _parsed(key: str, text: str, parse: Any) -> None:
    try:
        parse(text)
    except ValueError as error:
        raise InvalidParameter(f"invalid {key}: {error}") from None
