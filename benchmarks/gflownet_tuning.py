"""A flow tuned to a reward beside particles and reweighting, at equal numbers of network and reward calls.

    OMP_NUM_THREADS=1 python benchmarks/gflownet_tuning.py --case dna
    OMP_NUM_THREADS=1 python benchmarks/gflownet_tuning.py --case torus

The target is p(x) exp(w f(x)) for the law p of the flow's own samples with as many steps. Relative trajectory balance trains a
copy; what that and 256 samples of it cost in samples of the network (a backward pass counts as two) is what the others may spend
on 256 samples: particles as many a sample as it buys, reweighting of as many samples of the flow as it buys. Guidance (tokens
alone) costs one prediction a step and cannot spend more; the tuned flow's next samples cost no more than that either. The truth
is a larger sample of the flow by weight. Distance: total variation between the histograms of f, that of 256 exact samples beside
it. Spread: mean share of letters (mean distance) in which two samples differ.
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
        "since": 0.0,
        "until": 1.0,
        "reward": motif_score,
        "w": 1.5,
        "rounds": 40,
        "size": 16,
        "rate": 1e-3,
        "truth": 1500,
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
        "method": mf.SDE(20.0),  # half of the noise is renewed every step
        "since": 0.15,
        "until": 0.9,
        "reward": lambda v: v[:, 0].cos(),
        "w": 2.0,
        "rounds": 600,
        "size": 128,
        "rate": 2e-3,
        "truth": 20_000,
    }
    return flow, options


NUM = 256
LEVELS = {"dna": torch.arange(-0.5, 9.0), "torus": torch.linspace(-1, 1, 21)}


def motif_of_probabilities(p: torch.Tensor) -> torch.Tensor:
    """The same of probabilities, expected letters of the best window."""
    letters = torch.tensor(["ACGT".index(c) for c in MOTIF])
    windows = p.unfold(1, len(MOTIF), 1)  # (B, windows, K, motif)
    return windows.gather(2, letters.expand(*windows.shape[:2], 1, -1)).sum((-1, -2)).amax(-1)


def spread(case: str, x: torch.Tensor) -> float:
    half = len(x) // 2
    if case == "dna":
        return float((x[:half] != x[half : 2 * half]).float().mean())
    return float(mf.Torus(2, period=2 * math.pi).dist(x[:half], x[half : 2 * half]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["dna", "torus"], default="dna")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--truth", type=int, default=0, help="samples of the flow for the truth")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    flow, o = dna() if given.case == "dna" else torus()
    rounds, size, steps, w, f = given.rounds or o["rounds"], o["size"], o["steps"], o["w"], o["reward"]
    shape, how, levels = o["shape"], o["method"], LEVELS[given.case]
    torch.manual_seed(1 + given.seed)
    began = time.process_time()
    model = gf.RelativeBalance.of_flow(
        flow, f, shape, steps=steps, method=how, beta=w, loss=gf.log_partition_variance, since=o["since"], until=o["until"],
    )  # fmt: skip
    times = torch.cat([model.before, model.times[1:]])
    steps = len(times) - 1  # those before the tuned ones count, too

    def made_by(one: Any, count: int) -> torch.Tensor:
        with torch.no_grad():
            parts = [one.sample((min(512, count - at), *shape), times=times, method=how) for at in range(0, count, 512)]
        return torch.cat(parts)

    def shares(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        found = torch.histogram(f(x), levels, weight=weight).hist
        return found / found.sum()

    truth = made_by(flow, given.truth or o["truth"])
    value = f(truth)
    weight = (w * value).softmax(0)
    log_z = float((w * value).logsumexp(0)) - math.log(len(value))
    exact = shares(truth, weight)

    def report(name: str, x: torch.Tensor, network: str, calls: str) -> None:
        off = 0.5 * float((shares(x) - exact).abs().sum())
        row = f"{f(x).mean():.3f} | {off:.3f} | {spread(given.case, x):.3f} | {network} | {calls}"
        print(f"| {name} | {row} |", flush=True)

    print(f"| {given.case}, seed {given.seed} | mean f | distance | spread | network samples | reward calls |")
    print("|---|---|---|---|---|---|")
    report("flow itself", truth[:NUM], f"{NUM * steps:,}", "0")
    rows = torch.multinomial(weight, NUM, replacement=True)
    effective = float(1 / weight.square().sum())
    report(
        f"truth (mean {(weight * value).sum():.3f}; {len(truth):,} by weight, {effective:.0f} effective)",
        truth[rows],
        "",
        "",
    )
    config = TrainConfig(
        max_steps=rounds, learning_rate=o["rate"], weight_decay=0.0, ema=0.0, warmup_steps=5, gradient_clip=10.0,
        seed=given.seed, progress=False,
    )  # fmt: skip
    model = fit(model, [{"size": size}], config, out=None)
    # drawn, scored, scored by the prior, backward twice; then the samples
    cost, calls = rounds * size * steps * 5 + NUM * steps, rounds * size
    found, share = model.log_z_estimate(NUM)
    name = f"tuned (log Z {float(found):.3f}, {log_z:.3f}; effective share {float(share):.2f})"
    report(name, model.sample(NUM), f"{cost:,}", f"{calls:,}")
    if given.case == "dna":
        guided = mf.guidance.Oracle(flow, motif_of_probabilities, w)
        report("guidance", made_by(guided, NUM), f"{NUM * steps:,}", f"{NUM * steps:,}")
    count = max(cost // (NUM * steps), 2)
    flock = mf.guidance.Particles(flow, f, w, count=count)
    parts = torch.cat([made_by(flock, NUM // 8) for _ in range(8)])
    report(f"particles, {count} a sample", parts, f"{NUM * count * steps:,}", f"{NUM * count * steps:,}")
    many = made_by(flow, cost // steps)
    again = many[torch.multinomial((w * f(many)).softmax(0), NUM, replacement=True)]
    report("reweighting", again, f"{len(many) * steps:,}", f"{len(many):,}")
    print(f"processor seconds {time.process_time() - began:.0f}")


if __name__ == "__main__":
    main()
