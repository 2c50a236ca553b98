"""Go's templates: what they print, and what they say when they cannot. The answers are Go's, taken from docker."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.cli.template import ParseError, Template, TemplateError
from dray.cli.template.values import format_value
from dray.cli.typed import typed

VALUE: dict[str, Any] = {
    "Name": "/web",
    "Pid": 42,
    "Share": 1.5,
    "Up": True,
    "Args": ["x", "y"],
    "Empty": [],
    "Labels": {"b": "2", "a": "1"},
    "Nothing": None,
    "Deep": {"List": [{"K": "v1"}, {"K": "v2"}]},
}


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("plain", "plain"),
        ("{{.Name}}", "/web"),
        ("{{.Pid}} {{.Share}} {{.Up}} {{.Args}} {{.Labels}} {{.Empty}}", "42 1.5 true [x y] map[a:1 b:2] []"),
        ("{{.Missing}}", "<no value>"),
        ("{{json .Labels}} {{json .Name}} {{json .Nothing}}", '{"b":"2","a":"1"} "/web" null'),
        ("{{range .Args}}<{{.}}>{{end}}", "<x><y>"),
        ("{{range $i, $a := .Args}}{{$i}}={{$a}} {{end}}", "0=x 1=y "),
        ("{{range $k, $v := .Labels}}{{$k}}{{$v}};{{end}}", "a1;b2;"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{range 3}}{{if eq . 1}}{{continue}}{{end}}{{.}}{{end}}", "02"),
        ("{{range .Args}}{{.}}{{break}}{{end}}", "x"),
        ("{{if .Up}}yes{{else}}no{{end}}", "yes"),
        ("{{if eq .Pid 1}}a{{else if eq .Pid 42}}b{{else}}c{{end}}", "b"),
        ("{{if and .Up (gt .Pid 5)}}t{{end}}{{if or false .Empty}}f{{end}}", "t"),
        ("{{with .Labels}}{{.a}}{{end}}{{with .Empty}}x{{else}}-{{end}}", "1-"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"),
        ("{{$x := .Deep}}{{range $x.List}}{{.K}}{{end}}", "v1v2"),
        ("{{(index .Deep.List 1).K}}", "v2"),
        ('{{index .Labels "zz"}}|{{index .Args 1}}', "|y"),
        ('{{.Name | printf "%s-%s" "a" | upper}}', "A-/WEB"),
        (
            '{{printf "%5d|%-5d|%05d|%x|%q|%v|%t|%%" .Pid .Pid .Pid .Pid .Name .Args .Up}}',
            '   42|42   |00042|2a|"/web"|[x y]|true|%',
        ),
        (
            '{{printf "%d" .Name}} {{printf "%s"}} {{printf "a" 1}}',
            "%!d(string=/web) %!s(MISSING) a%!(EXTRA int=1)",
        ),
        ('{{printf "%.2f" .Share}}', "1.50"),
        ('{{split "a:b" ":"}} {{join .Args "+"}} {{lower "AB"}} {{title "ab cd"}}', "[a b] x+y ab Ab Cd"),
        ('{{pad "x" 1 2}}|{{truncate "abcdef" 3}}|{{slice "abcdef" 1 3}}|{{len .Args}}', " x  |abc|bc|2"),
        ('{{println .Pid}}{{print 1 2 "a" "b" 3}}', "42\n1 2ab3"),
        ('{{html "<a&b>"}} {{js "a\'b"}} {{urlquery "a b&"}}', "&lt;a&amp;b&gt; a\\'b a+b%26"),
        (
            '{{eq 1 2 1}} {{ne "a" "b"}} {{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 1 2}}',
            "true true true true false false",
        ),
        ("a {{- /* note */ -}} b", "ab"),
        ("a\n  {{- .Pid -}}  \nb", "a42b"),
        ("{{`raw\\n`}} {{\"q\\t\"}}| {{'a'}} {{0x10}} {{1e3}} {{-3}}", "raw\\n q\t| 97 16 1000 -3"),
        ('{{define "T"}}<{{.}}>{{end}}{{template "T" .Pid}}', "<42>"),
        ('{{block "B" .Name}}[{{.}}]{{end}}', "[/web]"),
        ('{{not .Up}} {{and 1 0}} {{or 0 "x"}}', "false 0 x"),
        ("{{true}} {{$.Name}} {{with .Labels}}{{$.Pid}}{{end}}", "true /web 42"),
    ],
)
def test_output(text: str, output: str) -> None:
    assert Template(text).execute(VALUE) == output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{", "template: :1: unclosed action"),
        ("{{.A", "template: :1: unclosed action"),
        ("x\n{{end}}", "template: :2: unexpected {{end}}"),
        ("{{nosuch .}}", 'template: :1: function "nosuch" not defined'),
        ("{{if}}{{end}}", "template: :1: missing value for if"),
        ('{{"a}}', "template: :1: unterminated quoted string"),
        ("{{if .A}}", "template: :1: unexpected EOF"),
        ("{{$x}}", 'template: :1: undefined variable "$x"'),
        ("{{break}}", "template: :1: {{break}} outside {{range}}"),
        ("{{(.A}}", "template: :1: unclosed left paren"),
        ("{{.A | 3}}", "template: :1: non executable command in pipeline stage 2"),
    ],
)
def test_parse_errors(text: str, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        Template(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{.Nope}}", 'template: :1:2: executing "" at <.Nope>: map has no entry for key "Nope"'),
        ("{{.Deep.Nope.X}}", 'template: :1:7: executing "" at <.Deep.Nope.X>: map has no entry for key "Nope"'),
        (
            "{{index .Args 5}}",
            'template: :1:2: executing "" at <index .Args 5>: error calling index: index out of range: 5',
        ),
        ("a\n b{{len 3}}", 'template: :2:4: executing "" at <len 3>: error calling len: len of type int'),
        ("{{nil}}", 'template: :1:2: executing "" at <nil>: nil is not a command'),
        ('{{template "x"}}', 'template: :1:11: executing "" at <{{template "x"}}>: template "x" not defined'),
        ("{{.Name.X}}", 'template: :1:7: executing "" at <.Name.X>: can\'t evaluate field X in type interface {}'),
    ],
)
def test_execution_errors(text: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(text).execute(VALUE, missing_key_error=True)
    assert str(caught.value) == message


def test_a_template_that_calls_itself_ends() -> None:
    with pytest.raises(TemplateError, match="exceeded maximum template depth"):
        Template('{{define "T"}}{{template "T"}}{{end}}{{template "T"}}').execute({})


def test_structs_know_what_an_answer_leaves_out() -> None:
    container = typed(
        {"Id": "1", "State": {"Pid": 5, "Error": ""}, "Config": {"Labels": {"a": "b"}, "Env": None}}, "container"
    )
    assert Template("{{.ID}} {{.State.Health}} {{.SizeRw}} {{.Config.Env}} {{.Config.Labels.zz}}").execute(
        container
    ) == ("1 <nil> <nil> [] <no value>")
    assert Template("{{.State}} {{.Config.Labels}}").execute(container) == "{5  <nil>} map[a:b]"
    assert Template("{{json .State}}").execute(container) == '{"Pid":5,"Error":""}'
    with pytest.raises(TemplateError, match="can't evaluate field Nope"):
        Template("{{.Nope}}").execute(container)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_print_as_they_read(number: float) -> None:
    assert float(format_value(number)) == number


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="{}"), max_size=40))
def test_text_outside_actions_stays(text: str) -> None:
    assert Template(text).execute({}) == text


@given(st.text(max_size=30))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        Template("{{" + text + "}}").execute(VALUE)
    except TemplateError:
        pass
