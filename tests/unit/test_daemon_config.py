import csv
import json
from pathlib import Path

import pytest

from dray.base.errors import InvalidParameter
from dray.daemon import config


@pytest.fixture
def file(tmp_path):
    def write(document):
        path = tmp_path / "daemon.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return ["--config-file", str(path)]

    return write


def test_flags_and_file_are_one_configuration(file):
    loaded, _ = config.load([*file({"mtu": 1400, "log-opts": {"max-size": "1m"}}), "--icc=false", "-D"])
    assert (loaded["mtu"], loaded["icc"], loaded["debug"], loaded["log-opts"]) == (
        1400,
        False,
        True,
        {"max-size": "1m"},
    )
    assert loaded.log_level == "debug"


def test_repeated_flags_take_the_shape_of_the_file(file):
    loaded, _ = config.load(
        [
            *file({}),
            "--add-runtime=foo=/bin/foo",
            "--default-ulimit=nofile=1:2",
            "--log-opt=max-file=3",
            "--default-address-pool=base=10.0.0.0/8,size=24",
        ]
    )
    assert loaded["runtimes"] == {"foo": {"path": "/bin/foo"}}
    assert loaded["default-ulimits"] == {"nofile": {"Name": "nofile", "Soft": 1, "Hard": 2}}
    assert loaded["log-opts"] == {"max-file": "3"}
    assert loaded["default-address-pools"] == [{"base": "10.0.0.0/8", "size": 24}]


@pytest.mark.parametrize(
    ("document", "arguments", "words"),
    [
        ({"no-such-key": 1}, [], "no-such-key"),
        ({"debug": True}, ["--debug"], "specified both as a flag and in the configuration file: debug"),
        ({"debug": "yes"}, [], "'debug' must be true or false"),
        ({"mtu": True}, [], "'mtu' must be a number"),
        ("{", [], "invalid JSON"),
        ("[]", [], "must hold a JSON object"),
        ({"rootless": True}, [], "rootless"),
        ({}, ["--containerd=/x"], "containerd"),
        ({}, ["--log-level=loud"], "invalid logging level: loud"),
        ({}, ["--storage-driver=aufs"], "aufs"),
        ({}, ["--exec-opt=native.cgroupdriver=systemd"], "cgroupfs"),
        ({}, ["--bip=nonsense"], "invalid bip"),
        ({}, ["--default-runtime=nope"], "nope"),
        ({}, ["--default-shm-size=many"], "invalid size"),
        ({}, ["--label=x"], "bad attribute format: x"),
    ],
)
def test_what_cannot_be_obeyed_is_named(file, document, arguments, words):
    with pytest.raises(InvalidParameter, match=words):
        config.load([*file(document), *arguments])


def test_a_missing_file_matters_only_when_it_was_named(tmp_path):
    with pytest.raises(InvalidParameter, match="there is no such file"):
        config.load(["--config-file", str(tmp_path / "none")])


def test_an_unknown_flag_ends_with_125(capsys):
    with pytest.raises(SystemExit) as ended:
        config.load(["--no-such-flag"])
    assert ended.value.code == 125
    assert "--no-such-flag" in capsys.readouterr().err


TABLE = Path(__file__).parents[3] / "shared/spec/daemon-json.tsv"


@pytest.mark.skipif(not TABLE.exists(), reason="the table of dockerd's keys is not beside the project")
def test_every_key_of_dockers_table_is_known():
    with TABLE.open(newline="") as file:
        keys = [row["json_key"] for row in csv.DictReader(file, delimiter="\t")]
    whole = [key for key in keys if key and not key.startswith("(") and not set(".[") & set(key)]
    assert [key for key in whole if key not in config.BY_KEY] == []
