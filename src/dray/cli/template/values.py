"""What templates work on: Go's view of values (structs, maps, nils), their truth, and how fmt prints them.

A plain dict is a Go map, a list a slice. A `Struct` is a dict whose keys are a Go struct's fields: unknown ones
are an error, known ones that the API left out are nil. `NO_VALUE` is what a missing map entry gives.
"""

from __future__ import annotations

from dray.cli.template.errors import TemplateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    _Dict = dict[str, Any]
    _List = list[Any]
else:
    _Dict = dict
    _List = list


class _NoValue:
    """A Go value that is not valid."""

    def __repr__(self) -> str:
        return "<no value>"


NO_VALUE = _NoValue()


class Struct(_Dict):
    """A Go struct: keys in the order of its fields; `raw` is the JSON it came from."""

    __slots__ = ("go_type", "raw")
    raw: dict[str, Any]
    go_type: str

    def lookup(self, name: str) -> Any:
        """Return a field; TemplateError when the struct has none of that name."""
        if name in self:
            return self[name]
        low = name.lower()
        for key, value in self.items():
            # Go's field names differ from the JSON's in capitals only (ID and Id, NanoCPUs and NanoCpus).
            if key.lower() == low:
                return value
        raise KeyError(name)


class NilList(_List):
    """A nil slice: prints as `[]`, marshals as null."""

    __slots__ = ()


class NilMap(_Dict):
    """A nil map: prints as `map[]`, marshals as null."""

    __slots__ = ()


def is_true(value: Any) -> bool:
    """Go's truth: false, zero, nil and the empty are false; a struct is true."""
    if value is NO_VALUE or value is None:
        return False
    if isinstance(value, Struct):
        return True
    if isinstance(value, (bool, int, float, str, list, dict)):
        return bool(value)
    return True


def type_name(value: Any) -> str:
    """Return Go's name for a value's type."""
    if value is None or value is NO_VALUE:
        return "nil"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float64"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        return "[]string" if value and all(isinstance(one, str) for one in value) else "[]interface {}"
    if isinstance(value, Struct):
        return value.go_type
    if isinstance(value, dict):
        return "map[string]interface {}"
    return str(getattr(value, "type_name", type(value).__name__))


def format_float(value: float) -> str:
    """Print a float as %v does: shortest form, exponent below -4 and from 21 on."""
    if value != value:  # noqa: PLR0124 - only NaN differs from itself
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    text = repr(value)
    mantissa, _, power = text.partition("e")
    exponent = int(power or 0)
    if power and not (exponent < -4 or exponent >= 21):
        return (
            f"{value:.0f}"
            if exponent > 0
            else f"{value:.{len(mantissa.replace('.', '')) - exponent}f}".rstrip("0")
        )
    if power:
        return f"{mantissa.removesuffix('.0')}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    return text.removesuffix(".0")


def quote(text: str) -> str:
    """Quote a string as %q does."""
    out = ['"']
    for letter in text:
        if letter in '"\\':
            out.append("\\" + letter)
        elif letter.isprintable():
            out.append(letter)
        else:
            named = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
            code = ord(letter)
            wide = f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
            out.append(named.get(letter) or (f"\\x{code:02x}" if code < 0x80 else wide))
    return "".join(out) + '"'


def format_value(value: Any, *, nested: bool = False) -> str:
    """Print a value as %v does."""
    if value is NO_VALUE:
        return "<no value>"
    if value is None:
        return "<nil>"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format_float(value)
    if isinstance(value, Struct):
        return "{" + " ".join(format_value(one, nested=True) for one in value.values()) + "}"
    if isinstance(value, dict):
        pairs = sorted(value.items(), key=lambda pair: str(pair[0]))
        return "map[" + " ".join(f"{key}:{format_value(one, nested=True)}" for key, one in pairs) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(format_value(one, nested=True) for one in value) + "]"
    return str(value)


def plain(value: Any) -> Any:
    """Return the JSON a value came from."""
    if isinstance(value, Struct):
        return value.raw
    if isinstance(value, (NilList, NilMap)) or value is NO_VALUE:
        return None
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if (marshal := getattr(value, "marshal", None)) is not None:
        return marshal()
    return value


def compare_kind(value: Any) -> str:
    """Return the kind under which Go compares a value; TemplateError when it cannot."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        return "string"
    if value is None or value is NO_VALUE:
        return "nil"
    raise TemplateError("non-comparable type " + type_name(value))
