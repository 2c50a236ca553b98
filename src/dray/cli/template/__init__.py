"""Go's text/template, as far as a `--format` can reach: parse once, execute on any number of values.

`Template(text).execute(value)` returns the text. Values are Python's: dicts are Go maps, `values.Struct` a Go
struct, `Row`-like objects with a `field(name)` method stand for types with methods. What Go would refuse raises
`TemplateError` in Go's words.

lexer → parser (nodes) → evaluate (with functions and values). Source: the documentation of Go's text/template.
"""

from __future__ import annotations

from dray.cli.template.errors import ParseError, TemplateError
from dray.cli.template.evaluate import execute
from dray.cli.template.parser import Tree, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

__all__ = ["ParseError", "Template", "TemplateError"]


class Template:
    """A parsed template; `functions` are added to (or replace) the built-in ones."""

    def __init__(
        self, text: str, *, name: str = "", functions: Mapping[str, Callable[..., Any]] | None = None
    ) -> None:
        from dray.cli.template.functions import BUILTINS

        self._functions = {**BUILTINS, **(functions or {})}
        self._tree: Tree = parse(text, name, frozenset(self._functions))

    def execute(self, value: Any, *, missing_key_error: bool = False) -> str:
        """Return the template's output for a value."""
        return execute(self._tree, value, self._functions, missing_key_error=missing_key_error)
