"""The DNS codec, against dnspython and against noise."""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.network.dns import message

LABEL = st.text(st.sampled_from("abcXYZ019-_"), min_size=1, max_size=20)
NAMES = st.lists(LABEL, min_size=1, max_size=5).map(".".join)


@given(
    name=NAMES, kind=st.sampled_from(["A", "AAAA", "PTR", "MX", "TXT"]), edns=st.sampled_from([-1, 0, 512, 4096])
)
def test_a_query_is_read_as_dnspython_wrote_it(name: str, kind: str, edns: int) -> None:
    asked = dns.message.make_query(name, kind, use_edns=False if edns < 0 else 0, payload=max(edns, 0))
    query = message.parse_query(asked.to_wire())
    assert (query.id, query.name, query.type) == (asked.id, name.lower(), dns.rdatatype.from_text(kind))
    assert query.edns is (edns >= 0)
    assert query.udp_limit == max(512, edns)


@given(count=st.integers(0, 60), edns=st.booleans(), limit=st.sampled_from([512, 1232, 65535]))
def test_dnspython_reads_the_answer(count: int, edns: bool, limit: int) -> None:
    asked = dns.message.make_query("Data.App", "A", use_edns=0 if edns else False)
    query = message.parse_query(asked.to_wire())
    wire = message.answer(query, records=[bytes((10, 0, 0, number)) for number in range(count)], limit=limit)
    assert len(wire) <= limit
    read = dns.message.from_wire(wire, raise_on_truncation=False)
    assert asked.is_response(read)
    assert read.flags & dns.flags.RA
    assert (read.edns >= 0) is edns
    found = [address for rrset in read.answer for address in rrset]
    assert bool(read.flags & dns.flags.TC) is (len(found) < count)
    assert all(rrset.ttl == 600 for rrset in read.answer)


def test_a_pointer_record_and_an_error() -> None:
    asked = dns.message.make_query("3.0.18.172.in-addr.arpa", "PTR")
    query = message.parse_query(asked.to_wire())
    read = dns.message.from_wire(message.answer(query, records=[message.encode_name("web.app")]))
    assert [str(one) for one in read.answer[0]] == ["web.app."]
    assert dns.message.from_wire(message.answer(query, rcode=message.SERVFAIL)).rcode() == dns.rcode.SERVFAIL
    badvers = message.parse_query(dns.message.make_query("a", "A", use_edns=0).to_wire())
    assert dns.message.from_wire(message.answer(badvers, rcode=message.BADVERS)).rcode() == dns.rcode.BADVERS


@given(st.binary(max_size=600))
def test_noise_is_read_or_refused(data: bytes) -> None:
    try:
        query = message.parse_query(data)
    except message.Malformed:
        return
    dns.message.from_wire(message.answer(query, rcode=message.SERVFAIL))


@given(st.data())
def test_a_damaged_query_is_read_or_refused(data: st.DataObject) -> None:
    wire = bytearray(dns.message.make_query("web.app", "A", use_edns=0).to_wire())
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(wire[: data.draw(st.integers(0, len(wire)))])
    try:
        message.parse_query(cut)
    except message.Malformed:
        if len(cut) >= message.HEADER:
            assert len(message.refusal(cut, message.FORMERR)) == message.HEADER


@pytest.mark.parametrize(
    "body",
    [
        b"\xc0\x0c\0\1\0\1",  # a name that points at itself
        b"\1a\xc0\x0c\0\1\0\1",
        b"\x40a\0\0\1\0\1",  # an unknown kind of label
        b"\1a" * 200 + b"\0\0\1\0\1",  # a name longer than 255
        b"\5ab",
        b"",
        b"\0\0",
    ],
)
def test_names_that_are_none(body: bytes) -> None:
    with pytest.raises(message.Malformed):
        message.parse_query(b"\0\1\1\0\0\1\0\0\0\0\0\0" + body)


def test_a_dot_inside_a_label_is_no_end_of_it() -> None:
    name = dns.name.Name([b"web.app", b""])
    assert message.parse_query(dns.message.make_query(name, "A").to_wire()).name == "web\\.app"


def test_answers_and_several_questions_are_no_queries() -> None:
    asked = dns.message.make_query("web", "A")
    answer = dns.message.make_response(asked).to_wire()
    assert not message.is_query(answer)
    with pytest.raises(message.Malformed):
        message.parse_query(answer)
    two = bytearray(asked.to_wire())
    two[5] = 2
    with pytest.raises(message.Malformed):
        message.parse_query(bytes(two))


def test_only_the_answer_to_the_question_matches() -> None:
    asked = dns.message.make_query("example.com", "A")
    ident, question = asked.to_wire()[:2], asked.to_wire()[12:]
    good = dns.message.make_response(asked).to_wire()
    assert message.matches(good, ident, question)
    assert message.matches(good.replace(b"example", b"EXAMPLE"), ident, question)
    assert not message.matches(good, bytes((ident[0] ^ 1, ident[1])), question)
    assert not message.matches(asked.to_wire(), ident, question)  # the query itself, sent back
    other = dns.message.make_query("example.org", "A", id=asked.id)
    assert not message.matches(dns.message.make_response(other).to_wire(), ident, question)
    assert not message.matches(good[:12], ident, question)
    assert message.matches(ident + b"\x81\x01" + bytes(8), ident, question)  # FORMERR without a question
    assert not message.matches(ident + b"\x81\x00" + bytes(8), ident, question)


def test_a_truncated_answer_asks_for_tcp() -> None:
    asked = dns.message.make_query("example.com", "A")
    full = dns.message.make_response(asked)
    read = dns.message.from_wire(
        message.truncated(full.to_wire(), asked.to_wire()[12:]), raise_on_truncation=False
    )
    assert read.flags & dns.flags.TC
    assert read.question == asked.question


@pytest.mark.parametrize("name", ["", "a..b", "a" * 64, ".".join(["a" * 60] * 5)])
def test_what_is_no_name_is_not_written(name: str) -> None:
    with pytest.raises(message.Malformed):
        message.encode_name(name)
