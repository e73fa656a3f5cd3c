"""How near do flows of categories come to a known law? The toy of Dirichlet flow matching, five representations in one table.

Four positions, each with its own law over K categories, :math:`softmax(u), u \\sim U(0, 1)^K` (Stark et al. 2024, section 4.1).
All models share one network, an MLP of the noisy state of a position, its number and the time, trained by cross-entropy for the
same number of steps. Where the library can add what a state says of itself in closed form (``own_evidence`` of the Fisher-Rao
path and of tokens from noise) it does; the straight path, which papers criticise, and the Dirichlet path are as published. The
score is KL(samples || law), averaged over the positions, beside

- the floor, (K - 1) / 2N: what N exact draws score;
- the uniform sampler: what ignoring the data scores.

    python -m manifoldflow.tasks.dna.simplex_toy --categories 20 40 80 --out simplex_toy.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import manifoldflow as mf
from manifoldflow.files import write_json
from manifoldflow.tasks.common.runs import toy_training
from manifoldflow.tasks.common.splits import drawn_batches
from manifoldflow.training import fit

POSITIONS = 4
MODELS = ("dirichlet", "fisher_rao", "masking", "uniform", "linear")
STEPS = {"dirichlet": 20, "fisher_rao": 20, "masking": 40, "uniform": 40, "linear": 20}
"""Sampling steps: 40 network evaluations for all, as the continuous ones take the midpoint method."""


def target(categories: int, seed: int) -> Tensor:
    """The law of every position, ``(4, K)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(POSITIONS, categories, generator=generator).softmax(-1)


class PositionNet(nn.Module):
    """Logits of each position from its own state alone: the positions are independent.

    Args:
        inputs: size of the state of a position.
        categories: K.
        width: of three hidden layers.
    """

    def __init__(self, inputs: int, categories: int, width: int = 128) -> None:
        super().__init__()
        self.inputs, self.categories = inputs, categories
        layers: list[nn.Module] = []
        for a, b in ((2 * inputs + POSITIONS + 9, width), (width, width), (width, width)):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, categories))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        state = x if x.is_floating_point() else nn.functional.one_hot(x, self.inputs).to(t.dtype)
        # Posteriors are products of powers of the coordinates, so their logarithms are the natural inputs.
        state = torch.cat([state, state.clamp_min(1e-6).log() / 6], -1)
        batch = state.shape[0]
        place = torch.eye(POSITIONS, dtype=t.dtype, device=t.device).expand(batch, -1, -1)
        phase = t[:, None] * torch.arange(1, 5, dtype=t.dtype, device=t.device) * torch.pi
        time_code = torch.cat([t[:, None], phase.sin(), phase.cos()], -1).unsqueeze(1).expand(-1, POSITIONS, -1)
        return self.net(torch.cat([state, place, time_code], -1))


def build(kind: str, categories: int, most: float) -> mf.Flow:
    """The flow of a representation."""
    if kind in ("masking", "uniform"):
        space = mf.Tokens(categories, mask=kind == "masking")
        path = mf.Masking() if kind == "masking" else mf.UniformJump(own_evidence=True)
        return mf.Flow(space, PositionNet(space.size, categories), path=path)
    net = PositionNet(categories, categories)
    if kind == "dirichlet":
        return mf.Flow(mf.Simplex(categories), net, path=mf.DirichletPath(most=most))
    if kind == "fisher_rao":
        return mf.Flow(mf.Simplex(categories), net, path=mf.Geodesic(own_evidence=True), predicts="logits")
    return mf.Flow(mf.Simplex(categories, metric="flat"), net, predicts="logits")


def train(flow: mf.Flow, law: Tensor, steps: int, batch: int, seed: int) -> mf.Flow:
    """Adam with a falling rate and clipped gradients; the weights returned are an average of the last ones."""
    space = flow.spaces

    def make(_: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        tokens = torch.multinomial(law, batch, replacement=True, generator=generator).T.contiguous()
        return {"x": tokens if isinstance(space, mf.Tokens) else space.one_hot(tokens)}  # type: ignore[union-attr]

    config = toy_training(steps, gradient_clip=1.0, ema=0.995, seed=seed)
    return fit(flow, drawn_batches(1, 1, seed, make), config, out=None)


def divergence_of(tokens: Tensor, law: Tensor) -> float:
    """KL(frequencies of ``tokens`` (N, 4) || law), averaged over the positions, in nats."""
    k = law.shape[-1]
    counts = torch.stack([torch.bincount(column, minlength=k) for column in tokens.T]).double()
    p = counts / counts.sum(-1, keepdim=True)
    return float(torch.special.xlogy(p, p / law.double()).sum(-1).mean())


def draw(flow: mf.Flow, kind: str, count: int, seed: int, part: int = 16384) -> Tensor:
    """Tokens ``(count, 4)``."""
    generator = torch.Generator().manual_seed(seed)
    method = "euler" if kind in ("masking", "uniform") else "midpoint"
    made = []
    for at in range(0, count, part):
        shape = (min(part, count - at), POSITIONS)
        x = flow.sample(shape, steps=STEPS[kind], method=method, generator=generator)
        made.append(x.argmax(-1) if x.is_floating_point() else x)
    return torch.cat(made)


def run(kind: str, categories: int, seed: int, steps: int, batch: int, count: int, most: float) -> dict[str, Any]:
    """Train and score one model."""
    torch.manual_seed(seed)
    law = target(categories, seed)
    began = time.process_time()
    flow = train(build(kind, categories, most), law, steps, batch, seed)
    trained = time.process_time()
    tokens = draw(flow, kind, count, seed + 1)
    return {
        "kl": divergence_of(tokens, law),
        "floor": (categories - 1) / (2 * count),
        "uniform_sampler": float(-(law * categories).log().mean()),
        "train_seconds": trained - began,
        "sample_seconds": time.process_time() - trained,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: one line per K and model, means over the seeds."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for key, row in rows.items():
        size, kind, _ = key.split("/")
        groups.setdefault((int(size), kind), []).append(row)
    lines = [
        "| K | model | seeds | KL (nats) | floor | KL / floor | uniform sampler |",
        "|---|---|---|---|---|---|---|",
    ]
    for (k, kind), found in sorted(groups.items(), key=lambda item: (item[0][0], MODELS.index(item[0][1]))):
        kl, floor = statistics.mean(r["kl"] for r in found), found[0]["floor"]
        spread = f" ± {statistics.stdev(r['kl'] for r in found):.1e}" if len(found) > 1 else ""
        bare = statistics.mean(r["uniform_sampler"] for r in found)
        lines.append(
            f"| {k} | {kind} | {len(found)} | {kl:.2e}{spread} | {floor:.2e} | {kl / floor:.1f} | {bare:.2e} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--categories", type=int, nargs="+", default=[20, 40], help="numbers K of categories")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5000, help="of training")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--samples", type=int, default=102_400, help="per position; the paper takes 512,000")
    parser.add_argument("--most", type=float, default=8.0, help="largest concentration of the Dirichlet path")
    parser.add_argument("--out", type=Path, help="JSON of all runs; what it holds already is not run again")
    a = parser.parse_args(arguments)
    rows: dict[str, Any] = json.loads(a.out.read_text()) if a.out and a.out.exists() else {}
    for seed in range(a.seeds):
        for k in a.categories:
            for kind in a.models:
                key = f"{k}/{kind}/{seed}"
                if key in rows:
                    continue
                rows[key] = run(kind, k, seed, a.steps, a.batch, a.samples, a.most)
                print(key, {n: f"{v:.3g}" for n, v in rows[key].items()}, flush=True)
                if a.out:
                    write_json(a.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
