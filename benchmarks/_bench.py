"""Timing shared by the benchmarks: candidates alternate in one process, medians, ratio last.

Every file in this folder answers the question in its first line. Run one with ``python -m benchmarks.NAME`` or all with
``python -m benchmarks``; ``--json FILE`` keeps the numbers, ``--quick`` takes a tenth of the time.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OURS = "manifoldflow"


@dataclass
class Row:
    """One line of a table: median and least seconds per call of every candidate, and its largest error."""

    case: str
    seconds: dict[str, float]
    least: dict[str, float]
    error: dict[str, float]
    ratio: float
    target: str = ""
    met: bool | None = None


@dataclass
class Report:
    """What one benchmark found."""

    question: str
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Keep and print a line."""
        self.rows.append(row)
        print(format_row(row), flush=True)


def versions(*peers: str) -> dict[str, str]:
    """Versions of torch and the peers, threads, processor and date."""
    found = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "torch": torch.__version__}
    for peer in peers:
        try:
            found[peer] = importlib.metadata.version(peer)
        except importlib.metadata.PackageNotFoundError:
            found[peer] = "not installed"
    return found | {
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "machine": platform.machine(),
    }


def alternate(
    candidates: dict[str, Callable[[], Any]], *, budget: float = 3.0, rounds: int = 30
) -> dict[str, list[float]]:
    """Seconds per call of every turn. The candidates take turns, so that all see the same load of the machine.

    Args:
        candidates: functions without arguments.
        budget: seconds for everything; the number of calls per turn follows from it.
        rounds: turns per candidate, at least.
    """
    calls = {}
    for name, function in candidates.items():
        for _ in range(3):
            function()
        start = time.perf_counter()
        function()
        once = max(time.perf_counter() - start, 1e-7)
        calls[name] = max(1, int(budget / len(candidates) / rounds / once))
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + 2 * budget
    for number in range(rounds):
        for name, function in candidates.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            taken[name].append((time.perf_counter() - start) / calls[name])
        if number >= 5 and time.perf_counter() > end:
            break
    return taken


def compare(
    case: str,
    candidates: dict[str, Callable[[], Any]],
    *,
    error: dict[str, float] | None = None,
    target: float | None = None,
    exact: float = 1e-3,
    budget: float = 3.0,
) -> Row:
    """Time the candidates and put the fastest peer in relation to ours.

    Args:
        case: what is timed.
        candidates: ours under the name ``manifoldflow``, peers under theirs.
        error: largest error of each on the benchmark's input.
        target: the ratio (time of the fastest exact peer over our time) to reach.
        exact: peers with an error above this do not set the mark.
        budget: seconds.
    """
    taken = alternate(candidates, budget=budget)
    seconds = {n: statistics.median(v) for n, v in taken.items()}
    least = {n: min(v) for n, v in taken.items()}
    error = error or {}
    peers = [n for n in taken if n != OURS]
    rivals = [n for n in peers if error.get(n, 0.0) <= exact]
    # The median of the ratios inside each turn: what else runs on the machine hits both sides of a ratio.
    ratios = {n: statistics.median(p / o for p, o in zip(taken[n], taken[OURS], strict=True)) for n in rivals or peers}
    ratio = min(ratios.values()) if ratios else float("nan")
    if target is None or not rivals:
        return Row(case, seconds, least, error, ratio, "no exact peer" if target is not None else "")
    return Row(case, seconds, least, error, ratio, f">= {target:.2f}", ratio >= target)


def format_row(row: Row) -> str:
    """One markdown table line: case, time (least) [error] of every candidate, ratio, target."""
    cells = []
    for name, s in row.seconds.items():
        accuracy = f", error {row.error[name]:.0e}" if name in row.error else ""
        cells.append(f"{name} {_time(s)} (least {_time(row.least[name])}{accuracy})")
    verdict = "" if row.met is None else (" met" if row.met else " MISSED")
    return f"| {row.case} | {'; '.join(cells)} | {row.target}{verdict} | {row.ratio:.2f}x |"


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def run(question: str, body: Callable[[Report, float], None], peers: Sequence[str] = ()) -> Report:
    """The command line of a benchmark: prints the question, versions and table.

    Args:
        question: what is asked, the first line of the file.
        body: adds rows to the report; gets the seconds it may spend on a row.
        peers: packages whose versions matter.
    """
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time per row")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--threads", type=int, help="threads of torch, all cores if absent")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    report = Report(question)
    environment = versions(*peers)
    print(f"# {question}\n\n" + ", ".join(f"{k} {v}" for k, v in environment.items()))
    print("\n| case | median time per call | target | peer / ours |\n|---|---|---|---|")
    body(report, 0.3 if args.quick else 3.0)
    if args.json:
        args.json.write_text(
            json.dumps({"question": question, **environment, "rows": [asdict(r) for r in report.rows]}, indent=1)
        )
    return report


def largest(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference, in float64; infinite if either holds NaN."""
    off = float((a.detach().double() - b.detach().double()).abs().max())
    return off if off == off else float("inf")
