"""`--change` of `docker import` and `docker commit`: a few Dockerfile instructions applied to an image's config.

Allowed are CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR, in the
syntax of the Dockerfile reference (exec and shell forms, `key=value` words with quotes and backslashes, the old
`ENV key value`).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable

import msgspec

from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern
from dray.oci.image import ContainerConfig, Healthcheck

_SHELL = ["/bin/sh", "-c"]
_STRINGS = msgspec.json.Decoder(list[str])
_PORT = pattern(r"([0-9]+)(?:-([0-9]+))?(?:/(tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)
_DURATION = pattern(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)", re.ASCII)
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def words(text: str) -> list[str]:
    """Split at blanks outside quotes; quotes and backslashes are taken away (in single quotes nothing is special)."""
    found: list[str] = []
    current: list[str] | None = None
    quote = ""
    characters = iter(text)
    for char in characters:
        if not quote and char in " \t":
            if current is not None:
                found.append("".join(current))
                current = None
            continue
        current = [] if current is None else current
        if char == "\\" and quote != "'":
            following = next(characters, "")
            current.append(following if not quote or following in '"\\$' else "\\" + following)
        elif char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        else:
            current.append(char)
    if quote:
        raise InvalidParameter(f"unexpected end of statement while looking for matching quote: {text}")
    if current is not None:
        found.append("".join(current))
    return found


def _strings(text: str) -> list[str] | None:
    """Read the exec form, a JSON array of strings; None if it is not one."""
    if not text.startswith("["):
        return None
    try:
        return _STRINGS.decode(text)
    except msgspec.MsgspecError:
        return None


def _command(config: ContainerConfig, text: str) -> list[str]:
    exec_form = _strings(text)
    return exec_form if exec_form is not None else [*(config.shell or _SHELL), text]


def _pairs(instruction: str, text: str) -> list[tuple[str, str]]:
    parts = words(text)
    if parts and "=" not in parts[0]:  # the old form: a name, and all that follows
        key, _, value = text.strip().partition(" ")
        if not value.strip():
            raise InvalidParameter(f"{instruction} must have two arguments")
        return [(key, value.strip())]
    pairs = []
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise InvalidParameter(f"Syntax error - can't find = in {part!r}. Must be of the form: name=value")
        pairs.append((key, value))
    return pairs


def _cmd(config: ContainerConfig, text: str) -> None:
    config.cmd = _command(config, text)


def _entrypoint(config: ContainerConfig, text: str) -> None:
    config.entrypoint = _command(config, text)
    config.cmd = None  # an entrypoint takes away the command that was there before it


def _env(config: ContainerConfig, text: str) -> None:
    env = dict(item.partition("=")[::2] for item in config.env or [])
    env.update(_pairs("ENV", text))
    config.env = [f"{key}={value}" for key, value in env.items()]


def _label(config: ContainerConfig, text: str) -> None:
    config.labels = {**(config.labels or {}), **dict(_pairs("LABEL", text))}


def _expose(config: ContainerConfig, text: str) -> None:
    ports = dict(config.exposed_ports or {})
    for word in words(text):
        match = _PORT.fullmatch(word)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else 0
        if match is None or not 1 <= first <= last <= 65535:
            raise InvalidParameter(f"invalid containerPort: {word}")
        for port in range(first, last + 1):
            ports[f"{port}/{(match[3] or 'tcp').lower()}"] = {}
    config.exposed_ports = ports


def _volume(config: ContainerConfig, text: str) -> None:
    exec_form = _strings(text)
    paths = exec_form if exec_form is not None else words(text)
    if any(not path.strip() for path in paths):
        raise InvalidParameter("VOLUME specified can not be an empty string")
    config.volumes = {**(config.volumes or {}), **{path: {} for path in paths}}


def _workdir(config: ContainerConfig, text: str) -> None:
    path = " ".join(words(text))  # as in a Dockerfile, it is all that follows
    config.working_dir = posixpath.normpath(posixpath.join("/", config.working_dir, path))


def _user(config: ContainerConfig, text: str) -> None:
    (config.user,) = words(text)[:1] or [""]


def _onbuild(config: ContainerConfig, text: str) -> None:
    trigger = text.split(maxsplit=1)[0].upper()
    if trigger in ("ONBUILD", "FROM", "MAINTAINER"):
        raise InvalidParameter(
            "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"
            if trigger == "ONBUILD"
            else f"{trigger} isn't allowed as an ONBUILD trigger"
        )
    config.on_build = [*(config.on_build or []), text]


def _stopsignal(config: ContainerConfig, text: str) -> None:
    if not re.fullmatch(r"(?:SIG)?[A-Z0-9+-]+", text.strip(), re.IGNORECASE):
        raise InvalidParameter(f"Invalid signal: {text}")
    config.stop_signal = text.strip()


def _duration(flag: str, text: str) -> int:
    if not re.fullmatch(rf"(?:{_DURATION.pattern})+", text):
        raise InvalidParameter(f'invalid duration "{text}" for --{flag}')
    value = int(sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text)))
    if 0 < value < 10**6:
        raise InvalidParameter(f"Interval {flag!r} cannot be less than 1ms")
    return value


def _healthcheck(config: ContainerConfig, text: str) -> None:
    check = Healthcheck()
    rest = text.strip()
    while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
        flag, value = match[1], match[2]
        if flag == "retries":
            if not value.isdigit():
                raise InvalidParameter(f"invalid --retries {value!r}")
            check.retries = int(value)
        elif flag in ("interval", "timeout", "start-period", "start-interval"):
            setattr(check, flag.replace("-", "_"), _duration(flag, value))
        else:
            raise InvalidParameter(f"Unknown flag: {flag}")
        rest = rest[match.end() :]
    kind, _, command = rest.partition(" ")
    if kind.upper() == "NONE":
        if command.strip() or check != Healthcheck():
            raise InvalidParameter("HEALTHCHECK NONE takes no arguments")
        config.healthcheck = Healthcheck(test=["NONE"])
        return
    if kind.upper() != "CMD" or not command.strip():
        raise InvalidParameter(f"Unknown type {kind!r} in HEALTHCHECK (try CMD)")
    exec_form = _strings(command.strip())
    check.test = ["CMD", *exec_form] if exec_form is not None else ["CMD-SHELL", command.strip()]
    config.healthcheck = check


_INSTRUCTIONS: dict[str, Callable[[ContainerConfig, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}


def apply_changes(config: ContainerConfig, changes: Iterable[str]) -> None:
    """Apply instructions, one a line, to `config`; InvalidParameter in Docker's words for what is not allowed."""
    for line in "\n".join(changes).splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        instruction, _, arguments = text.partition(" ")
        apply = _INSTRUCTIONS.get(instruction.upper())
        if apply is None:
            raise InvalidParameter(f"{instruction.upper()} is not a valid change command")
        if not arguments.strip():
            raise InvalidParameter(f"{instruction.upper()} requires at least one argument")
        apply(config, arguments.strip())
