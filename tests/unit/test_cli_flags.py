"""The rules of pflag, as tables."""

from __future__ import annotations

import pytest

from dray.base.errors import InvalidParameter
from dray.cli.flags import Flag, FlagError, HelpAsked, parse, parse_cpus, parse_csv, parse_duration, parse_int

FLAGS = (
    Flag("all", "bool", "", short="a"),
    Flag("interactive", "bool", "", short="i"),
    Flag("tty", "bool", "", short="t"),
    Flag("proxy", "bool", "", default=True),
    Flag("publish", "list", "", short="p"),
    Flag("name", "string", "", short="n"),
    Flag("count", "int", "", short="c", default=-1),
    Flag("memory", "bytes", "", short="m"),
    Flag("alias", "strings", ""),
    Flag("opt", "map", "", short="o"),
    Flag("filter", "filter", "", short="f"),
)


def test_defaults_are_not_changed() -> None:
    values, arguments = parse(FLAGS, ["x"])
    assert arguments == ["x"]
    assert values.changed == set()
    assert (values["all"], values["proxy"], values["count"], values["publish"], values["opt"]) == (
        False,
        True,
        -1,
        [],
        {},
    )
    assert values.given("count") is None


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["-it"], "tty", True),
        (["-itn", "x"], "name", "x"),
        (["-itnx"], "name", "x"),
        (["-n=x"], "name", "x"),
        (["-p8080:80", "-p", "90"], "publish", ["8080:80", "90"]),
        (["--name=a=b"], "name", "a=b"),
        (["--name", "-x"], "name", "-x"),
        (["--name="], "name", ""),
        (["--proxy=false"], "proxy", False),
        (["--proxy=F"], "proxy", False),
        (["-a=true"], "all", True),
        (["-m", "1.5g"], "memory", 1610612736),
        (["-c", "0x10"], "count", 16),
        (["-c", "010"], "count", 8),
        (["--alias", 'a,"b,c"', "--alias", "d"], "alias", ["a", "b,c", "d"]),
        (["-o", "a=b=c", "-o", "d"], "opt", {"a": "b=c", "d": ""}),
        (["-f", "Label=a", "-f", "label=b"], "filter", {"label": {"a": True, "b": True}}),
    ],
)
def test_values(words: list[str], name: str, value: object) -> None:
    values, arguments = parse(FLAGS, words)
    assert values[name] == value
    assert arguments == []
    assert name in values.changed


@pytest.mark.parametrize(
    ("words", "interspersed", "arguments"),
    [
        (["a", "-i", "b"], True, ["a", "b"]),
        (["-i", "a", "-t", "b"], False, ["a", "-t", "b"]),
        (["--", "-i"], True, ["-i"]),
        (["a", "--", "-i"], True, ["a", "-i"]),
        (["-"], True, ["-"]),
        (["a", "--", "-i"], False, ["a", "--", "-i"]),
    ],
)
def test_where_flags_end(words: list[str], interspersed: bool, arguments: list[str]) -> None:
    assert parse(FLAGS, words, interspersed=interspersed)[1] == arguments


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nope"], "unknown flag: --nope"),
        (["-iZ"], "unknown shorthand flag: 'Z' in -Z"),
        (["--name"], "flag needs an argument: --name"),
        (["-in"], "flag needs an argument: 'n' in -n"),
        (["--=x"], "bad flag syntax: --=x"),
        (
            ["--all=maybe"],
            'invalid argument "maybe" for "-a, --all" flag: strconv.ParseBool: parsing "maybe": invalid syntax',
        ),
        (["-m", "x"], 'invalid argument "x" for "-m, --memory" flag: invalid size: \'x\''),
        (["-f", "x"], 'invalid argument "x" for "-f, --filter" flag: bad format of filter (expected name=value)'),
    ],
)
def test_errors(words: list[str], message: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse(FLAGS, words)
    assert str(caught.value) == message


def test_help() -> None:
    for words, short in (["--help"], False), (["-h"], True):
        with pytest.raises(HelpAsked) as caught:
            parse(FLAGS, words)
        assert caught.value.short is short
    assert parse(FLAGS, ["--help=false"])[1] == []


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1h30m", 5400 * 10**9),
        ("1.5s", 1500000000),
        ("100ms", 10**8),
        ("-2s", -2 * 10**9),
        ("0", 0),
        ("1us1ns", 1001),
    ],
)
def test_durations(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "1", "x", "1x", ".s", "-"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_duration(text)


def test_numbers() -> None:
    assert parse_cpus("1.5") == 1500000000
    with pytest.raises(InvalidParameter, match="too precise"):
        parse_cpus("0.00000000001")
    with pytest.raises(InvalidParameter, match="rational"):
        parse_cpus("abc")
    with pytest.raises(InvalidParameter, match="out of range"):
        parse_int("70000", 16, signed=False)
    assert parse_csv("a,b") == ["a", "b"]
