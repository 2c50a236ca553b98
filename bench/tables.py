"""Tables of figures: subjects side by side, taken in turns, printed with their ratio and kept for the results file."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rows import Row


@dataclass
class Table:
    """Rows measured on `subjects` (anything with a name that the rows know). The ratio is the first ÷ the second.

    `revive` is called after a failed row, and leaves every subject fit for the next.
    """

    title: str
    subjects: Sequence[Any]
    rows: Sequence[Row]
    revive: Callable[[], None] = lambda: None
    width: int = 38

    def run(self, *, only: str, quick: bool) -> list[dict[str, Any]]:
        """Measure all rows whose name contains `only`, print them, and return them for the results file."""
        self._head()
        results: list[dict[str, Any]] = []
        for row in self.rows:
            if only not in row.name:
                continue
            try:
                taken = measure(row, self.subjects, row.quick if quick else row.repeats)
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                words = " ".join(str(error).split())[:120]
                print(f"| {row.name:<{self.width}} | failed: {words}", flush=True)
                results.append({"table": self.title, "name": row.name, "failed": str(error)})
                self.revive()
                continue
            for index, (name, unit, target) in enumerate(row.metrics()):
                one = {who: [figures[index] for figures in values] for who, values in taken.items()}
                results.append(self._line(name, unit, target, one))
        return results

    def _head(self) -> None:
        names = [_shown(subject) for subject in self.subjects]
        cells = "".join(f" {name:>8} |" for name in names)
        print(f"\n{self.title}\n\n| {'what':<{self.width}} |{cells} {'unit':<9} | {'ratio':>6} | {'target':<12} |")
        bars = "".join(f"{'-' * (max(8, len(name)) + 1)}:|" for name in names)
        print(f"|{'-' * (self.width + 2)}|{bars}{'-' * 11}|{'-' * 7}:|{'-' * 14}|")

    def _line(self, name: str, unit: str, target: str, taken: dict[str, list[float]]) -> dict[str, Any]:
        """Print one line; return it for the results file."""
        medians = {who: statistics.median(values) for who, values in taken.items() if values}
        first, second = [*(medians.get(subject.name) for subject in self.subjects[:2]), None][:2]
        ratio = first / second if first is not None and second else None
        cells = "".join(
            f" {figure(medians.get(subject.name)):>{max(8, len(_shown(subject)))}} |" for subject in self.subjects
        )
        print(
            f"| {name:<{self.width}} |{cells} {unit:<9} | {figure(ratio):>6} | {target:<12} |",
            flush=True,
        )
        record = {"table": self.title, "name": name, "unit": unit, "target": target, "ratio": ratio}
        return {**record, "medians": medians, "measurements": taken}


def measure(row: Row, subjects: Sequence[Any], repeats: int) -> dict[str, list[list[float]]]:
    """All measurements of a row by subject, in turns; one measurement has a figure for each metric."""
    chosen = [subject for subject in subjects if not row.only or subject.name in row.only]
    taken: dict[str, list[list[float]]] = {subject.name: [] for subject in subjects}
    for subject in chosen:
        row.prepare(subject)
    try:
        if row.warm:
            for subject in chosen:  # the first of each is for the caches, and not counted
                row.figures(subject)
        began = time.monotonic()
        for number in range(repeats):
            if number and time.monotonic() - began > row.patience:
                break
            for subject in chosen:
                taken[subject.name].append(row.figures(subject))
    finally:
        for subject in chosen:
            row.clean(subject)
    return taken


def _shown(subject: Any) -> str:
    return "dray" if subject.name == "drayd" else str(subject.name)


def figure(value: float | None) -> str:
    """Three digits or so."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
