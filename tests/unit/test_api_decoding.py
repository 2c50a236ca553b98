"""JSON as Go reads it, filters in both encodings, versions."""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.api import decoding, filters, models, versions
from dray.base.errors import InvalidParameter


def test_null_and_missing_are_zero_values() -> None:
    body = b'{"Cmd":null,"Env":[null,"A=1"],"Labels":{"a":null},"Volumes":{"/data":null},"Healthcheck":null,"Tty":null}'
    config, unknown = decoding.decode(body, models.ContainerConfig)
    assert unknown == []
    assert config.cmd is None
    assert config.env == ["", "A=1"]
    assert config.labels == {"a": ""}
    assert config.volumes == {"/data": models.Empty()}
    assert (config.healthcheck, config.tty, config.user) == (None, False, "")


def test_empty_differs_from_null_where_it_matters() -> None:
    assert decoding.decode(b'{"Entrypoint":[]}', models.ContainerConfig)[0].entrypoint == []
    assert decoding.decode(b'{"MaskedPaths":[]}', models.HostConfig)[0].masked_paths == []
    assert decoding.decode(b'{"MaskedPaths":null}', models.HostConfig)[0].masked_paths is None


def test_structures_within_maps_and_lists() -> None:
    body = b'{"PortBindings":{"80/tcp":[{"HostPort":"8080"},null],"53/udp":null},"Ulimits":[{"Name":"core","Hard":-1}]}'
    host_config, _ = decoding.decode(body, models.HostConfig)
    assert host_config.port_bindings == {
        "80/tcp": [models.PortBinding(host_port="8080"), models.PortBinding()],
        "53/udp": None,
    }
    assert host_config.ulimits == [models.Ulimit(name="core", hard=-1)]


def test_a_string_where_a_list_is_meant() -> None:
    assert decoding.decode(b'{"Cmd":"true"}', models.ContainerConfig)[0].cmd == ["true"]
    with pytest.raises(InvalidParameter):
        decoding.decode(b'{"Env":"A=1"}', models.ContainerConfig)


def test_keys_match_without_case_but_the_exact_one_wins() -> None:
    assert decoding.decode(b'{"memory":5,"MEMORYSWAP":6}', models.HostConfig) == (
        models.HostConfig(memory=5, memory_swap=6),
        [],
    )
    assert decoding.decode(b'{"Memory":5,"memory":6}', models.HostConfig)[0].memory == 5


def test_unknown_keys_are_told_with_their_place() -> None:
    body = b'{"A":1,"LogConfig":{"B":2},"Mounts":[{},{"BindOptions":{"C":{}}}],"Annotations":{"anything":"goes"}}'
    assert decoding.decode(body, models.HostConfig)[1] == ["A", "LogConfig.B", "Mounts[1].BindOptions.C"]
    assert decoding.warnings_for(["A"]) == ["Unknown field ignored: A"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "invalid JSON: unexpected EOF"),
        (b"{}{}", "unexpected content after JSON"),
        (b"[]", "invalid JSON: Expected `object`, got `array`"),
        (b'{"Memory":"1g"}', "invalid JSON: Expected `int`, got `str` - at `Memory`"),
        (b'{"Memory":1.5}', "invalid JSON: Expected `int`, got `float` - at `Memory`"),
        (
            b'{"Memory":18446744073709551616}',
            "invalid JSON: number 18446744073709551616 does not fit 64 bits at Memory",
        ),
        (b'{"LogConfig":{"Type":1}}', "invalid JSON: Expected `str`, got `int` - at `LogConfig.Type`"),
        (b'{"Binds":["a",1]}', "invalid JSON: Expected `str`, got `int` - at `Binds[1]`"),
    ],
)
def test_wrong_documents_say_where(body: bytes, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        decoding.decode(body, models.HostConfig)
    assert str(caught.value) == message


def test_deep_nesting_is_refused_and_does_not_wear_the_interpreter_out() -> None:
    for _ in range(50):
        for opening in (b"[", b'{"a":', b'[{"":'):
            with pytest.raises(InvalidParameter, match="nested too deeply"):
                decoding.parse(opening * 100_000)

    def depth(level: int) -> int:
        return depth(level + 1) if level < 500 else level

    assert depth(0) == 500 < sys.getrecursionlimit()


def test_many_brackets_that_are_not_deep_are_fine() -> None:
    assert len(decoding.parse(b"[" + b"[]," * 1000 + b"0]")) == 1001
    text = '[{"\\" ' * 1000
    assert decoding.parse(json.dumps({"a": text}).encode()) == {"a": text}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_document_is_decoded_or_refused(document: Any) -> None:
    for cls in (models.HostConfig, models.ContainerConfig, models.NetworkCreateRequest):
        body = json.dumps({"Mounts": document, "Labels": document, "IPAM": document, "Cmd": document}).encode()
        try:
            decoding.decode(body, cls)
        except InvalidParameter:
            pass


@pytest.mark.parametrize(
    "cls", [models.HostConfig, models.ContainerConfig, models.NetworkInspect, models.SystemInfo]
)
def test_what_is_encoded_decodes_to_the_same(cls: type[msgspec.Struct]) -> None:
    value = cls()
    assert decoding.decode(msgspec.json.encode(value), cls) == (value, [])


def test_zero_values_are_written_as_docker_writes_them() -> None:
    config = json.loads(msgspec.json.encode(models.ContainerConfig()))
    assert config["Cmd"] is None
    assert "Healthcheck" not in config
    assert "ExposedPorts" not in config
    host_config = json.loads(msgspec.json.encode(models.HostConfig()))
    assert (host_config["Binds"], host_config["ConsoleSize"]) == (None, [0, 0])
    assert host_config["LogConfig"] == {"Type": "", "Config": {}}
    container = json.loads(msgspec.json.encode(models.ContainerInspectResponse()))
    assert (container["Mounts"], container["ExecIDs"], container["LogPath"]) == ([], None, "")
    assert container["State"]["StartedAt"] == "0001-01-01T00:00:00Z"
    assert json.loads(msgspec.json.encode(models.VolumeListResponse()))["Volumes"] == []


# Filters


@pytest.mark.parametrize("text", ['{"label":{"a=b":true,"c":true,"d":false}}', '{"label":["a=b","c"]}'])
def test_both_encodings_of_filters(text: str) -> None:
    assert filters.parse(text, filters.CONTAINERS) == {"label": ["a=b", "c"]}


@pytest.mark.parametrize("text", ["", "null", "{}"])
def test_no_filters(text: str) -> None:
    assert filters.parse(text, filters.CONTAINERS) == {}


@pytest.mark.parametrize(
    "text", ["x", "[]", '{"colour":["x"]}', '{"label":[1]}', '{"label":1}', "[" * 5000, '{"label":null}']
)
def test_wrong_filters(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid filter"):
        filters.parse(text, filters.CONTAINERS)


def test_matching() -> None:
    given_filters = filters.Filters(
        {
            "label": ["a", "b=1"],
            "label!": ["z"],
            "name": ["we", "^db$"],
            "id": ["ab"],
            "status": ["running", "paused"],
        }
    )
    assert given_filters.matches_labels({"a": "", "b": "1"})
    assert not given_filters.matches_labels({"a": "", "b": "2"})
    assert not given_filters.matches_labels({"a": "", "b": "1", "z": ""})
    assert not given_filters.matches_labels(None)
    assert given_filters.matches_text("name", "web")
    assert given_filters.matches_text("name", "db")
    assert not given_filters.matches_text("name", "dbx")
    assert given_filters.matches_prefix("id", "abc")
    assert not given_filters.matches_prefix("id", "xab")
    assert given_filters.matches_exactly("status", "paused")
    assert given_filters.matches_exactly("nothing", "x")
    assert given_filters.matches_exactly("status", ["x", "running"])


@pytest.mark.parametrize(
    ("values", "truth"), [(["1"], True), (["true", "1"], True), (["False"], False), ([], True)]
)
def test_boolean_filters(values: list[str], truth: bool) -> None:
    assert filters.Filters({"dangling": values}).boolean("dangling", True) is truth


@pytest.mark.parametrize("values", [["maybe"], ["1", "0"]])
def test_wrong_boolean_filters(values: list[str]) -> None:
    with pytest.raises(InvalidParameter, match="invalid filter 'dangling="):
        filters.Filters({"dangling": values}).boolean("dangling", False)


# Versions


def test_versions_compare_as_numbers() -> None:
    assert versions.parse("1.9") < versions.parse("1.10") < versions.parse("1.24")
    assert versions.text(versions.parse("1.47")) == "1.47"
    for text in ("1", "1.", "v1.4", "1.4.5.6", "1.x", "١.٢"):
        with pytest.raises(InvalidParameter):
            versions.parse(text)


def test_versions_out_of_range() -> None:
    versions.check((1, 24))
    versions.check(versions.NEWEST)
    with pytest.raises(InvalidParameter, match="too old"):
        versions.check((1, 23))
    with pytest.raises(InvalidParameter, match="too new"):
        versions.check((2, 0))


def test_a_string_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="not UTF-8"):
        decoding.decode(b'{"Env":["\xff\xfe"]}', models.ContainerConfig)
