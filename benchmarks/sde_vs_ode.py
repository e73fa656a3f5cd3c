"""Do samples drawn with noise have the law of those without, and which are nearer to the data?

| | sphere S^2 | torus T^2 | SO(3) |
|---|---|---|---|
| law | four von Mises-Fisher laws | three wrapped normals | eight heat kernels, as unit quaternions |

One network a space, trained as a stochastic interpolant from a uniform source (velocity and noise, two heads). Its samples by
the ODE and by the SDE at two noise levels are compared with draws of the law itself, which is known: exact W2 and unbiased
squared MMD of 2,000 points. The floor is the distance of two draws of the law, mean and deviation of several pairs; "between"
is the W2 from the samples with noise to those without.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from benchmarks._bench import versions
from manifoldflow.distributions import Distribution
from manifoldflow.manifolds.base import Manifold
from manifoldflow.metrics import mmd, wasserstein
from manifoldflow.tasks.densities.embedded import sphere_mixture, torus_mixture

STEPS = 100


def eight_rotations() -> Distribution:
    """Heat kernels of scale 0.3 at eight rotations far apart."""
    space = mf.UnitQuaternion()
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 4)
    centres = corners[corners[:, 0] > 0]
    return mf.Mixture(tuple(mf.IGSO3(0.3, mean=c, manifold=space) for c in centres), manifold=space)


CASES = {"S^2": sphere_mixture, "T^2": torus_mixture, "SO(3)": eight_rotations}


def train(law: Distribution, space: Manifold, steps: int) -> mf.Flow:
    """A stochastic interpolant with an average of the last weights."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    flow = mf.Flow(
        space, model=mf.nn.TangentMLP(space, 256, 4, heads=2), path=mf.StochasticInterpolant(mf.BumpNoise(0.4))
    )
    optimiser = torch.optim.AdamW(flow.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        loss = flow.loss(law.sample((512,), generator=generator, dtype=torch.float32), generator=generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return flow.eval()


def main() -> None:
    question = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--quick", action="store_true", help="a tenth of the training, 500 points")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--threads", type=int, help="threads of torch, all cores if absent")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    steps, count, pairs = (300, 500, 4) if args.quick else (3000, 2000, 6)
    environment = versions("manifoldflow", "POT")
    print(f"# {question}\n\n" + ", ".join(f"{k} {v}" for k, v in environment.items()))
    print(
        "\n| space | sampler | W2 to the law | floor | W2 / floor | MMD^2 to the law | floor | W2 between | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for name, make in CASES.items():
        law = make()
        space = law.space
        flow = train(law, space, steps)
        generator = torch.Generator().manual_seed(1)

        def draw(law: Distribution = law, generator: torch.Generator = generator) -> Tensor:
            return law.sample((count,), generator=generator, dtype=torch.float32)

        floors = [(draw(), draw()) for _ in range(pairs)]
        w2_floor = [wasserstein(x, y, space) for x, y in floors]
        mmd_floor = [float(mmd(x, y, space)) for x, y in floors]
        truth = draw()
        plain: Tensor | None = None
        for sampler, method in (("ODE", "euler"), ("SDE, 1", mf.SDE(1.0)), ("SDE, 10", mf.SDE(10.0))):
            start = time.perf_counter()
            x = flow.sample(count, steps=STEPS, method=method, generator=generator)
            took = time.perf_counter() - start
            plain = x if plain is None else plain
            w2 = wasserstein(x, truth, space)
            between = math.nan if x is plain else wasserstein(x, plain, space)
            squared = float(mmd(x, truth, space))
            floor, spread = statistics.mean(w2_floor), statistics.stdev(w2_floor)
            spread_mmd = statistics.stdev(mmd_floor)
            print(
                f"| {name} | {sampler} | {w2:.4f} | {floor:.4f} ± {spread:.4f} | {w2 / floor:.2f} | {squared:.1e} | "
                f"0 ± {spread_mmd:.1e} | {'' if math.isnan(between) else f'{between:.4f}'} | {took:.2f} |",
                flush=True,
            )
            rows.append(
                {
                    "case": f"{name}, {sampler}",
                    "w2": w2,
                    "w2_floor": w2_floor,
                    "mmd": squared,
                    "mmd_floor": mmd_floor,
                    "between": None if math.isnan(between) else between,
                    "seconds": took,
                }
            )
    if args.json:
        args.json.write_text(json.dumps({"question": question, **environment, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
