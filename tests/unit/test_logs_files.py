import gzip
import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.base.errors import InvalidParameter, Unsupported
from dray.logs import reader, registry
from dray.logs.jsonfile import JsonFile, escape
from dray.logs.jsonread import JsonFormat, nanoseconds
from dray.logs.model import LINE_LIMIT, Selection, Splitter
from dray.logs.render import Renderer
from dray.wire import stdcopy

NOW = 1_714_564_800_123_456_789
NO_LIMIT = {"max-size": "-1"}


def write(driver, path, chunks, options=NO_LIMIT, attributes=None):
    log = registry.open_writer(driver, str(path), options, attributes or {})
    for index, (stream, data) in enumerate(chunks):
        log.write(stream, data, NOW + index)
    log.close()


def read(driver, path, **selection):
    form = registry.format_of(driver)
    return [batch for some in reader.read(form, str(path), Selection(**selection)) for batch in some]


def text(batches):
    return b"".join(line + (b"" if batch.partial else b"\n") for batch in batches for line in batch.lines)


def test_a_json_record_is_dockers(tmp_path):
    write(
        "json-file",
        tmp_path / "log",
        [("stdout", b'a <b> & "c" \\ \t\r\x1b\xff \xe2\x80\xa8 \xc3\xa9\n'), ("stderr", b"end")],
    )
    first, second = (tmp_path / "log").read_bytes().splitlines()
    assert first == (
        b'{"log":"a \\u003cb\\u003e \\u0026 \\"c\\" \\\\ \\u0009\\r\\u001b\\ufffd \\u2028 \xc3\xa9\\n",'
        b'"stream":"stdout","time":"2024-05-01T12:00:00.123456789Z"}'
    )
    assert re.fullmatch(rb'\{"log":"end","stream":"stderr","time":"20[^"]+Z"\}', second)


def test_attributes_stand_between_stream_and_time(tmp_path):
    write("json-file", tmp_path / "log", [("stdout", b"x\n")], attributes={"b": "<2>", "a": "1"})
    assert b'"stream":"stdout","attrs":{"a":"1","b":"\\u003c2\\u003e"},"time"' in (tmp_path / "log").read_bytes()
    [batch] = read("json-file", tmp_path / "log")
    assert batch.attributes == {"a": "1", "b": "<2>"}
    rendered = Renderer(framed=False, details=True, timestamps=True).render(batch)
    assert rendered == b"2024-05-01T12:00:00.123456789Z a=1,b=%3C2%3E x\n"


@given(st.lists(st.binary(max_size=40) | st.text(max_size=40).map(str.encode), max_size=8))
def test_whatever_is_written_as_json_reads_back_as_its_unicode(parts):
    data = b"".join(parts)
    record = b'{"log":"' + escape(data).replace(b"\n", b"\\n") + b'"}'
    expected = "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in data.decode(errors="surrogateescape"))
    assert json.loads(record)["log"] == expected


@pytest.mark.parametrize("driver", ["json-file", "local"])
@given(
    chunks=st.lists(
        st.tuples(st.sampled_from(["stdout", "stderr"]), st.text(alphabet='ab\\n"\n\u00e9', max_size=60)),
        max_size=30,
    )
)
def test_written_and_read_again(tmp_path_factory, driver, chunks):
    path = tmp_path_factory.mktemp("log") / "log"
    write(driver, path, [(stream, data.encode()) for stream, data in chunks])
    for stream in ("stdout", "stderr"):
        batches = read(driver, path, stdout=stream == "stdout", stderr=stream == "stderr")
        assert text(batches).decode() == "".join(data for name, data in chunks if name == stream)


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_long_lines_are_cut_into_partial_records_without_loss(tmp_path, driver):
    data = ("é" * 30_000 + "\n" + "x" * LINE_LIMIT + "\nshort\n").encode()
    pieces = [("stdout", data[index : index + 5000]) for index in range(0, len(data), 5000)]
    write(driver, tmp_path / "log", pieces)
    batches = read(driver, tmp_path / "log")
    assert text(batches) == data
    lengths = [len(line) for batch in batches for line in batch.lines]
    assert lengths == [16384, 16384, 16384, 60_000 - 3 * 16384, 16384, 0, 5]


@given(st.lists(st.integers(0, 40_000), max_size=6), st.integers(1, 70_000))
def test_the_splitter_loses_nothing_and_cuts_where_docker_does(lengths, size):
    data = b"".join(b"z" * length + b"\n" for length in lengths)
    splitter = Splitter()
    records = [
        record for start in range(0, len(data), size) for record in splitter.feed("s", data[start : start + size])
    ]
    assert b"".join(payload for payload, _ in records) + splitter.end("s") == data
    for payload, partial in records:
        if partial:
            assert len(payload) == LINE_LIMIT
        else:
            assert all(len(line) < LINE_LIMIT for line in payload.splitlines())


@pytest.mark.parametrize("driver", ["json-file", "local"])
@pytest.mark.parametrize("compress", ["true", "false"])
def test_rotation_keeps_the_newest_files_in_order(tmp_path, driver, compress):
    options = {"max-size": "2k", "max-file": "3", "compress": compress}
    lines = [b"line %05d\n" % number for number in range(400)]
    write(driver, tmp_path / "log", [("stdout", line) for line in lines], options)
    wait_for_compressors()
    names = sorted(os.listdir(tmp_path))
    suffix = ".gz" if compress == "true" else ""
    assert names == ["log", "log.1" + suffix, "log.2" + suffix]
    kept = text(read(driver, tmp_path / "log"))
    assert b"".join(lines).endswith(kept)
    assert len(kept) > 300
    for count in (0, 1, 5, 35, 10_000):
        assert text(read(driver, tmp_path / "log", tail=count)) == b"".join(
            kept.splitlines(True)[-count:] if count else []
        )
    if driver == "json-file":
        data = (tmp_path / ("log.1" + suffix)).read_bytes()
        assert (gzip.decompress(data) if suffix else data).endswith(b'Z"}\n')


def wait_for_compressors():
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass


def test_one_file_only_starts_anew(tmp_path):
    write(
        "json-file",
        tmp_path / "log",
        [("stdout", b"%d\n" % n) for n in range(200)],
        {"max-size": "1k", "max-file": "1"},
    )
    assert os.listdir(tmp_path) == ["log"]
    assert text(read("json-file", tmp_path / "log")).endswith(b"199\n")


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_a_torn_record_is_cut_off_when_the_log_is_opened_again(tmp_path, driver):
    write(driver, tmp_path / "log", [("stdout", b"one\n"), ("stdout", b"two\n")])
    with open(tmp_path / "log", "r+b") as file:
        file.truncate(os.path.getsize(tmp_path / "log") - 3)
    assert text(read(driver, tmp_path / "log")) == b"one\n"
    write(driver, tmp_path / "log", [("stdout", b"three\n")])
    assert text(read(driver, tmp_path / "log")) == b"one\nthree\n"


def test_times_streams_and_bounds(tmp_path):
    write("json-file", tmp_path / "log", [("stdout", b"a\n"), ("stderr", b"b\n"), ("stdout", b"c\nd\n")])
    assert text(read("json-file", tmp_path / "log", since=NOW + 1)) == b"b\nc\nd\n"
    assert text(read("json-file", tmp_path / "log", until=NOW + 1)) == b"a\nb\n"
    assert text(read("json-file", tmp_path / "log", stderr=False, tail=3)) == b"c\nd\n"


def test_other_writers_and_damage_are_understood(tmp_path):
    (tmp_path / "log").write_bytes(
        b'{"time":"2024-05-01T14:00:00.5+02:00","stream":"stderr","log":"other order\\n"}\n'
        b"no json at all\n"
        b'{"log":"smile \\ud83d\\ude00\\n","stream":"stdout","time":"2024-05-01T12:00:00Z"}\n'
        b'{"log":"back\\\\n","stream":"stdout","time":"2024-05-01T12:00:00Z"}\n'
        b'{"log":"torn'
    )
    batches = read("json-file", tmp_path / "log")
    assert text(batches) == "other order\nsmile 😀\nback\\n".encode()
    assert batches[0].time == 1_714_564_800_500_000_000
    assert batches[0].stream == "stderr"


def test_many_records_of_one_time_and_of_many(tmp_path):
    first = b"".join(b"%d \\n \xc3\xa9\n" % n for n in range(20_000))
    write(
        "json-file",
        tmp_path / "log",
        [("stdout", first), ("stderr", b"e\n" * 3), *[("stdout", b"%d\n" % n) for n in range(500)]],
    )
    assert text(read("json-file", tmp_path / "log")) == first + b"e\n" * 3 + b"".join(
        b"%d\n" % n for n in range(500)
    )


def test_each_line_is_a_frame(tmp_path):
    write("json-file", tmp_path / "log", [("stdout", b"one\n\nthree\n"), ("stderr", b"half")])
    renderer = Renderer(framed=True)
    data = b"".join(map(renderer.render, read("json-file", tmp_path / "log")))
    assert data == b"".join(
        [
            stdcopy.frame(1, b"one\n"),
            stdcopy.frame(1, b"\n"),
            stdcopy.frame(1, b"three\n"),
            stdcopy.frame(2, b"half"),
        ]
    )


def test_a_full_disk_leaves_no_half_record(tmp_path, monkeypatch):
    log = JsonFile(str(tmp_path / "log"))
    log.write("stdout", b"one\n", NOW)
    real = os.write

    def full(fd, data):
        if len(data) < 10:
            raise OSError(28, "No space left on device")
        return real(fd, data[:9])

    with monkeypatch.context() as patch:
        patch.setattr(
            os,
            "write",
            lambda fd, data: full(fd, data) if len(data) > 60 else (_ for _ in ()).throw(OSError(28, "full")),
        )
        log.write("stdout", b"two\n", NOW)
    log.write("stdout", b"three\n", NOW)
    log.close()
    assert text(read("json-file", tmp_path / "log")) == b"one\nthree\n"


@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        ("json-file", {"nosuch": "1"}, "unknown log opt 'nosuch' for json-file log driver"),
        ("json-file", {"max-size": "big"}, "invalid size: 'big'"),
        ("json-file", {"max-file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"max-file": "x"}, "invalid syntax"),
        ("json-file", {"max-size": "-1", "compress": "true"}, "compress cannot be true"),
        ("local", {"compress": "maybe"}, "invalid syntax"),
        ("json-file", {"mode": "fast"}, "logging mode not supported: fast"),
        ("json-file", {"max-buffer-size": "1m"}, "only supported with 'mode=non-blocking'"),
        ("json-file", {"labels-regex": "("}, "labels-regex"),
        ("nosuch", {}, 'error looking up logging plugin nosuch: plugin "nosuch" not found'),
    ],
)
def test_bad_options_are_refused(driver, options, words):
    with pytest.raises(InvalidParameter, match=re.escape(words)):
        registry.validate(driver, options)


def test_drivers_that_we_lack_are_refused_by_name():
    for driver in registry.UNSUPPORTED:
        with pytest.raises(Unsupported, match=driver):
            registry.validate(driver, {})
    with pytest.raises(Unsupported, match="does not support reading"):
        registry.format_of("none")
    registry.validate("none", {"anything": "goes"})
    registry.validate("json-file", {"max-size": "10m", "max-file": "3", "labels": "a,b", "mode": "non-blocking"})


def test_times_are_read_as_written():
    assert nanoseconds(b"2024-05-01T12:00:00.123456789Z") == NOW
    assert nanoseconds(b"2024-05-01T12:00:00Z") == NOW // 10**9 * 10**9
    with pytest.raises(ValueError, match="no RFC 3339"):
        nanoseconds(b"yesterday")


def test_the_format_leaves_a_torn_end_alone():
    data = b'{"log":"a\\n","stream":"stdout","time":"2024-05-01T12:00:00Z"}\n'
    batches, taken = JsonFormat(-1).parse(data + data[:20])
    assert taken == len(data)
    assert text(batches) == b"a\n"
