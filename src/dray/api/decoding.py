"""Reading JSON the way Docker's Go code reads it, into the structures of `api.models`.

Go's rules, which clients rely on: a missing field and a `null` are the zero value; keys match exactly, else without
regard to case; an unknown key is no error. Unlike Go, this collects the unknown keys, so that the engine can say
what it did not obey. A wrong type is InvalidParameter, with the place in the document.

Hostile bodies: the caller caps the size; depth is capped here, before the parser sees the text (a parser that gives
up on deep nesting may leave the interpreter's recursion count raised); integers must fit 64 bits.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
from msgspec import inspect as types

from dray.api import syntax
from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern

T = TypeVar("T")


DEPTH_LIMIT = 200

# Strings are matched whole, so that brackets within them do not count.
_STRUCTURE = pattern(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)

# A reader takes (value, its path, the list of unknown keys) and returns what `msgspec.convert` will accept.
_Reader = Callable[[Any, str, list[str]], Any]

_ZEROS = {types.StrType: "", types.IntType: 0, types.FloatType: 0.0, types.BoolType: False}


def _plain(value: Any, path: str, unknown: list[str]) -> Any:
    return value


def _integer(value: Any, path: str, unknown: list[str]) -> Any:
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise InvalidParameter(f"invalid JSON: number {value} does not fit 64 bits at {path or 'the top'}")
    return value


def _zero(kind: types.Type) -> Any:
    match kind:
        case types.Metadata(type=inner):
            return _zero(inner)
        case types.UnionType() | types.NoneType() | types.AnyType():
            return None
        case types.ListType():
            return []
        case types.DictType() | types.StructType():
            return {}
    return _ZEROS.get(type(kind))


def _list_reader(item: types.Type, *, accepts_string: bool) -> _Reader:
    read, zero = _reader(item), _zero(item)

    def read_list(value: Any, path: str, unknown: list[str]) -> Any:
        if not isinstance(value, list):
            return [value] if accepts_string and isinstance(value, str) else value
        if read is _plain:
            return [zero if v is None else v for v in value] if None in value else value
        return [zero if v is None else read(v, f"{path}[{i}]", unknown) for i, v in enumerate(value)]

    return read_list


def _dict_reader(item: types.Type) -> _Reader:
    read, zero = _reader(item), _zero(item)

    def read_dict(value: Any, path: str, unknown: list[str]) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: zero if v is None else read(v, f"{path}.{k}", unknown) for k, v in value.items()}

    return read_dict


def _struct_reader(kind: types.StructType) -> _Reader:
    fields: dict[str, _Reader] = {}
    folded: dict[str, str] = {}

    def prepare() -> None:
        for field in kind.fields:
            fields[field.encode_name] = _reader(field.type)
            folded[field.encode_name.casefold()] = field.encode_name

    def read_struct(value: Any, path: str, unknown: list[str]) -> Any:
        if not isinstance(value, dict):
            return value
        if not folded:
            prepare()
        result = {}
        for key, entry in value.items():
            name = key
            read = fields.get(key)
            if read is None:
                name = folded.get(key.casefold(), "")
                if not name:
                    unknown.append(f"{path}.{key}" if path else key)
                    continue
                if name in value:
                    continue  # the exact spelling wins
                read = fields[name]
            if entry is not None:
                result[name] = (
                    entry if read is _plain else read(entry, f"{path}.{name}" if path else name, unknown)
                )
        return result

    return read_struct


def _reader(kind: types.Type) -> _Reader:
    match kind:
        case types.Metadata(type=types.ListType(item_type=item), extra={"accepts": "string"}):
            return _list_reader(item, accepts_string=True)
        case types.Metadata(type=inner):
            return _reader(inner)
        case types.UnionType(types=members):
            return next((_reader(m) for m in members if not isinstance(m, types.NoneType)), _plain)
        case types.ListType(item_type=item):
            return _list_reader(item, accepts_string=False)
        case types.DictType(value_type=item):
            return _dict_reader(item)
        case types.StructType(cls=cls):
            return _reader_of(cls)
        case types.IntType():
            return _integer
    return _plain


@functools.cache
def _reader_of(cls: type[msgspec.Struct]) -> _Reader:
    kind = types.type_info(cls)
    assert isinstance(kind, types.StructType)
    return _struct_reader(kind)


def _check_depth(body: bytes) -> None:
    # The number of openings bounds the depth, and hardly any request has as many.
    if body.count(b"{") + body.count(b"[") <= DEPTH_LIMIT:
        return
    depth = 0
    for match in _STRUCTURE.finditer(body):
        mark = match[0]
        if mark in b"{[":
            depth += 1
            if depth > DEPTH_LIMIT:
                raise InvalidParameter("invalid JSON: nested too deeply")
        elif mark in b"}]":
            depth -= 1


def parse(body: bytes) -> Any:
    """Parse one JSON document; InvalidParameter in Docker's words if it is malformed or something follows it."""
    _check_depth(body)
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        text = str(error)
        if "trailing characters" in text:
            raise InvalidParameter("unexpected content after JSON") from error
        raise InvalidParameter(f"invalid JSON: {syntax.complaint(body) or text}") from error
    except UnicodeDecodeError as error:
        raise InvalidParameter(
            f"invalid JSON: a string is not UTF-8 (byte {error.object[error.start]:#x})"
        ) from error


def convert(document: Any, cls: type[T], unknown: list[str] | None = None) -> T:
    """Turn a parsed JSON value into a structure; paths of unknown keys are appended to `unknown`."""
    collected = unknown if unknown is not None else []
    try:
        ready = _reader_of(cls)({} if document is None else document, "", collected)  # type: ignore[arg-type]
        return msgspec.convert(ready, cls)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"invalid JSON: {str(error).replace('`$', '`').replace('`.', '`')}") from error


def decode(body: bytes, cls: type[T]) -> tuple[T, list[str]]:
    """Decode a request body; return the structure and the unknown keys' paths. An empty body is all zero values."""
    unknown: list[str] = []
    return convert(parse(body) if body.strip() else None, cls, unknown), unknown


def warnings_for(unknown: Iterable[str]) -> list[str]:
    """Return what to tell a client whose request had keys that nobody reads."""
    return [f"Unknown field ignored: {key}" for key in unknown]
