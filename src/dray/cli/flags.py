"""Command-line flags with the rules of pflag, which Docker's users have in their fingers.

Long flags take `--name value` or `--name=value`; short ones cluster (`-it`) and carry their value attached
(`-p8080:80`, `-c=5`) or as the next word. A boolean takes a value only after `=`. `--` ends the flags. Flags and
arguments may be mixed unless the command says that the first argument ends the flags (run, create, exec).

A value is checked when it is read, so that an error names the flag; what it means is the command's business.
"""

from __future__ import annotations

from dray.base.errors import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    _Dict = dict[str, Any]
else:
    _Dict = dict

TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))


class FlagError(InvalidParameter):
    """The words of the command line do not fit the command's flags (exit status 125)."""


class HelpAsked(Exception):
    """`--help` (or `-h`, where the command gives it no other meaning) was among the flags."""

    def __init__(self, *, short: bool) -> None:
        super().__init__()
        self.short = short


def parse_bool(text: str) -> bool:
    """Read a boolean as Go's strconv does."""
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise InvalidParameter(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def parse_int(text: str, bits: int = 64, *, signed: bool = True) -> int:
    """Read an integer as Go's strconv does with base 0 (0x, 0o, 0b and a leading 0 for octal)."""
    function = "ParseInt" if signed else "ParseUint"
    sign, body = (text[0], text[1:]) if signed and text[:1] in ("+", "-") else ("", text)
    try:
        if body[:1] not in tuple("0123456789"):
            raise ValueError(text)
        octal = len(body) > 1 and body[0] == "0" and body[1] in "01234567_"
        number = int(sign + ("0o" + body[1:].lstrip("_") if octal else body), 0)
    except ValueError:
        raise InvalidParameter(f'strconv.{function}: parsing "{text}": invalid syntax') from None
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if not low <= number <= high:
        raise InvalidParameter(f'strconv.{function}: parsing "{text}": value out of range')
    return number


def parse_size(text: str) -> int:
    """Read a size in bytes (`20m`)."""
    from dray.base.units import parse_bytes

    return parse_bytes(text)


def parse_swap(text: str) -> int:
    """Read a size in bytes, or -1 for no limit."""
    return -1 if text == "-1" else parse_size(text)


_DURATION_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}


def parse_duration(text: str) -> int:
    """Read a duration as Go does (`1h30m`, `1.5s`); returns nanoseconds."""
    import re

    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if body == "0":
        return 0
    total, rest = 0.0, body
    whole = 0
    while rest:
        match = re.match(r"([0-9]*)(?:\.([0-9]*))?", rest)
        assert match is not None
        if not match[1] and not match[2]:
            raise InvalidParameter(f'time: invalid duration "{text}"')
        rest = rest[match.end() :]
        unit = re.match(r"[^0-9.]*", rest)
        assert unit is not None
        if not unit[0]:
            raise InvalidParameter(f'time: missing unit in duration "{text}"')
        if unit[0] not in _DURATION_UNITS:
            raise InvalidParameter(f'time: unknown unit "{unit[0]}" in duration "{text}"')
        factor = _DURATION_UNITS[unit[0]]
        whole += int(match[1] or 0) * factor
        total += float(f"0.{match[2] or 0}") * factor
        rest = rest[unit.end() :]
    if not body:
        raise InvalidParameter(f'time: invalid duration "{text}"')
    return sign * (whole + int(total))


def parse_cpus(text: str) -> int:
    """Read a number of CPUs (`1.5`); returns billionths of a CPU."""
    from fractions import Fraction

    try:
        nano = Fraction(text) * 10**9
    except (ValueError, ZeroDivisionError):
        raise InvalidParameter(f"failed to parse {text} as a rational number") from None
    if nano.denominator != 1:
        raise InvalidParameter("value is too precise")
    return int(nano)


def parse_csv(text: str) -> list[str]:
    """Split one line of comma-separated values with CSV quoting."""
    if not text:
        return []
    if '"' not in text:
        return text.split(",")
    import csv

    return next(csv.reader([text], strict=True))


def parse_filter(text: str) -> tuple[str, str] | None:
    """Read one `name=value` of a filter flag; empty text is no filter."""
    if not text:
        return None
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidParameter("bad format of filter (expected name=value)")
    return name.strip().lower(), value.strip()


def _identity(text: str) -> str:
    return text


# kind -> (reader of one value, how values of a repeated flag gather)
_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "bool": (parse_bool, "last"),
    "string": (_identity, "last"),
    "int": (parse_int, "last"),
    "uint": (lambda text: parse_int(text, signed=False), "last"),
    "uint16": (lambda text: parse_int(text, 16, signed=False), "last"),
    "bytes": (parse_size, "last"),
    "swap": (parse_swap, "last"),
    "duration": (parse_duration, "last"),
    "decimal": (parse_cpus, "last"),
    "list": (_identity, "append"),
    "strings": (parse_csv, "extend"),
    "map": (_identity, "map"),
    "filter": (parse_filter, "filter"),
}
_LABELS = {"swap": "bytes", "uint16": "uint16", "bool": ""}
_EMPTY: dict[str, Any] = {"bool": False, "string": "", "duration": 0}


class Flag:
    """One flag of a command.

    `kind` is a key of the table above; `check` further reads one value (and may replace it); `label` stands for
    the value in the help; `hidden` keeps it out of the help.
    """

    __slots__ = ("check", "default", "hidden", "kind", "label", "name", "short", "text")

    def __init__(
        self,
        name: str,
        kind: str,
        text: str,
        *,
        short: str = "",
        default: Any = None,
        check: Callable[[str], Any] | None = None,
        label: str | None = None,
        hidden: bool = False,
    ) -> None:
        self.name = name
        self.short = short
        self.kind = kind
        self.text = text
        self.check = check
        self.hidden = hidden
        self.label = label if label is not None else _LABELS.get(kind, kind)
        if default is None:
            gather = _KINDS[kind][1]
            default = _EMPTY.get(kind, 0) if gather == "last" else None
        self.default = default

    def initial(self) -> Any:
        """Return the value the flag has when it is not given."""
        gather = _KINDS[self.kind][1]
        if gather in ("append", "extend"):
            return list(self.default or ())
        if gather in ("map", "filter"):
            return {}
        return self.default

    @property
    def shown(self) -> str:
        """How an error names the flag."""
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


class Values(_Dict):
    """The flags' values by long name; `changed` has the names that were given."""

    __slots__ = ("changed",)

    def __init__(self, flags: Sequence[Flag]) -> None:
        super().__init__({flag.name: flag.initial() for flag in flags})
        self.changed: set[str] = set()

    def given(self, name: str) -> Any:
        """Return the value if the flag was given, else None."""
        return self[name] if name in self.changed else None


class _Parser:
    def __init__(self, flags: Sequence[Flag]) -> None:
        self.values = Values(flags)
        self.long = {flag.name: flag for flag in flags}
        self.short = {flag.short: flag for flag in flags if flag.short}

    def set(self, flag: Flag, text: str) -> None:
        reader, gather = _KINDS[flag.kind]
        try:
            value = reader(text)
            if flag.check is not None:
                value = [flag.check(one) for one in value] if gather == "extend" else flag.check(value)
        except InvalidParameter as error:
            raise FlagError(f'invalid argument "{text}" for "{flag.shown}" flag: {error}') from None
        held = self.values
        if gather == "append":
            held[flag.name].append(value)
        elif gather == "extend":
            held[flag.name].extend(value)
        elif gather == "map":
            key, _, rest = value.partition("=")
            held[flag.name][key] = rest
        elif gather == "filter":
            if value is not None:
                held[flag.name].setdefault(value[0], {})[value[1]] = True
        else:
            held[flag.name] = value
        held.changed.add(flag.name)

    def take_long(self, word: str, rest: list[str]) -> None:
        name, equals, value = word[2:].partition("=")
        if not name or name.startswith("-"):
            raise FlagError(f"bad flag syntax: {word}")
        flag = self.long.get(name)
        if flag is None:
            if name == "help":
                if equals and not parse_bool(value):
                    return
                raise HelpAsked(short=False)
            raise FlagError(f"unknown flag: --{name}")
        if equals:
            self.set(flag, value)
        elif flag.kind == "bool":
            self.set(flag, "true")
        elif rest:
            self.set(flag, rest.pop(0))
        else:
            raise FlagError(f"flag needs an argument: --{name}")

    def take_short(self, word: str, rest: list[str]) -> None:
        cluster = word[1:]
        while cluster:
            letter = cluster[0]
            flag = self.short.get(letter)
            if flag is None:
                if letter == "h":
                    raise HelpAsked(short=True)
                raise FlagError(f"unknown shorthand flag: '{letter}' in -{cluster}")
            if len(cluster) > 2 and cluster[1] == "=":
                self.set(flag, cluster[2:])
                return
            if flag.kind == "bool":
                self.set(flag, "true")
                cluster = cluster[1:]
                continue
            if len(cluster) > 1:
                self.set(flag, cluster[1:])
            elif rest:
                self.set(flag, rest.pop(0))
            else:
                raise FlagError(f"flag needs an argument: '{letter}' in -{cluster}")
            return


def parse(flags: Sequence[Flag], words: Sequence[str], *, interspersed: bool = True) -> tuple[Values, list[str]]:
    """Split a command's words into flag values and arguments; FlagError or HelpAsked."""
    parser = _Parser(flags)
    rest, arguments = list(words), []
    while rest:
        word = rest.pop(0)
        if word == "--":
            arguments += rest
            break
        if word == "-" or not word.startswith("-"):
            arguments.append(word)
            if not interspersed:
                arguments += rest
                break
        elif word.startswith("--"):
            parser.take_long(word, rest)
        else:
            parser.take_short(word, rest)
    return parser.values, arguments
