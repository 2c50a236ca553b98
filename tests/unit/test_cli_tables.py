"""Tables, formats, and the words in their cells."""

from __future__ import annotations

import time

import pytest

from dray.base.errors import InvalidParameter
from dray.cli.commands.network import consolidate
from dray.cli.commands.observe import api_time
from dray.cli.commands.ps import display_image, display_ports
from dray.cli.output import Column, Listing, align, ellipsis, label_text, short_id, timestamp

LISTING = Listing(
    "*test.Context",
    {"Name": Column("NAME", lambda one: one["n"]), "Size": Column("SIZE OF IT", lambda one: one["s"])},
    ("Name", "Size"),
    methods={"Label": lambda one, name: one["l"].get(name, "")},
    raw=(("name", "Name"), ("size", "Size")),
    quiet="Name",
)
ITEMS = [{"n": "a", "s": "1", "l": {"x": "y"}}, {"n": "long-long-name", "s": "<2>", "l": {}}]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("", "NAME             SIZE OF IT\na                1\nlong-long-name   <2>\n"),
        ("table", "NAME             SIZE OF IT\na                1\nlong-long-name   <2>\n"),
        ("{{.Name}}={{.Size}}", "a=1\nlong-long-name=<2>\n"),
        ("table {{.Size}}\\t{{.Name}}", "SIZE OF IT   NAME\n1            a\n<2>          long-long-name\n"),
        (
            'table {{.Label "com.x-y"}}\\t{{upper .Name}}',
            "x y       NAME\n          A\n          LONG-LONG-NAME\n",
        ),
        ("json", '{"Name":"a","Size":"1"}\n{"Name":"long-long-name","Size":"\\u003c2\\u003e"}\n'),
        ("{{json .}}", '{"Name":"a","Size":"1"}\n{"Name":"long-long-name","Size":"\\u003c2\\u003e"}\n'),
        ("raw", "name: a\nsize: 1\n\nname: long-long-name\nsize: <2>\n\n"),
        ('{{.Label "x"}}|', "y|\n|\n"),
    ],
)
def test_formats(form: str, text: str) -> None:
    assert LISTING.render(ITEMS, form) == text


def test_quiet() -> None:
    assert LISTING.render(ITEMS, quiet=True) == "a\nlong-long-name\n"


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            "{{.Foo}}",
            'failed to execute template: template: :1:2: executing "" at <.Foo>: can\'t evaluate field Foo in type *test.Context',
        ),
        ("{{.Foo", "failed to parse template: template: :1: unclosed action"),
        (
            "{{.Label}}",
            'failed to execute template: template: :1:2: executing "" at <.Label>: wrong number of args for Label: want 1 got 0',
        ),
    ],
)
def test_format_errors(form: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        LISTING.render(ITEMS, form)
    assert str(caught.value) == message


def test_align_blocks() -> None:
    assert align(["a\tb", "ccccccccccccc\td", "", "e\tf"]) == [
        "a               b",
        "ccccccccccccc   d",
        "",
        "e         f",
    ]


@pytest.mark.parametrize(
    ("ports", "text"),
    [
        ([], ""),
        ([{"PrivatePort": 80, "Type": "tcp"}], "80/tcp"),
        ([{"PrivatePort": 80, "PublicPort": 8080, "IP": "0.0.0.0", "Type": "tcp"}], "0.0.0.0:8080->80/tcp"),
        ([{"PrivatePort": 80, "PublicPort": 8080, "IP": "::", "Type": "tcp"}], "[::]:8080->80/tcp"),
        (
            [
                {"PrivatePort": port, "PublicPort": port, "IP": "0.0.0.0", "Type": "tcp"}
                for port in (82, 80, 81, 90)
            ],
            "0.0.0.0:80-82->80-82/tcp, 0.0.0.0:90->90/tcp",
        ),
        (
            [{"PrivatePort": port, "Type": kind} for port, kind in ((80, "tcp"), (81, "tcp"), (80, "udp"))],
            "80-81/tcp, 80/udp",
        ),
    ],
)
def test_ports(ports: list[dict[str, object]], text: str) -> None:
    assert display_ports(ports) == text


@pytest.mark.parametrize(
    ("name", "image_id", "text"),
    [
        ("", "sha256:0", "<no image>"),
        ("busybox", "sha256:" + "a" * 64, "busybox"),
        ("sha256:" + "a" * 64, "sha256:" + "a" * 64, "a" * 12),
        ("docker.io/library/busybox:1", "sha256:0", "busybox:1"),
        ("busybox:1@sha256:" + "b" * 64, "sha256:0", "busybox:1"),
    ],
)
def test_images(name: str, image_id: str, text: str) -> None:
    assert display_image(name, image_id) == text


def test_small_things() -> None:
    assert ellipsis("abcdef", 4) == "abc…"
    assert ellipsis("日本語", 4) == "日…"
    assert short_id("sha256:" + "a" * 64) == "a" * 12
    assert label_text({"b": "2", "a": "1"}) == "a=1,b=2"
    assert label_text(None) == ""
    assert timestamp("1970-01-02T00:00:00.5+01:00") == 86400 - 3600 + 0.5
    assert timestamp("0001-01-01T00:00:00Z") < -60_000_000_000


@pytest.mark.parametrize(
    ("text", "api"),
    [
        ("", ""),
        ("1.5", "1.5"),
        ("0", "0"),
        ("10s", "990.000000000"),
        ("1970-01-02T00:00:00Z", "86400.000000000"),
        ("1970-01-02T00:00:00.25+01:00", "82800.250000000"),
    ],
)
def test_times(text: str, api: str) -> None:
    assert api_time(text, now=1000) == api


def test_local_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    try:
        assert api_time("1970-01-02") == "79200.000000000"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_times_that_are_none() -> None:
    with pytest.raises(InvalidParameter, match="failed to parse value as time or duration"):
        api_time("foo")


def test_subnets() -> None:
    pools = consolidate(["10.0.0.0/24", "fd00::/64"], ["10.0.0.0/25"], ["fd00::1", "10.0.0.1"], {"a": "10.0.0.5"})
    assert pools == [
        {
            "Subnet": "10.0.0.0/24",
            "IPRange": "10.0.0.0/25",
            "Gateway": "10.0.0.1",
            "AuxiliaryAddresses": {"a": "10.0.0.5"},
        },
        {"Subnet": "fd00::/64", "Gateway": "fd00::1"},
    ]
    with pytest.raises(InvalidParameter, match=r"no matching subnet for gateway 10\.1\.0\.1"):
        consolidate(["10.0.0.0/24"], [], ["10.1.0.1"], {})
    with pytest.raises(InvalidParameter, match="overlapping"):
        consolidate(["10.0.0.0/24", "10.0.0.0/25"], [], [], {})
