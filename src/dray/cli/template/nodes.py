"""The parts of a parsed template. `str(node)` is its text as error messages quote it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Node:
    """Anything with a place in the template."""

    __slots__ = ("position", "text")

    def __init__(self, position: int, text: str = "") -> None:
        self.position = position
        self.text = text

    def __str__(self) -> str:
        return self.text


class Text(Node):
    """Text outside actions."""

    __slots__ = ()


class Constant(Node):
    """A string, number, boolean, character or nil; `value` is what it stands for."""

    __slots__ = ("value",)

    def __init__(self, position: int, text: str, value: Any) -> None:
        super().__init__(position, text)
        self.value = value


class Dot(Node):
    """The value at hand."""

    __slots__ = ()


class Identifier(Node):
    """A function's name."""

    __slots__ = ()


class Field(Node):
    """`.A.B`: fields of the value at hand."""

    __slots__ = ("names",)

    def __init__(self, position: int, names: list[str]) -> None:
        super().__init__(position, "".join(f".{name}" for name in names))
        self.names = names


class Variable(Node):
    """`$x.A.B`: a variable and fields of it."""

    __slots__ = ("names",)

    def __init__(self, position: int, names: list[str]) -> None:
        super().__init__(position, ".".join(names))
        self.names = names


class Chain(Node):
    """`(pipeline).A.B`: fields of a computed value."""

    __slots__ = ("names", "node")

    def __init__(self, position: int, node: Node, names: list[str]) -> None:
        inner = f"({node})" if isinstance(node, Pipe) else str(node)
        super().__init__(position, inner + "".join(f".{name}" for name in names))
        self.node = node
        self.names = names


class Command(Node):
    """A function, method or operand with its arguments."""

    __slots__ = ("arguments",)

    def __init__(self, position: int, arguments: list[Node]) -> None:
        words = [f"({one})" if isinstance(one, Pipe) else str(one) for one in arguments]
        super().__init__(position, " ".join(words))
        self.arguments = arguments


class Pipe(Node):
    """Commands joined by `|`, and the variables that take its value (`declare`: new ones)."""

    __slots__ = ("commands", "declare", "variables")

    def __init__(self, position: int, commands: list[Command], variables: list[str], *, declare: bool) -> None:
        head = ", ".join(variables) + (" := " if declare else " = ") if variables else ""
        super().__init__(position, head + " | ".join(map(str, commands)))
        self.commands = commands
        self.variables = variables
        self.declare = declare


class Action(Node):
    """A pipeline whose value is printed."""

    __slots__ = ("pipe",)

    def __init__(self, position: int, pipe: Pipe) -> None:
        super().__init__(position, f"{{{{{pipe}}}}}")
        self.pipe = pipe


class Branch(Node):
    """`if`, `with` or `range` with its two bodies."""

    __slots__ = ("body", "kind", "other", "pipe")

    def __init__(self, position: int, kind: str, pipe: Pipe, body: list[Node], other: list[Node]) -> None:
        super().__init__(position, f"{{{{{kind} {pipe}}}}}")
        self.kind = kind
        self.pipe = pipe
        self.body = body
        self.other = other


class Jump(Node):
    """`break` or `continue` (its text)."""

    __slots__ = ()


class Call(Node):
    """`{{template "name" pipeline}}`."""

    __slots__ = ("name", "pipe")

    def __init__(self, position: int, name: str, pipe: Pipe | None) -> None:
        argument = f" {pipe}" if pipe is not None else ""
        super().__init__(position, f'{{{{template "{name}"{argument}}}}}')
        self.name = name
        self.pipe = pipe
