"""Feed targets with mutated seeds by hypothesis: a few seconds, the same inputs each time.

    PYTHONPATH=src:tests:tests/unit:tests/fuzz python -m fuzz_short EXAMPLES NAME...

In a process of its own because of the memory cap. Prints the smallest input that breaks a target.
"""

from __future__ import annotations

import sys
import time

from fuzz_caps import in_time, limit_memory
from fuzz_targets import Target, targets
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st


def mutated(target: Target) -> st.SearchStrategy[bytes]:
    """Seeds with pieces cut out, overwritten, inserted and doubled; now and then plain noise."""
    word = st.one_of(st.sampled_from(target.words or (b"\0",)), st.binary(max_size=8))
    edit = st.tuples(st.sampled_from("ciod"), st.floats(0, 1), st.integers(0, 64), word)

    def apply(data: bytes, edits: list[tuple[str, float, int, bytes]]) -> bytes:
        for kind, place, size, text in edits:
            at = int(place * len(data))
            match kind:
                case "c":
                    data = data[:at] + data[at + size :]
                case "i":
                    data = data[:at] + text + data[at:]
                case "o":
                    data = data[:at] + text + data[at + len(text) :]
                case "d":
                    data = data[: at + size] + data[at:]
        return data[: 1 << 20]

    changed = st.builds(apply, st.sampled_from(target.seeds), st.lists(edit, max_size=6))
    return st.one_of(changed, changed, changed, st.binary(max_size=600))


def feed(name: str, examples: int) -> int:
    """Run one target over its seeds and `examples` mutations; how many inputs it got."""
    target = targets()[name]
    fed = 0

    def one(data: bytes) -> None:
        nonlocal fed
        fed += 1
        with in_time():
            target.run(data)

    for data in target.seeds:
        one(data)
    run = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )(seed(20)(given(mutated(target))(one)))
    run()
    return fed


def main() -> None:
    limit_memory()
    examples = int(sys.argv[1])
    for name in sys.argv[2:]:
        begin = time.monotonic()
        print(f"{name}: {feed(name, examples)} inputs, {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
