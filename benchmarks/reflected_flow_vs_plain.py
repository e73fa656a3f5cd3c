"""How many of 100,000 samples leave a domain with walls, reflected flow beside a plain flow of the same network?

| | box [0, 1]^2 | ball, d = 3 | half-space, d = 2 | simplex, 5 categories |
|---|---|---|---|---|
| source | uniform | uniform | reflected normal | uniform |
| data | normal at a corner, reflected | normal at the wall, reflected | the same | the same, at a corner |

One network per domain is trained for both (paths in a convex domain are straight, so the training is the same), and
sampled at 2, 10 and 100 Euler steps, reflected at the walls and plain in the surrounding flat space. Outside means
``residual > 0`` in float32. Targets: 0 outside. The time of a sample call of both is printed too: what reflection costs.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._bench import versions
from manifoldflow.distributions.reflected_normal import ReflectedNormal
from manifoldflow.distributions.uniform import Uniform
from manifoldflow.flow import Flow
from manifoldflow.manifolds import ReflectedSimplex
from manifoldflow.manifolds.domains import Ball, Box, Domain, HalfSpace
from manifoldflow.manifolds.euclidean import Euclidean
from manifoldflow.nn import TangentMLP

CASES: dict[str, tuple[Domain, tuple[float, ...]]] = {
    "box": (Box((0.0, 0.0), (1.0, 1.0)), (0.95, 0.05)),
    "ball": (Ball(3), (0.9, 0.0, 0.0)),
    "half-space": (HalfSpace((0.6, 0.8)), (-0.03, -0.04)),
    "simplex": (ReflectedSimplex(5), (0.96, 0.01, 0.01, 0.01, 0.01)),
}


@dataclass(frozen=True)
class OpenPlane(Euclidean):
    """Vectors of sum 1, without walls: the plane of the simplex."""

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return u - u.mean(-1, keepdim=True)


def train(domain: Domain, centre: tuple[float, ...], seconds: float) -> tuple[Flow, int]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    source = ReflectedNormal(domain, 0.5) if isinstance(domain, HalfSpace) else Uniform(domain)
    flow = Flow(domain, model=TangentMLP(domain, 64, 3), source=source)
    optimiser = torch.optim.AdamW(flow.parameters(), lr=2e-3)
    data = ReflectedNormal(domain, 0.1, centre)
    end, steps = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        left = max(0.0, (end - time.perf_counter()) / seconds)
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * 0.5 * (1 - math.cos(math.pi * left)) + 1e-6
        loss = flow.loss(data.sample((512,), generator=generator), generator=generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    return flow, steps


def count_outside(domain: Domain, flow: Flow, steps: int, count: int) -> tuple[int, float, float]:
    """Samples with a residual above 0, the largest residual, and the seconds of the call."""
    generator = torch.Generator().manual_seed(steps)
    start = time.perf_counter()
    x = flow.sample(count, steps=steps, generator=generator)
    took = time.perf_counter() - start
    off = domain.residual(x)
    return int((off > 0).sum()), float(off.max()), took


def main() -> None:
    question = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--quick", action="store_true", help="a tenth of the training and of the samples")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--threads", type=int, help="threads of torch, all cores if absent")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    count, seconds = (10_000, 1.0) if args.quick else (100_000, 10.0)
    environment = versions("manifoldflow")
    print(f"# {question}\n\n" + ", ".join(f"{k} {v}" for k, v in environment.items()))
    print(f"\n| domain | steps | ours outside of {count:,} | plain outside | plain, farthest | time, ours / plain |")
    print("|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for name, (domain, centre) in CASES.items():
        flow, _ = train(domain, centre, seconds)
        size = domain.event_shape[0]
        open_space = OpenPlane(size) if isinstance(domain, ReflectedSimplex) else Euclidean(size)
        plain = Flow(open_space, model=flow.model, source=flow.source["x"])
        for steps in (2, 10, 100):
            ours, _, our_time = count_outside(domain, flow, steps, count)
            theirs, farthest, plain_time = count_outside(domain, plain, steps, count)
            ratio = our_time / plain_time
            verdict = "met" if ours == 0 else "MISSED"
            print(f"| {name} | {steps} | {ours} {verdict} | {theirs:,} | {farthest:.3f} | {ratio:.2f}x |", flush=True)
            rows.append(
                {
                    "case": f"{name}, {steps} steps",
                    "outside": {"manifoldflow": ours, "plain": theirs},
                    "farthest": farthest,
                    "seconds": {"manifoldflow": our_time, "plain": plain_time},
                    "met": ours == 0,
                }
            )
    if args.json:
        args.json.write_text(json.dumps({"question": question, **environment, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
