"""Tokens to nodes, with Go's messages for what is not a template."""

from __future__ import annotations

import ast

from dray.cli.template.errors import ParseError
from dray.cli.template.lexer import Lexer, Token
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

_OPERANDS = frozenset(("field", "dot", "variable", "identifier", "string", "char", "number", "("))
_KEYWORDS = frozenset(("if", "with", "range", "else", "end", "break", "continue", "template", "define", "block"))


class Tree:
    """A parsed template: its text and name (for messages), its nodes, and the templates it defines."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.nodes: list[Node] = []
        self.defined: dict[str, list[Node]] = {}


class _End:
    """Why a list of nodes ended: `end`, or `else` with what follows it (`if`, `with`, empty)."""

    def __init__(self, kind: str, token: Token, chained: str = "") -> None:
        self.kind = kind
        self.token = token
        self.chained = chained


def unquote(text: str) -> str:
    """Return what a Go string literal stands for."""
    if text.startswith("`"):
        return text[1:-1]
    return str(ast.literal_eval(text))


class _Parser:
    def __init__(self, text: str, name: str, functions: frozenset[str]) -> None:
        self.lexer = Lexer(text, name)
        self.tokens = self.lexer.tokens
        self.at = 0
        self.functions = functions
        self.tree = Tree(name, text)
        self.scope = ["$"]
        self.loops = 0

    # -- tokens ------------------------------------------------------------------------------------------------

    def peek(self, *, spaces: bool = False) -> Token:
        at = self.at
        while not spaces and self.tokens[at].kind == "space":
            at += 1
        return self.tokens[at]

    def next(self) -> Token:
        while self.tokens[self.at].kind == "space":
            self.at += 1
        token = self.tokens[self.at]
        self.at += 1
        return token

    def fail(self, message: str, token: Token | None = None) -> ParseError:
        return self.lexer.fail((token or self.tokens[max(self.at - 1, 0)]).position, message)

    def unexpected(self, token: Token, where: str) -> ParseError:
        shown = (
            "EOF"
            if token.kind == "end"
            else f"<{token.text}>"
            if token.kind == "identifier"
            else f'"{token.text}"'
        )
        return self.fail(f"unexpected {shown} in {where}", token)

    # -- lists of nodes ----------------------------------------------------------------------------------------

    def nodes(self, *, top: bool) -> tuple[list[Node], _End | None]:
        found: list[Node] = []
        while True:
            token = self.next()
            if token.kind == "end":
                if top:
                    return found, None
                raise self.fail("unexpected EOF", token)
            if token.kind == "text":
                found.append(Text(token.position, token.text))
                continue
            node = self.action(token, top=top)
            if isinstance(node, _End):
                if top:
                    raise self.fail(f"unexpected {{{{{node.kind}}}}}", node.token)
                return found, node
            if node is not None:
                found.append(node)

    def action(self, left: Token, *, top: bool) -> Node | _End | None:
        word = self.peek()
        if word.kind == "identifier" and word.text in _KEYWORDS:
            self.next()
            return self.keyword(word, top=top)
        pipe = self.pipeline("command")
        self.right("command")
        return Action(left.position, pipe)

    def right(self, where: str) -> None:
        token = self.next()
        if token.kind != "right":
            raise self.unexpected(token, where)

    def keyword(self, word: Token, *, top: bool) -> Node | _End | None:
        if word.text == "end":
            self.right("end")
            return _End("end", word)
        if word.text == "else":
            after = self.peek()
            if after.kind == "identifier" and after.text in ("if", "with"):
                return _End("else", word, after.text)
            self.right("else")
            return _End("else", word)
        if word.text in ("break", "continue"):
            if not self.loops:
                raise self.fail(f"{{{{{word.text}}}}} outside {{{{range}}}}", word)
            self.right(word.text)
            return Jump(word.position, word.text)
        if word.text == "template":
            return self.call(word)
        if word.text in ("define", "block"):
            return self.define(word, top=top)
        return self.branch(word)

    def branch(self, word: Token) -> Branch:
        depth = len(self.scope)
        pipe = self.pipeline(word.text, at_range=word.text == "range")
        self.right(word.text)
        self.loops += word.text == "range"
        body, end = self.nodes(top=False)
        self.loops -= word.text == "range"
        other: list[Node] = []
        assert end is not None
        if end.kind == "else":
            if end.chained and word.text != "range":
                other = [self.branch(self.next())]
            else:
                other, end = self.nodes(top=False)
                assert end is not None
                if end.kind != "end":
                    raise self.fail(f"expected end; found {{{{{end.kind}}}}}", end.token)
        del self.scope[depth:]
        return Branch(pipe.position, word.text, pipe, body, other)

    def name(self, where: str) -> str:
        token = self.next()
        if token.kind != "string":
            raise self.unexpected(token, where)
        return unquote(token.text)

    def call(self, word: Token) -> Call:
        name = self.name("template clause")
        pipe = None if self.peek().kind == "right" else self.pipeline("template clause")
        self.right("template clause")
        return Call(word.position + 9, name, pipe)

    def define(self, word: Token, *, top: bool) -> Node | None:
        if word.text == "define" and not top:
            raise self.fail("unexpected {{define}}", word)
        name = self.name(f"{word.text} clause")
        pipe = self.pipeline("block clause") if word.text == "block" else None
        self.right(f"{word.text} clause")
        held, self.scope = self.scope, ["$"]
        body, end = self.nodes(top=False)
        self.scope = held
        if end is None or end.kind != "end":
            raise self.fail(f"unexpected {{{{else}}}} in {word.text} clause", word)
        self.tree.defined[name] = body
        return Call(word.position, name, pipe) if pipe is not None else None

    # -- pipelines ---------------------------------------------------------------------------------------------

    def variables(self, *, at_range: bool) -> tuple[list[str], bool]:
        """Read `$x :=`, `$x =` or (in a range) `$i, $x :=` if the pipeline begins so."""
        start, names = self.at, []
        while self.peek().kind == "variable":
            names.append(self.next())
            token = self.peek()
            if token.kind in ("declare", "="):
                self.next()
                words = [one.text for one in names]
                if token.kind == "declare":
                    self.scope.extend(words)
                else:
                    for one in names:
                        self.known(one)
                return words, token.kind == "declare"
            if token.kind == "," and at_range and len(names) < 2:
                self.next()
                continue
            break
        self.at = start
        return [], False

    def known(self, token: Token) -> None:
        if token.text not in self.scope:
            raise self.fail(f'undefined variable "{token.text}"', token)

    def pipeline(self, where: str, *, at_range: bool = False) -> Pipe:
        position = self.peek().position
        variables, declare = self.variables(at_range=at_range)
        commands: list[Command] = []
        while True:
            token = self.peek()
            if token.kind in ("right", ")"):
                if not commands:
                    raise self.fail(f"missing value for {where}", token)
                break
            if token.kind not in _OPERANDS:
                raise self.unexpected(token, where)
            commands.append(self.command(where))
            token = self.peek()
            if token.kind == "|":
                self.next()
                if self.peek().kind in ("right", ")"):
                    raise self.fail(f"missing value for {where}", token)
        for index, one in enumerate(commands[1:], 2):
            if isinstance(one.arguments[0], (Constant, Dot)):
                raise self.fail(f"non executable command in pipeline stage {index}")
        return Pipe(position, commands, variables, declare=declare)

    def command(self, where: str) -> Command:
        position = self.peek().position
        arguments: list[Node] = []
        while self.peek().kind in _OPERANDS:
            if arguments and self.peek(spaces=True).kind != "space" and self.tokens[self.at - 1].kind != "space":
                raise self.unexpected(self.peek(), "operand")
            arguments.append(self.operand())
        token = self.peek()
        if token.kind not in ("right", ")", "|"):
            raise self.unexpected(token, where)
        return Command(position, arguments)

    def operand(self) -> Node:
        node = self.term()
        names: list[str] = []
        position = self.peek(spaces=True).position
        while self.peek(spaces=True).kind == "field":
            names.append(self.next().text[1:])
        if not names:
            return node
        if isinstance(node, Field):
            return Field(position, node.names + names)
        if isinstance(node, Variable):
            return Variable(position, node.names + names)
        if isinstance(node, Constant):
            raise self.fail(f"unexpected . after term {str(node)!r}")
        return Chain(position, node, names)

    def term(self) -> Node:
        token = self.next()
        if token.kind == "field":
            return Field(token.position, [token.text[1:]])
        if token.kind == "dot":
            return Dot(token.position, ".")
        if token.kind == "variable":
            self.known(token)
            return Variable(token.position, [token.text])
        if token.kind == "(":
            pipe = self.pipeline("parenthesized pipeline")
            if self.next().kind != ")":
                raise self.fail("unclosed left paren", token)
            return pipe
        if token.kind == "identifier":
            if token.text in ("true", "false", "nil"):
                return Constant(
                    token.position, token.text, {"true": True, "false": False, "nil": None}[token.text]
                )
            if token.text not in self.functions:
                raise self.fail(f'function "{token.text}" not defined', token)
            return Identifier(token.position, token.text)
        return Constant(token.position, token.text, self.literal(token))

    def literal(self, token: Token) -> str | int | float:
        try:
            if token.kind == "string":
                return unquote(token.text)
            if token.kind == "char":
                return ord(ast.literal_eval(token.text))
            body = token.text.lstrip("+-")
            if len(body) > 1 and body[0] == "0" and body.isdigit():
                return int(token.text, 8)
            return (
                int(token.text, 0)
                if body.isdigit() or body[:2].lower() in ("0x", "0b", "0o")
                else float(token.text)
            )
        except (ValueError, SyntaxError, TypeError):
            raise self.fail(f'bad number syntax: "{token.text}"', token) from None


def parse(text: str, name: str, functions: frozenset[str]) -> Tree:
    """Parse a template; ParseError in Go's words. `functions` are the names it may call."""
    parser = _Parser(text, name, functions)
    parser.tree.nodes, _ = parser.nodes(top=True)
    return parser.tree
