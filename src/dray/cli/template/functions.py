"""The functions a template may call: Go's own and those Docker adds (json, split, join, pad, truncate, …)."""

from __future__ import annotations

import json
import re

from dray.cli.template.errors import TemplateError
from dray.cli.template.values import (
    NO_VALUE,
    Struct,
    compare_kind,
    format_float,
    format_value,
    is_true,
    plain,
    quote,
    type_name,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def to_json(value: Any) -> str:
    """Marshal without HTML escapes (but for what marshals itself)."""
    if (text := getattr(value, "json_text", None)) is not None:
        return str(text())
    return json.dumps(plain(value), separators=(",", ":"), ensure_ascii=False)


def escape_html(text: str) -> str:
    """Escape what Go's Marshal escapes in JSON text so that it may stand in HTML."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TemplateError(f"wrong type for value; expected string; got {type_name(value)}")
    return value


def _title(text: str) -> str:
    return re.sub(r"(?<![\w'])\w", lambda match: match[0].upper(), _text(text, "title"))


def _pad(text: str, before: int, after: int) -> str:
    return " " * before + text + " " * after if text else text


def _truncate(text: str, length: int) -> str:
    return _text(text, "truncate")[:length]


def _split(text: str, separator: str) -> list[str]:
    return _text(text, "split").split(separator) if separator else list(text)


def _join(items: list[Any], separator: str) -> str:
    return separator.join(format_value(one) for one in items or ())


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is NO_VALUE or value is None:
            raise TemplateError("index of untyped nil")
        if isinstance(value, Struct) or not isinstance(value, (dict, list, str)):
            raise TemplateError(f"can't index item of type {type_name(value)}")
        if isinstance(value, dict):
            if not isinstance(key, str):
                raise TemplateError(f"value has type {type_name(key)}; should be string")
            strings = not value or all(isinstance(one, str) for one in value.values())
            value = value.get(key, "" if strings else NO_VALUE)
        else:
            if isinstance(key, bool) or not isinstance(key, int):
                raise TemplateError(f"cannot index slice/array with type {type_name(key)}")
            if not 0 <= key < len(value):
                raise TemplateError(f"index out of range: {key}")
            value = value[key] if isinstance(value, list) else value.encode()[key]
    return value


def _slice(value: Any, *bounds: int) -> Any:
    if not isinstance(value, (str, list)):
        raise TemplateError(f"can't slice item of type {type_name(value)}")
    data: Any = value.encode() if isinstance(value, str) else value
    start, stop = (*bounds, len(data))[:2] if bounds else (0, len(data))
    if len(bounds) < 2:
        stop = len(data)
    for bound in (start, stop):
        if not 0 <= bound <= len(data):
            raise TemplateError(f"index out of range: {bound}")
    if start > stop:
        raise TemplateError(f"invalid slice index: {start} > {stop}")
    part = data[start:stop]
    return part.decode("utf-8", "replace") if isinstance(part, bytes) else part


def _len(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, Struct) or not isinstance(value, (list, dict)):
        raise TemplateError(f"len of type {type_name(value)}")
    return len(value)


def _print(*values: Any) -> str:
    out = ""
    for index, value in enumerate(values):
        # Go's Print puts a space between operands when neither is a string.
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            out += " "
        out += format_value(value)
    return out


def _println(*values: Any) -> str:
    return " ".join(format_value(value) for value in values) + "\n"


_VERB = re.compile(
    r"%(?P<flags>[-+# 0]*)(?P<width>\*|[0-9]+)?(?:\.(?P<precision>\*|[0-9]*))?(?P<verb>.)", re.DOTALL
)


def _verb(verb: str, flags: str, precision: int | None, value: Any) -> str | None:
    """Format one value for one verb, without its width; None when the verb does not fit the value."""
    if verb == "v":
        return format_value(value)
    if verb == "T":
        return type_name(value)
    if verb == "t" and isinstance(value, bool):
        return format_value(value)
    if verb in "sq" and not isinstance(value, (bool, int, float)) and value is not None:
        text = format_value(value)[:precision]
        return text if verb == "s" else quote(text)
    if verb == "q" and isinstance(value, int) and not isinstance(value, bool):
        return f"'{chr(value)}'"
    if verb in "xX" and isinstance(value, str):
        return value.encode().hex() if verb == "x" else value.encode().hex().upper()
    if verb in "dxXobc" and isinstance(value, int) and not isinstance(value, bool):
        if verb == "c":
            return chr(value)
        digits = format(abs(value), verb)
        prefix = {"x": "0x", "X": "0X", "o": "0"}.get(verb, "") if "#" in flags else ""
        return ("-" if value < 0 else "+" if "+" in flags else " " if " " in flags else "") + prefix + digits
    if verb in "feEgG" and isinstance(value, float):
        body = (
            format_float(value)
            if verb in "gG" and precision is None
            else f"{value:.{6 if precision is None else precision}{verb}}"
        )
        return ("+" if "+" in flags and value >= 0 else "") + body
    return None


def _printf(form: str, *values: Any) -> str:
    rest = list(values)

    def one(match: re.Match[str]) -> str:
        verb, flags = match["verb"], match["flags"]
        if verb == "%":
            return "%"
        width = int(rest.pop(0)) if match["width"] == "*" else int(match["width"] or 0)
        text = match["precision"]
        precision = None if text is None else int(rest.pop(0)) if text == "*" else int(text or 0)
        if not rest:
            return f"%!{verb}(MISSING)"
        value = rest.pop(0)
        out = _verb(verb, flags, precision, value)
        if out is None:
            return f"%!{verb}({type_name(value)}={format_value(value)})"
        if "-" in flags:
            return out.ljust(width)
        if "0" in flags and verb not in "v" and isinstance(value, (int, float)):
            return out.zfill(width)
        return out.rjust(width)

    result = _VERB.sub(one, form)
    if rest:
        extra = ", ".join(f"{type_name(value)}={format_value(value)}" for value in rest)
        result += f"%!(EXTRA {extra})"
    return result


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise TemplateError("missing argument for comparison")
    kind = compare_kind(first)
    for other in others:
        if kind != compare_kind(other) and "nil" not in (kind, compare_kind(other)):
            raise TemplateError("incompatible types for comparison")
        if first == other and (first is None) == (other is None):
            return True
    return False


def _less(first: Any, second: Any) -> bool:
    kind = compare_kind(first)
    if kind != compare_kind(second):
        raise TemplateError("incompatible types for comparison")
    if kind in ("bool", "nil"):
        raise TemplateError("invalid type for comparison")
    return bool(first < second)


_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;", "\0": "\ufffd"})
_JS = str.maketrans(
    {
        "\\": "\\\\",
        "'": "\\'",
        '"': '\\"',
        "<": "\\u003C",
        ">": "\\u003E",
        "&": "\\u0026",
        "=": "\\u003D",
        "\n": "\\u000A",
        "\t": "\\u0009",
        "\r": "\\u000D",
    }
)


def _urlquery(*values: Any) -> str:
    from urllib.parse import quote_plus

    return quote_plus(_print(*values), safe="~")


def _call(function: Any, *arguments: Any) -> Any:
    if not callable(function):
        raise TemplateError(
            "call of nil" if function in (None, NO_VALUE) else f"non-function of type {type_name(function)}"
        )
    return function(*arguments)


BUILTINS: dict[str, Callable[..., Any]] = {
    # `and` and `or` stop at the first argument that decides; the evaluator knows them.
    "and": lambda *values: next((value for value in values if not is_true(value)), values[-1]),
    "or": lambda *values: next((value for value in values if is_true(value)), values[-1]),
    "not": lambda value: not is_true(value),
    "call": _call,
    "len": _len,
    "index": _index,
    "slice": _slice,
    "print": _print,
    "println": _println,
    "printf": _printf,
    "html": lambda *values: _print(*values).translate(_HTML),
    "js": lambda *values: _print(*values).translate(_JS),
    "urlquery": _urlquery,
    "eq": _equal,
    "ne": lambda first, second: not _equal(first, second),
    "lt": _less,
    "le": lambda first, second: _less(first, second) or _equal(first, second),
    "gt": lambda first, second: not (_less(first, second) or _equal(first, second)),
    "ge": lambda first, second: not _less(first, second),
    "json": to_json,
    "split": _split,
    "join": _join,
    "title": _title,
    "lower": lambda text: _text(text, "lower").lower(),
    "upper": lambda text: _text(text, "upper").upper(),
    "pad": _pad,
    "truncate": _truncate,
}
