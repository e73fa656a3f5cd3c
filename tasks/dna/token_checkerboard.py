"""Two tokens of 128 values on a checkerboard: does a flow of tokens stay on its support, and how tight is its bound?

The protocol of flow_matching's notebook: a 4 x 4 board of 128 x 128 places, an MLP of width 128, Adam 1e-3, k = t^2, the evidence
bound as loss, 64 steps. The entropy of the data is log(128^2 / 2) = 9.011 nats, which no bound on the negative log-likelihood can
beat on average.

    python -m manifoldflow.tasks.dna.token_checkerboard --out token_checkerboard.json --plot token_checkerboard.png
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import manifoldflow as mf
from manifoldflow.files import atomic, write_json
from manifoldflow.tasks.common.runs import toy_training
from manifoldflow.tasks.common.splits import drawn_batches
from manifoldflow.training import fit

SIDE, FIELDS = 128, 4
ENTROPY = math.log(SIDE * SIDE / 2)


def board(count: int, generator: torch.Generator) -> Tensor:
    """Uniform places on the fields of one colour, ``(count, 2)``."""
    cell = SIDE // FIELDS
    x = torch.randint(SIDE, (count,), generator=generator)
    row = 2 * torch.randint(FIELDS // 2, (count,), generator=generator) + (x // cell) % 2
    return torch.stack([x, row * cell + torch.randint(cell, (count,), generator=generator)], -1)


def off_support(tokens: Tensor) -> float:
    """Share of places on fields of the other colour."""
    cell = tokens // (SIDE // FIELDS)
    return float(((cell[:, 0] + cell[:, 1]) % 2).float().mean())


class PairNet(nn.Module):
    """Logits of both tokens from both and the time."""

    def __init__(self, states: int, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(states, width // 2)
        self.net = nn.Sequential(
            nn.Linear(width + 9, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2 * SIDE),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None] * torch.arange(1, 5, dtype=t.dtype) * torch.pi
        value = torch.cat([self.embed(x).flatten(1), t[:, None], phase.sin(), phase.cos()], -1)
        return self.net(value).reshape(-1, 2, SIDE)


def run(kind: str, steps: int, batch: int, count: int, seed: int) -> tuple[dict[str, Any], Tensor]:
    """Train one flow; its scores and samples."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    space = mf.Tokens(SIDE, mask=kind == "masking")
    options: dict[str, Any] = {"schedule": mf.Polynomial(2.0), "objective": "elbo"}
    path = mf.Masking(**options) if space.mask else mf.UniformJump(own_evidence=True, **options)
    flow = mf.Flow(space, PairNet(space.size), path=path)
    flow.time_range = (0.0, 1 - 1e-3)
    config = toy_training(steps, gradient_clip=1.0, seed=seed)

    def make(_: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"x": board(batch, generator)}

    began = time.process_time()
    model = fit(flow, drawn_batches(1, 1, seed, make), config, out=None)
    trained = time.process_time() - began
    tokens = model.sample((count, 2), steps=64, generator=generator)
    bound = -model.elbo(board(4096, generator), samples=64, generator=generator)
    counts = torch.bincount(tokens[:, 0] * SIDE + tokens[:, 1], minlength=SIDE * SIDE).double()
    row = {
        "off_support": off_support(tokens),
        "bound": float(bound.mean()),
        "bound_error": float(bound.std()) / len(bound) ** 0.5,
        "entropy": ENTROPY,
        "excess": float(bound.mean()) / ENTROPY - 1,
        "largest_place": float(counts.max() / counts.sum() * SIDE * SIDE / 2),
        "train_seconds": trained,
    }
    return row, tokens


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["masking", "uniform"], choices=["masking", "uniform"])
    parser.add_argument("--steps", type=int, default=15_000, help="of training; the notebook takes 30,001 of 4,096")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON of the scores")
    parser.add_argument("--plot", type=Path, help="histograms of the samples")
    a = parser.parse_args(arguments)
    rows, drawn = {}, {}
    for kind in a.models:
        rows[kind], drawn[kind] = run(kind, a.steps, a.batch, a.samples, a.seed)
        print(kind, {k: f"{v:.4g}" for k, v in rows[kind].items()}, flush=True)
    if a.out:
        write_json(a.out, rows)
    if a.plot:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, len(drawn), figsize=(4 * len(drawn), 4), squeeze=False)
        for axis, (kind, tokens) in zip(axes[0], drawn.items(), strict=True):
            axis.hist2d(*tokens.T.numpy(), bins=SIDE, range=[[0, SIDE], [0, SIDE]], cmap="Blues")
            axis.set(
                title=f"{kind}: {rows[kind]['off_support']:.2%} off the board", xticks=[], yticks=[], aspect="equal"
            )
        with atomic(a.plot) as fresh:
            figure.savefig(fresh, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
