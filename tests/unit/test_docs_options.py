"""The table of a container's options: whole, and no row without a test that is really there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dray.api.models import ContainerConfig, HostConfig
from dray.cli.ask.flags import SHARED_FLAGS
from support.option_cases import CASES

ROOT = Path(__file__).resolve().parents[2]
# Ours alone, of the engine's past, or of no meaning to `docker run` any more.
OLD_FLAGS = {"disable-content-trust", "dns-opt", "kernel-memory", "net", "net-alias"}


def load() -> ModuleType:
    found = importlib.util.spec_from_file_location("compatibility_tool", ROOT / "tools" / "compatibility.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


TOOL = load()
ROWS = list(TOOL.rows())


def named(group: str) -> set[str]:
    return {row.name for row in ROWS if row.group == group}


def test_the_page_is_up_to_date() -> None:
    assert TOOL.main(["--check"]) == 0, "run `make compatibility`"


def test_every_flag_of_our_own_client_is_in_the_table() -> None:
    own = {f"--{flag.name}" for flag in SHARED_FLAGS if flag.name not in OLD_FLAGS}
    assert own <= named("flags")


@pytest.mark.parametrize(("group", "model"), [("HostConfig", HostConfig), ("ContainerConfig", ContainerConfig)])
def test_every_field_of_the_engines_structures_is_in_the_table(group: str, model: type) -> None:
    fields = set(model.__struct_encode_fields__)  # type: ignore[attr-defined]
    assert fields - {"MacAddress"} <= named(group)  # of ContainerConfig before API 1.44: `--mac-address`


def test_the_table_has_what_the_specification_names() -> None:
    spec = ROOT.parents[1] / "shared" / "spec"
    if not spec.is_dir():
        pytest.skip("the specification's lists are not at hand")
    lines = (line.split("\t") for line in (spec / "cli-flags.tsv").read_text().splitlines())
    assert {line[2] for line in lines if line[1] == "docker container run"} == named("flags")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.group}-{row.name}")
def test_a_states_test_looks_at_that_state(row: object) -> None:
    """Obeyed is shown by a case that looks at an effect, refused by one that reads the refusal."""
    name = row.test.partition("[")[2].removesuffix("]")  # type: ignore[attr-defined]
    case = next((case for case in CASES if case.name == name), None)
    if case is not None and row.state != "nothing":  # type: ignore[attr-defined]
        assert case.state == row.state or case.otherwise is not None  # type: ignore[attr-defined]


def test_every_test_named_can_be_collected() -> None:
    files = sorted({row.test.partition("::")[0] for row in ROWS})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    there = {line.strip() for line in done.stdout.splitlines() if "::" in line}
    functions = {line.partition("[")[0] for line in there}
    missing = [row.test for row in ROWS if row.test not in (there if "[" in row.test else functions)]
    assert missing == []
