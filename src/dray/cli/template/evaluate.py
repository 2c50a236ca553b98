"""Nodes and a value to text."""

from __future__ import annotations

from dray.cli.template.errors import TemplateError
from dray.cli.template.nodes import (
    Action,
    Branch,
    Call,
    Chain,
    Command,
    Constant,
    Dot,
    Field,
    Identifier,
    Jump,
    Node,
    Pipe,
    Text,
    Variable,
)
from dray.cli.template.parser import Tree
from dray.cli.template.values import NO_VALUE, Struct, format_value, is_true, type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

_NOTHING = object()
_MAX_DEPTH = 100


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _State:
    def __init__(self, tree: Tree, functions: Mapping[str, Callable[..., Any]], *, strict: bool) -> None:
        self.tree = tree
        self.name = tree.name
        self.functions = functions
        self.strict = strict
        self.variables: list[tuple[str, Any]] = []
        self.out: list[str] = []
        self.depth = 0

    def fail(self, node: Node, message: str) -> TemplateError:
        before = self.tree.text[: node.position]
        column = len(before[before.rfind("\n") + 1 :].encode())
        place = f"{self.tree.name}:{1 + before.count(chr(10))}:{column}"
        return TemplateError(f'template: {place}: executing "{self.name}" at <{node}>: {message}')

    # -- statements --------------------------------------------------------------------------------------------

    def walk(self, nodes: list[Node], dot: Any) -> None:
        for node in nodes:
            if isinstance(node, Text):
                self.out.append(node.text)
            elif isinstance(node, Action):
                value = self.pipe(node.pipe, dot)
                if not node.pipe.variables:
                    self.out.append(self.printed(node, value))
            elif isinstance(node, Branch):
                self.branch(node, dot)
            elif isinstance(node, Call):
                self.call(node, dot)
            elif isinstance(node, Jump):
                raise _Break if node.text == "break" else _Continue

    def printed(self, node: Node, value: Any) -> str:
        if callable(value):
            raise self.fail(node, f"can't print {node} of type func")
        return format_value(value)

    def branch(self, node: Branch, dot: Any) -> None:
        mark = len(self.variables)
        if node.kind == "range":
            self.range(node, dot)
        else:
            value = self.pipe(node.pipe, dot)
            if is_true(value):
                self.walk(node.body, value if node.kind == "with" else dot)
            else:
                self.walk(node.other, dot)
        del self.variables[mark:]

    def items(self, node: Branch, value: Any) -> Iterator[tuple[Any, Any]]:
        if isinstance(value, (bool, str, float, Struct)):
            if isinstance(value, str):
                return iter([(at, ord(letter)) for at, letter in enumerate(value)])
            raise self.fail(node.pipe, f"range can't iterate over {format_value(value)}")
        if isinstance(value, int):
            return ((number, number) for number in range(value))
        if isinstance(value, dict):
            return iter(sorted(value.items(), key=lambda pair: str(pair[0])))
        if isinstance(value, (list, tuple)):
            return enumerate(value)
        if value is None or value is NO_VALUE:
            return iter(())
        raise self.fail(node.pipe, f"range can't iterate over {format_value(value)}")

    def range(self, node: Branch, dot: Any) -> None:
        variables = node.pipe.variables
        value = self.pipe(node.pipe, dot, assign=False)
        mark, any_item = len(self.variables), False
        for key, item in self.items(node, value):
            any_item = True
            pair = [key, item] if len(variables) == 2 else [item]
            for name, one in zip(variables, pair, strict=False):
                if node.pipe.declare:
                    self.variables.append((name, one))
                else:
                    self.assign(name, one)
            try:
                self.walk(node.body, item)
            except _Continue:
                pass
            except _Break:
                del self.variables[mark:]
                break
            del self.variables[mark:]
        if not any_item:
            self.walk(node.other, dot)

    def call(self, node: Call, dot: Any) -> None:
        body = self.tree.defined.get(node.name)
        if body is None:
            raise self.fail(node, f'template "{node.name}" not defined')
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.fail(node, "exceeded maximum template depth")
        value = self.pipe(node.pipe, dot) if node.pipe is not None else NO_VALUE
        held, self.variables, name, self.name = self.variables, [("$", value)], self.name, node.name
        self.walk(body, value)
        self.variables, self.name = held, name
        self.depth -= 1

    # -- values ------------------------------------------------------------------------------------------------

    def assign(self, name: str, value: Any) -> None:
        for at in range(len(self.variables) - 1, -1, -1):
            if self.variables[at][0] == name:
                self.variables[at] = (name, value)
                return

    def variable(self, name: str) -> Any:
        return next(value for held, value in reversed(self.variables) if held == name)

    def pipe(self, node: Pipe, dot: Any, *, assign: bool = True) -> Any:
        value: Any = _NOTHING
        for command in node.commands:
            value = self.command(command, dot, value)
        if assign:
            for name in node.variables:
                if node.declare:
                    self.variables.append((name, value))
                else:
                    self.assign(name, value)
        return value

    def command(self, node: Command, dot: Any, final: Any) -> Any:
        first, rest = node.arguments[0], node.arguments[1:]
        if isinstance(first, Identifier):
            return self.function(first, node, rest, dot, final)
        if isinstance(first, Field):
            return self.fields(first, dot, first.names, rest, dot, final)
        if isinstance(first, Variable):
            held = self.variable(first.names[0])
            if len(first.names) > 1:
                return self.fields(first, held, first.names[1:], rest, dot, final)
            self.no_arguments(first, rest, final)
            return held
        if isinstance(first, Chain):
            return self.fields(first, self.argument(first.node, dot), first.names, rest, dot, final)
        self.no_arguments(first, rest, final)
        if isinstance(first, Constant) and first.value is None:
            raise self.fail(first, "nil is not a command")
        return self.argument(first, dot)

    def no_arguments(self, node: Node, rest: list[Node], final: Any) -> None:
        if rest or final is not _NOTHING:
            raise self.fail(node, f"can't give argument to non-function {node}")

    def argument(self, node: Node, dot: Any) -> Any:
        if isinstance(node, Dot):
            return dot
        if isinstance(node, Constant):
            return node.value
        if isinstance(node, Pipe):
            return self.pipe(node, dot)
        return self.command(Command(node.position, [node]), dot, _NOTHING)

    def arguments(self, nodes: list[Node], dot: Any, final: Any) -> list[Any]:
        return [self.argument(node, dot) for node in nodes] + ([] if final is _NOTHING else [final])

    def function(self, name: Identifier, node: Command, rest: list[Node], dot: Any, final: Any) -> Any:
        if name.text in ("and", "or") and rest:
            value: Any = None
            for one in rest:
                value = self.argument(one, dot)
                if is_true(value) == (name.text == "or"):
                    return value
            return value if final is _NOTHING else final
        return self.invoke(node, name.text, self.functions[name.text], self.arguments(rest, dot, final))

    def invoke(self, node: Node, name: str, function: Callable[..., Any], arguments: list[Any]) -> Any:
        try:
            return function(*arguments)
        except TemplateError as error:
            raise self.fail(node, f"error calling {name}: {error}") from None
        except TypeError:
            code = getattr(function, "__code__", None)
            if code is not None and code.co_argcount != len(arguments):
                words = f"want {code.co_argcount} got {len(arguments)}"
                raise self.fail(node, f"wrong number of args for {name}: {words}") from None
            raise self.fail(node, f"wrong type of argument for {name}") from None

    def fields(self, node: Node, value: Any, names: list[str], rest: list[Node], dot: Any, final: Any) -> Any:
        for name in names[:-1]:
            value = self.field(node, value, name, None)
        extra = self.arguments(rest, dot, final) if rest or final is not _NOTHING else None
        return self.field(node, value, names[-1], extra)

    def field(self, node: Node, value: Any, name: str, arguments: list[Any] | None) -> Any:
        if isinstance(value, Struct):
            try:
                found = value.lookup(name)
            except KeyError:
                raise self.fail(node, f"can't evaluate field {name} in type {value.go_type}") from None
        elif isinstance(value, dict):
            if arguments is not None:
                raise self.fail(node, f"{name} is not a method but has arguments")
            if name not in value:
                if self.strict:
                    raise self.fail(node, f'map has no entry for key "{name}"')
                return NO_VALUE
            found = value[name]
        elif (reader := getattr(value, "field", None)) is not None:
            try:
                found = reader(name)
            except KeyError:
                raise self.fail(node, f"can't evaluate field {name} in type {type_name(value)}") from None
        elif value is None or value is NO_VALUE:
            raise self.fail(node, f"nil pointer evaluating interface {{}}.{name}")
        else:
            kind = "interface {}" if self.strict else type_name(value)
            raise self.fail(node, f"can't evaluate field {name} in type {kind}")
        if callable(found):
            return self.invoke(node, name, found, arguments or [])
        if arguments is not None:
            raise self.fail(node, f"{name} has arguments but cannot be invoked as function")
        return found


def execute(
    tree: Tree, value: Any, functions: Mapping[str, Callable[..., Any]], *, missing_key_error: bool = False
) -> str:
    """Return the output of a template for a value; TemplateError in Go's words."""
    state = _State(tree, functions, strict=missing_key_error)
    state.variables.append(("$", value))
    state.walk(tree.nodes, value)
    return "".join(state.out)
