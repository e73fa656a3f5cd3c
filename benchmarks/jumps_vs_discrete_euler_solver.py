"""What does the jump sampler add to the bare network, beside flow_matching's MixtureDiscreteEulerSolver?

| K, L, B | 4, 500, 128 | 20, 128, 128 | 512, 1,024, 16 | 32,768, 500, 2 |
|---|---|---|---|---|

One network for both, an embedding of 32 numbers and a linear layer, whose probabilities the peer wants and whose logits ours
does; the network alone is timed with and without the softmax accordingly. Uniform source, schedule t, 20 steps from 0 (8 where
K is 32,768); with corrector the steps start at 0.05, since the peer's rates are 0/0 at 0. Overhead is the time of a sample call
less that of its network calls. Targets: the peer's overhead at least 4 times ours, with corrector at least 2 times; at K = 32,768
at least twice our peak memory.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import manifoldflow as mf
from benchmarks._bench import versions

CASES = [(4, 500, 128, 20), (20, 128, 128, 20), (512, 1024, 16, 20), (32768, 500, 2, 8)]
CORRECTOR = 1.0
PEER_NET = "peer, network"


class Network(nn.Module):
    """Logits of every position from its token alone."""

    def __init__(self, categories: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(categories, 32), nn.Linear(32, categories)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out(self.embed(x))


def candidates(case: tuple[int, int, int, int], corrector: float) -> dict[str, Callable[[], Any]]:
    """Sample calls of both, and their network calls."""
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler
    from flow_matching.solver import MixtureDiscreteEulerSolver
    from flow_matching.utils import ModelWrapper

    categories, length, batch, steps = case
    net = Network(categories).requires_grad_(False)

    class Probabilities(ModelWrapper):
        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
            return torch.softmax(net(x, t), -1)

    start = 0.05 if corrector else 0.0
    grid = torch.linspace(start, 1.0, steps + 1)
    x0 = torch.randint(categories, (batch, length), generator=torch.Generator().manual_seed(0))
    flow = mf.Flow(mf.Tokens(categories), net)
    solver = MixtureDiscreteEulerSolver(
        Probabilities(net),
        MixtureDiscreteProbPath(PolynomialConvexScheduler(n=1.0)),
        categories,
        torch.full((categories,), 1 / categories),
    )
    wrapped, t = Probabilities(net), torch.zeros(batch)

    def bare(call: Any) -> None:
        with torch.no_grad():
            for _ in range(steps):
                call(x0, t)

    return {
        "ours": lambda: flow.sample(x0=x0, times=grid, method=mf.Jumps(corrector=corrector)),
        "our network": lambda: bare(net),
        "peer": lambda: solver.sample(x0, None, div_free=corrector, time_grid=grid),
        PEER_NET: lambda: bare(wrapped),
    }


def seconds_of(calls: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Medians over turns that alternate."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for name in calls:
        calls[name]()
    for _ in range(turns):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def _peak(case: tuple[int, int, int, int], name: str, threads: int, answer: Any) -> None:
    torch.set_num_threads(threads)
    call = candidates(case, 0.0)[name]
    before = _high_water()
    call()
    answer.put(_high_water() - before)


def _high_water() -> float:
    """Largest resident memory of this process so far, MB. getrusage would start from that of the parent."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak_of(case: tuple[int, int, int, int], name: str) -> float:
    """Megabytes that a call adds at its peak, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_peak, args=(case, name, torch.get_num_threads(), answer))
    process.start()
    value = float(answer.get())
    process.join()
    return value


def main() -> None:
    question = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--quick", action="store_true", help="three turns instead of nine")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--threads", type=int, help="threads of torch, all cores if absent")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    environment = versions("flow_matching")
    print(f"# {question}\n\n" + ", ".join(f"{k} {v}" for k, v in environment.items()))
    print("\n| K, L, B | corrector | network | ours | peer (its network) | target | overhead, peer / ours |")
    print("|---|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for case in CASES:
        categories, length, batch, steps = case
        for corrector in (0.0, CORRECTOR):
            s = {n: v / steps * 1e3 for n, v in seconds_of(candidates(case, corrector), 3 if args.quick else 9).items()}
            ours, peer = s["ours"] - s["our network"], s["peer"] - s[PEER_NET]
            ratio, target = peer / max(ours, 1e-6), 2.0 if corrector else 4.0
            verdict = "met" if ratio >= target else "MISSED"
            print(
                f"| {categories}, {length}, {batch} | {corrector:g} | {s['our network']:.2f} ms a step | {s['ours']:.2f} | "
                f"{s['peer']:.2f} ({s[PEER_NET]:.2f}) | >= {target:g} {verdict} | {ratio:.1f}x |",
                flush=True,
            )
            rows.append({"case": f"{case}, corrector {corrector:g}", "ms": s, "ratio": ratio, "met": ratio >= target})
    case = CASES[-1]
    peaks = {name: peak_of(case, name) for name in ("our network", "ours", PEER_NET, "peer")}
    extra_ours, extra_peer = max(peaks["ours"], 1.0), peaks["peer"]
    verdict = "met" if extra_peer >= 2 * extra_ours else "MISSED"
    print("\npeak over the loaded network at K = 32,768: " + ", ".join(f"{n} {v:.0f} MB" for n, v in peaks.items()))
    print(f"target >= 2 {verdict}: peer / ours {extra_peer / extra_ours:.1f}x")
    rows.append({"case": "peak memory", "megabytes": peaks, "ratio": extra_peer / extra_ours})
    if args.json:
        args.json.write_text(json.dumps({"question": question, **environment, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
