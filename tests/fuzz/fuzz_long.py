"""Fuzz for long, guided by coverage (atheris, which is libFuzzer): a process for each target, one after the other.

    python -m fuzz_long [--seconds N] [--corpus FOLDER] [NAME...]

    FOLDER/NAME/        inputs that reached something new; the next run begins with them
    FOLDER/NAME.log     what libFuzzer told
    FOLDER/NAME-*       an input that broke the target (crash, oom, timeout); gone when it is mended
    FOLDER/hours.json   seconds and runs of each target so far

`--seconds` are for all targets together. The exit status is 1 when a target broke.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NAMES = (
    "tar-headers", "tar-extract", "tar-copy-in", "load", "passwd-group", "changes", "references", "filters", "seccomp", "dns",
    "challenges", "manifests", "create-body", "request-head",
)  # fmt: skip
_RUNS = re.compile(r"Done (\d+) runs|#(\d+)")


def one(name: str, corpus: str, seconds: int) -> None:
    """Be the process of one target; does not return."""
    import atheris
    from fuzz_caps import MEMORY, SECONDS, in_time, limit_memory

    with atheris.instrument_imports(include=["dray"]):
        from fuzz_targets import targets

        target = targets()[name]
        for data in target.seeds:
            target.run(data)  # imports what is imported late
    folder = Path(corpus) / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds):
        (folder / f"seed-{number}").write_bytes(data)
    words = Path(corpus) / f"{name}.dict"
    words.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words if word)
    )

    def run(data: bytes) -> None:
        with in_time(SECONDS):
            target.run(data)

    limit_memory()
    flags = [
        f"-max_total_time={seconds}", "-max_len=65536", f"-artifact_prefix={corpus}/{name}-", *([f"-dict={words}"] if target.words else []),
        f"-rss_limit_mb={MEMORY >> 20}", "-print_final_stats=1", "-verbosity=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, str(folder)], run)
    atheris.Fuzz()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fuzz_long", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, default=ROOT / "tests/fuzz/corpus")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args(argv)
    names = options.names or list(NAMES)
    corpus = options.corpus.resolve()
    corpus.mkdir(parents=True, exist_ok=True)
    share = max(5, options.seconds // len(names))
    record = corpus / "hours.json"
    known: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    paths = [str(ROOT / part) for part in ("src", "tests", "tests/unit", "tests/fuzz")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    broken = 0
    print(
        f"| {'target':<14} | seconds | inputs run | corpus | result |\n|{'-' * 16}|--------:|-----------:|-------:|--------|"
    )
    for name in names:
        begin = time.monotonic()
        code = f"import fuzz_long; fuzz_long.one({name!r}, {str(corpus)!r}, {share})"
        with (corpus / f"{name}.log").open("wb") as log:
            done = subprocess.run(
                [sys.executable, "-c", code], env=environment, stdout=log, stderr=log, check=False
            )
        told = (corpus / f"{name}.log").read_text(errors="replace")
        runs = max((int(a or b) for a, b in _RUNS.findall(told)), default=0)
        entry = known.setdefault(name, {"seconds": 0, "runs": 0})
        entry["seconds"] += round(time.monotonic() - begin)
        entry["runs"] += runs
        entry["corpus"] = len(list((corpus / name).glob("*"))) if (corpus / name).exists() else 0
        broken += done.returncode != 0
        result = "clean" if done.returncode == 0 else f"broken, see {name}.log"
        print(
            f"| {name:<14} | {entry['seconds']:7} | {entry['runs']:10} | {entry['corpus']:6} | {result} |",
            flush=True,
        )
        record.write_text(json.dumps(known, indent=1) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
