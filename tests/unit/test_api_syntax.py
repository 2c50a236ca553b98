"""What is said of malformed JSON is what Go's encoding/json says (each line was compared with Go's own decoder)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.api.decoding import parse
from dray.api.syntax import complaint
from dray.base.errors import InvalidParameter

CASES = {
    "{invalid json": "invalid character 'i' looking for beginning of object key string",
    "{'a': 1}": r"invalid character '\'' looking for beginning of object key string",
    '{"a" 1}': "invalid character '1' after object key",
    '{"a": 1 "b"}': "invalid character '\"' after object key:value pair",
    '{"a": 1,}': "invalid character '}' looking for beginning of object key string",
    "[1 2]": "invalid character '2' after array element",
    "[1,]": "invalid character ']' looking for beginning of value",
    "hello": "invalid character 'h' looking for beginning of value",
    "trux": "invalid character 'x' in literal true (expecting 'e')",
    '"a\tb"': r"invalid character '\t' in string literal",
    r'"\q"': "invalid character 'q' in string escape code",
    r'"\u12g4"': r"invalid character 'g' in \u hexadecimal character escape",
    "-x": "invalid character 'x' in numeric literal",
    "1.x": "invalid character 'x' after decimal point in numeric literal",
    "1e+x": "invalid character 'x' in exponent of numeric literal",
    '{"a": [1, {"b"': "unexpected EOF",
    '"\x01"': r"invalid character '\x01' in string literal",
}


@pytest.mark.parametrize(("text", "said"), CASES.items())
def test_it_is_said_as_go_says_it(text: str, said: str) -> None:
    assert complaint(text.encode()) == said
    with pytest.raises(InvalidParameter) as caught:
        parse(text.encode())
    assert str(caught.value) == f"invalid JSON: {said}"


@pytest.mark.parametrize("text", ['{"a": [1, -2.5e+3, "\\u00e9\\n", {}, []]}', " null ", '"x" trailing'])
def test_what_is_well_formed_is_not_complained_of(text: str) -> None:
    assert complaint(text.encode()) == ""


@given(st.binary(max_size=40))
def test_any_bytes_get_an_answer(text: bytes) -> None:
    assert isinstance(complaint(text), str)


def test_depth_is_no_matter() -> None:
    assert complaint(b"[" * 100_000) == "unexpected EOF"
