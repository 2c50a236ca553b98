"""The registry of logging drivers, and Docker's words for what is wrong with their options.

A name that Docker knows and we lack is refused by name; so is every option that a driver does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dray.base.errors import InvalidParameter, Unsupported
from dray.base.units import parse_bytes
from dray.logs.attributes import render_tag
from dray.logs.model import LogFormat, LogWriter

DEFAULT_MAX_SIZE = 20 << 20
DEFAULT_MAX_FILES = 5

# What any driver takes (moby daemon/logger/factory.go). A local file never makes the container wait, so both
# modes deliver alike; the cache of drivers that cannot read has nothing to do for drivers that can.
_COMMON = frozenset(
    ("mode", "max-buffer-size", "cache-disabled", "cache-max-size", "cache-max-file", "cache-compress")
)  # fmt: skip
_ATTRIBUTES = frozenset(("labels", "labels-regex", "env", "env-regex", "tag"))
_FILES = frozenset(("max-size", "max-file", "compress"))

SUPPORTED = ("json-file", "local", "none")
UNSUPPORTED = ("awslogs", "etwlogs", "fluentd", "gcplogs", "gelf", "journald", "splunk", "syslog")

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


def validate(driver: str, options: Mapping[str, str]) -> None:
    """Check a container's or the daemon's log configuration; InvalidParameter or Unsupported with the reason."""
    if driver in UNSUPPORTED:
        raise Unsupported(
            f"logger: the logging driver {driver!r} is not supported by this engine: use {', '.join(SUPPORTED)}"
        )
    if driver not in SUPPORTED:
        raise InvalidParameter(f'error looking up logging plugin {driver}: plugin "{driver}" not found')
    if driver == "none":
        return
    _validate_common(options)
    known = _COMMON | _ATTRIBUTES | _FILES
    for name in options:
        if name not in known:
            whose = f"{driver} log driver" if driver == "json-file" else f"log driver {driver}"
            raise InvalidParameter(f"unknown log opt '{name}' for {whose}")
    if driver == "json-file":
        JsonOptions.parse(options)
    else:
        LocalOptions.parse(options)
    _validate_patterns(options)
    if options.get("tag"):
        render_tag(options["tag"], {})


def _validate_common(options: Mapping[str, str]) -> None:
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise InvalidParameter(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise InvalidParameter(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'"
            )  # fmt: skip
        try:
            parse_bytes(options["max-buffer-size"])
        except InvalidParameter as error:
            raise InvalidParameter(f"error parsing option max-buffer-size: {error}") from None
    for name in ("cache-disabled", "cache-compress"):
        if name in options:
            _boolean(options[name])
    if "cache-max-size" in options:
        _size("cache-max-size", options["cache-max-size"])
    if "cache-max-file" in options:
        _count("cache-max-file", options["cache-max-file"])


def _validate_patterns(options: Mapping[str, str]) -> None:
    import re

    for name in ("labels-regex", "env-regex"):
        if options.get(name):
            try:
                re.compile(options[name])
            except re.error as error:
                raise _failed(f"error parsing regexp of {name}: {error}: `{options[name]}`") from None


def _failed(reason: str) -> InvalidParameter:
    return InvalidParameter(f"failed to initialize logging driver: {reason}")


def _boolean(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise _failed(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def _size(name: str, text: str) -> int:
    try:
        size = parse_bytes(text)
    except InvalidParameter as error:
        raise _failed(str(error)) from None
    if size <= 0:
        raise _failed(f"{name} must be a positive number")
    return size


def _count(name: str, text: str) -> int:
    if not text.isascii() or not text.lstrip("+-").isdigit():
        raise _failed(f'strconv.Atoi: parsing "{text}": invalid syntax')
    if int(text) < 1:
        raise _failed(f"{name} cannot be less than 1")
    return int(text)


class _Files:
    """How a file driver rotates."""

    __slots__ = ("compress", "max_files", "max_size")
    default_compress = False

    def __init__(self, max_size: int, max_files: int, compress: bool) -> None:
        self.max_size = max_size
        self.max_files = max_files
        self.compress = compress

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> _Files:
        """Read max-size (-1: never rotate), max-file and compress."""
        max_size = DEFAULT_MAX_SIZE
        if "max-size" in options:
            max_size = -1 if options["max-size"] == "-1" else _size("max-size", options["max-size"])
        max_files = DEFAULT_MAX_FILES
        if "max-file" in options:
            max_files = _count("max-file", options["max-file"])
        compress = cls.default_compress
        if "compress" in options:
            compress = _boolean(options["compress"])
            if compress and (max_files < 2 or max_size < 0):
                raise InvalidParameter(
                    "compress cannot be true when max-file is less than 2 or max-size is not set"
                )
        return cls(max_size, max_files, compress and max_files > 1)


class JsonOptions(_Files):
    """`json-file`: not compressed unless asked for."""

    __slots__ = ()


class LocalOptions(_Files):
    """`local`: compressed unless asked not to."""

    __slots__ = ()
    default_compress = True


def _open_none(path: str, options: Mapping[str, str], attributes: Mapping[str, str]) -> LogWriter:
    from dray.logs.none import NoLog

    return NoLog()


def _open_json(path: str, options: Mapping[str, str], attributes: Mapping[str, str]) -> LogWriter:
    from dray.logs.jsonfile import JsonFile

    files = JsonOptions.parse(options)
    return JsonFile(
        path,
        max_size=files.max_size,
        max_files=files.max_files,
        compress=files.compress,
        attributes=attributes,
    )


def _open_local(path: str, options: Mapping[str, str], attributes: Mapping[str, str]) -> LogWriter:
    from dray.logs.local import LocalFile

    files = LocalOptions.parse(options)
    return LocalFile(
        path,
        max_size=files.max_size,
        max_files=files.max_files,
        compress=files.compress,
        attributes=attributes,
    )


_OPEN: dict[str, Callable[[str, Mapping[str, str], Mapping[str, str]], LogWriter]] = {
    "none": _open_none,
    "json-file": _open_json,
    "local": _open_local,
}


def open_writer(driver: str, path: str, options: Mapping[str, str], attributes: Mapping[str, str]) -> LogWriter:
    """Open a container's log. `attributes` are the resolved labels, environment variables and tag."""
    return _OPEN[driver](path, options, attributes)


def format_of(driver: str) -> Callable[[int], LogFormat]:
    """Return how the driver's files are read; Unsupported for one that keeps nothing."""
    if driver == "json-file":
        from dray.logs.jsonread import JsonFormat

        return JsonFormat
    if driver == "local":
        from dray.logs.local import LocalFormat

        return LocalFormat
    raise Unsupported("configured logging driver does not support reading")
