"""The command line as a whole: help, unknown words, hints, which modules a verb costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.cli.catalog import GROUPS, VERBS
from dray.cli.main import load_command, main
from support.api_recorder import Recorder, recording


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_API_VERSION", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as one:
        yield one


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.path)
def test_every_verb_has_help(verb: object, capsys: pytest.CaptureFixture[str]) -> None:
    command = load_command(verb)  # type: ignore[arg-type]
    assert main([*verb.path.split(), "--help"]) == 0  # type: ignore[attr-defined]
    text = capsys.readouterr().out
    assert text.startswith(f"Usage:  dray {verb.path}")  # type: ignore[attr-defined]
    for flag in command.flags:
        assert (f"--{flag.name}" in text) is not flag.hidden or flag.hidden
    names = [flag.name for flag in command.flags] + [flag.short for flag in command.flags if flag.short]
    assert len(names) == len(set(names))


def test_help_of_the_whole_and_of_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    top = capsys.readouterr().out
    assert "Usage:  dray [OPTIONS] COMMAND" in top
    for group in GROUPS:
        assert f"\n  {group} " in top
        assert main([group]) == 0
        assert f"Usage:  dray {group} COMMAND" in capsys.readouterr().out
    assert main(["help", "nosuch"]) == 1


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["nosuch"], 1, "dray: unknown command: dray nosuch\n\nRun 'dray --help' for more information\n"),
        (
            ["container", "nosuch"],
            1,
            "dray: unknown command: dray container nosuch\n\nUsage:  dray container\n\nRun 'dray container --help' for more information\n",
        ),
        (
            ["--nosuch"],
            125,
            "unknown flag: --nosuch\n\nUsage:  dray [OPTIONS] COMMAND [ARG...]\n\nRun 'dray --help' for more information\n",
        ),
        (
            ["rename", "a"],
            1,
            "dray: 'dray rename' requires 2 arguments\n\nUsage:  dray rename CONTAINER NEW_NAME\n\nRun 'dray rename --help' for more information\n",
        ),
    ],
)
def test_what_does_not_fit(
    words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == status
    assert capsys.readouterr().err == message


def test_a_near_miss_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["imagse"]) == 1
    assert "Did you mean 'dray image' or 'dray images'?" in capsys.readouterr().err


def test_hints_when_nobody_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-H", f"unix://{tmp_path}/s", "ps"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(
        f"Cannot connect to the Docker daemon at unix://{tmp_path}/s. Is the docker daemon running?\n"
    )
    assert f"Start the daemon: sudo drayd -H unix://{tmp_path}/s" in err
    assert main(["-H", f"unix://{tmp_path}/s", "daemon", "status"]) == 1
    assert "does not answer" in capsys.readouterr().out
    assert main(["-H", f"unix://{tmp_path}/no/s", "run", "busybox"]) == 125
    assert "nor does its folder" in capsys.readouterr().err


def test_format_from_the_configuration(
    recorder: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"psFormat": "{{.Names}}!", "HttpHeaders": {"X-Meta": "yes"}}')
    recorder.answers["GET", "/containers/json"] = (200, b'[{"Id":"1","Names":["/web"],"Created":0}]')
    assert main(["-H", recorder.host, "ps"]) == 0
    assert capsys.readouterr().out == "web!\n"
    assert recorder.take()[0].headers["x-meta"] == "yes"


def test_contexts_choose_the_daemon(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.answers["GET", "/containers/json"] = (200, b"[]")
    assert main(["context", "create", "here", "--docker", f"host={recorder.host}"]) == 0
    assert main(["-c", "here", "ps"]) == 0
    monkeypatch.setenv("DOCKER_CONTEXT", "here")
    assert main(["ps", "-q"]) == 0
    monkeypatch.delenv("DOCKER_CONTEXT")
    assert main(["context", "use", "here"]) == 0
    assert main(["ps", "-q"]) == 0
    assert len(recorder.take()) == 3
    assert main(["context", "rm", "here"]) == 1
    assert "is in use" in capsys.readouterr().err
    assert main(["-c", "here", "-H", "tcp://x", "ps"]) == 1
    assert "conflicting options" in capsys.readouterr().err
    assert main(["context", "rm", "-f", "here"]) == 0


def test_context_archive_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ca").write_text("CA")
    assert (
        main(["context", "create", "one", "--docker", f"host=tcp://h:1,ca={tmp_path}/ca", "--description", "d"])
        == 0
    )
    assert main(["context", "export", "one", f"{tmp_path}/a.tar"]) == 0
    assert main(["context", "import", "two", f"{tmp_path}/a.tar"]) == 0
    capsys.readouterr()
    assert (
        main(
            [
                "context",
                "inspect",
                "two",
                "-f",
                "{{.Metadata.Description}} {{.Endpoints.docker.Host}} {{.TLSMaterial}}",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == "d tcp://h:1 map[docker:[ca.pem]]\n"


def test_a_fixed_api_version_is_kept(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_API_VERSION", "1.30")
    recorder.answers["GET", "/containers/json"] = (200, b"[]")
    assert main(["-H", recorder.host, "ps"]) == 0
    assert recorder.take()[0].version == "1.30"


def test_a_reader_that_goes_away_is_no_error(recorder: Recorder) -> None:
    row = b'{"Id":"%064d","Names":["/n"],"Created":0}'
    recorder.answers["GET", "/containers/json"] = (
        200,
        b"[" + b",".join(row % number for number in range(5000)) + b"]",
    )
    argv = f"{sys.executable} -m dray.cli -H {recorder.host} ps | head -1"
    source = str(Path(__file__).resolve().parents[2] / "src")
    done = subprocess.run(
        ["sh", "-c", argv], capture_output=True, check=False, env={"PYTHONPATH": source, "PATH": "/usr/bin:/bin"}
    )
    assert done.stdout.startswith(b"CONTAINER ID")
    assert done.stderr == b""


def test_ps_imports_only_what_it_needs() -> None:
    script = (
        "import sys; from dray.cli.main import load_command; from dray.cli.catalog import find; import dray.client.api, dray.cli.endpoint;"
        "load_command(find(['ps'])[0]); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")},
    )
    loaded = set(done.stdout.split())
    heavy = {
        "asyncio",
        "ssl",
        "http",
        "subprocess",
        "msgspec",
        "dataclasses",
        "typing",
        "argparse",
        "urllib",
        "threading",
        "hashlib",
    }
    assert not loaded & heavy
    assert not [one for one in loaded if one.startswith("dray.cli.commands.") and one != "dray.cli.commands.ps"]
    assert "dray.cli.template" not in loaded
