import pytest

from dray.base.errors import InvalidParameter
from dray.logs import attributes

LABELS = {"app": "web", "tier": "front", "other": "x"}
ENV = ["HOME=/root", "APP=1", "EMPTY=", "odd"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"labels": "app,missing"}, {"app": "web"}),
        ({"labels-regex": "^t"}, {"tier": "front"}),
        ({"env": "HOME,EMPTY,odd"}, {"HOME": "/root", "EMPTY": ""}),
        ({"env-regex": "^A", "labels": "app"}, {"app": "web", "APP": "1"}),
        ({"tag": "{{.Name}}/{{ .ID }}"}, {"tag": "web/abc"}),
        ({"tag": "plain"}, {"tag": "plain"}),
        ({"tag": ""}, {}),
    ],
)
def test_options_choose_attributes(options, expected):
    fields = {"Name": "web", "ID": "abc"}
    assert attributes.resolve(options, labels=LABELS, env=ENV, fields=fields) == expected


def test_a_variable_wins_over_a_label():
    found = attributes.resolve({"labels": "x", "env": "x"}, labels={"x": "label"}, env=["x=env"], fields={})
    assert found == {"x": "env"}


def test_other_template_language_is_refused():
    with pytest.raises(InvalidParameter, match="only fields are understood"):
        attributes.render_tag("{{if .Name}}x{{end}}", {})
