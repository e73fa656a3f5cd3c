"""A flow tuned to a reward beside particles and reweighting, at equal numbers of network and reward calls.

    OMP_NUM_THREADS=1 python benchmarks/gflownet_tuning.py --case dna
    OMP_NUM_THREADS=1 python benchmarks/gflownet_tuning.py --case torus

The target is p(x) exp(w f(x)) for the law p of the flow's own samples with as many steps; the truth is the weighted mean of f
over many samples of the flow. Relative trajectory balance trains a copy; what it cost in samples of the network (a backward pass
counts as two) buys particles (16 for a sample). Afterwards the tuned flow makes samples at the price of the flow's. Spread: mean
share of letters (mean distance) in which two samples differ.
"""

import argparse
import math
import time
from typing import Any

import torch

import manifoldflow as mf
from manifoldflow import gflownet as gf
from manifoldflow.training import TrainConfig, fit

MOTIF = "GAGGAAGT"  # what PU.1 binds


def motif_score(x: torch.Tensor) -> torch.Tensor:
    """Letters of the motif that the best window has, 0 to 8."""
    letters = torch.tensor(["ACGT".index(c) for c in MOTIF])
    windows = x.unfold(1, len(MOTIF), 1)
    return (windows == letters).sum(-1).amax(-1).float()


def dna() -> tuple[Any, dict[str, Any]]:
    options = {
        "shape": (100,),
        "steps": 16,
        "method": "euler",
        "reward": motif_score,
        "w": 1.5,
        "rounds": 40,
        "size": 16,
    }
    return mf.load("dna_ctcf_pu1"), options


def torus() -> tuple[Any, dict[str, Any]]:
    space = mf.Torus(2, period=2 * math.pi)
    centres = torch.tensor([[1.0, 1.0], [4.0, 2.0], [2.5, 5.0]])
    torch.manual_seed(0)
    flow = mf.Flow(space, model=mf.nn.TangentMLP(space, 64, 3, heads=2), path=mf.StochasticInterpolant())
    x = mf.WrappedNormal(space, scale=0.4, mean=centres[torch.randint(3, (4096,))]).sample((4096,))
    config = TrainConfig(max_steps=300, learning_rate=3e-3, warmup_steps=10, progress=False, ema=0.9)
    flow = fit(flow, [{"x": part} for part in x.split(256)], config, out=None)
    options = {
        "shape": (),
        "steps": 16,
        "method": mf.SDE(4.0),
        "reward": lambda v: v[:, 0].cos(),
        "w": 2.0,
        "rounds": 80,
        "size": 64,
    }
    return flow, options


def spread(case: str, x: torch.Tensor) -> float:
    half = len(x) // 2
    if case == "dna":
        return float((x[:half] != x[half : 2 * half]).float().mean())
    return float(mf.Torus(2, period=2 * math.pi).dist(x[:half], x[half : 2 * half]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["dna", "torus"], default="dna")
    parser.add_argument("--rounds", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    flow, o = dna() if given.case == "dna" else torus()
    rounds, size, steps, w, f = given.rounds or o["rounds"], o["size"], o["steps"], o["w"], o["reward"]
    torch.manual_seed(1)
    began = time.process_time()
    model = gf.RelativeBalance.of_flow(
        flow, f, o["shape"], steps=steps, method=o["method"], beta=w, loss=gf.log_partition_variance
    )
    with torch.no_grad():
        base = flow.sample((512, *o["shape"]), times=model.times, method=o["method"])
    value = f(base)
    weight = (w * value).softmax(0)
    log_z = float((w * value).logsumexp(0)) - math.log(len(value))
    print(f"| {given.case} | mean f | spread | network samples | reward calls |\n|---|---|---|---|---|")
    print(f"| flow itself | {value.mean():.3f} | {spread(given.case, base):.3f} | | |")
    again = base[torch.multinomial(weight, 512, replacement=True)]
    print(
        f"| truth, 512 samples by weight | {(weight * value).sum():.3f} | {spread(given.case, again):.3f} | | |",
        flush=True,
    )
    config = TrainConfig(
        max_steps=rounds,
        learning_rate=1e-3,
        weight_decay=0.0,
        ema=0.0,
        warmup_steps=5,
        gradient_clip=10.0,
        progress=False,
    )
    model = fit(model, [{"size": size}], config, out=None)
    cost, calls = rounds * size * steps * 5, rounds * size  # drawn, scored, scored by the prior, backward twice
    made = model.sample(256)
    found, share = model.log_z_estimate(256)
    note = f"log Z {float(found):.3f} ({log_z:.3f}), effective share {float(share):.2f}"
    print(
        f"| tuned, {note} | {f(made).mean():.3f} | {spread(given.case, made):.3f} | {cost:,} | {calls:,} |", flush=True
    )
    with torch.no_grad():
        groups = max(cost // steps // 16, 2)
        groups = min(groups, 128)
        flock = mf.guidance.Particles(flow, f, w, count=16).sample(
            (groups, *o["shape"]), times=model.times, method=o["method"]
        )
    text = f"{groups * 16 * steps:,} | {groups * 16 * steps:,}"
    print(
        f"| particles, {groups} samples of 16 | {f(flock).mean():.3f} | {spread(given.case, flock):.3f} | {text} |",
        flush=True,
    )
    print(f"processor seconds {time.process_time() - began:.0f}")


if __name__ == "__main__":
    main()
