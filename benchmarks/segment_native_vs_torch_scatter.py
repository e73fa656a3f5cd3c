"""How quick are sums and maxima over ragged groups by torch alone, and by torch-scatter's kernels?

    python benchmarks/segment_native_vs_torch_scatter.py

Rows that say which group they belong to, as the nodes of a batch of molecules do. Medians of alternating runs in one process,
forward and backward. Where torch-scatter is not installed (it has no wheels on the package index), its rows say so.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from manifoldflow import segment
from manifoldflow.files import write_text

SIZES = [(2_000, 250, 64), (20_000, 2_500, 64), (200_000, 25_000, 16)]
RUNS = 15


def seconds(
    function: Callable[[Tensor, Tensor, int], Tensor], value: Tensor, index: Tensor, count: int, native: bool
) -> float:
    """One forward and backward pass."""
    segment.NATIVE_ONLY = native
    value = value.clone().requires_grad_()
    begin = time.process_time()
    function(value, index, count).square().sum().backward()
    return time.process_time() - begin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows_made = []
    package = segment._installed()
    version = getattr(package, "__version__", "not installed")
    print(f"torch {torch.__version__}, torch-scatter {version}, {torch.get_num_threads()} thread(s)")
    print("| function | rows | groups | width | native ms | torch-scatter ms | ratio |\n|---|---|---|---|---|---|---|")
    for name, function in (
        ("sum", segment.segment_sum),
        ("max", segment.segment_max),
        ("softmax", segment.segment_softmax),
    ):
        for rows, count, width in SIZES:
            value, index = torch.randn(rows, width), torch.randint(count, (rows,))
            ways = [True] + ([False] if package is not None else [])
            taken: dict[bool, list[float]] = {way: [] for way in ways}
            for _ in range(3 if given.quick else RUNS):
                for way in ways:
                    taken[way].append(seconds(function, value, index, count, way))
            own = 1e3 * statistics.median(taken[True])
            other = 1e3 * statistics.median(taken[False]) if package is not None else None
            rows_made.append({"function": name, "rows": rows, "native_ms": own, "torch_scatter_ms": other})
            shown = ("not installed", "-") if other is None else (f"{other:.2f}", f"{other / own:.2f}")
            print(f"| {name} | {rows:,} | {count:,} | {width} | {own:.2f} | {shown[0]} | {shown[1]} |")
    if given.json:
        write_text(given.json, json.dumps(rows_made, indent=1) + "\n")


if __name__ == "__main__":
    main()
