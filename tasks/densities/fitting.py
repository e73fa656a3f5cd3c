"""Train a density flow on a split of a data set, and score it beside kernel density estimates."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.tasks.densities.data import DataSet
from manifoldflow.tasks.densities.flow import DensityConfig, build
from manifoldflow.tasks.densities.kde import fit_all, has_kernel
from manifoldflow.tasks.densities.spaces import name_of
from manifoldflow.tasks.densities.splits import Split
from manifoldflow.training import TrainConfig, fit

CHOOSING_ROWS, CHOOSING_STEPS = 256, 80
"""Validation points, and solver steps, of the score that the weights are chosen by. With few steps the solver's error grows as
training sharpens the field, and the score would choose what was learned first."""

CHECKED_ROWS = 64
"""Points that the solver's error is measured on."""

MOST_LANDMARKS = 8000
"""Above this many training points landmarks cost more than they bring, and plane waves are the default."""


def suited(config: DensityConfig, data: DataSet, train: Tensor) -> DensityConfig:
    """The configuration with what was left open filled in: the manifold and, for ``features="auto"``, all about features.

    Few points on a space of two or three dimensions are told apart by landmarks. On tori the harmonics of the angles do
    best, in a residual network with the mean velocities of the batch as targets. Elsewhere plane waves.
    """
    made = replace(config, manifold=name_of(data.space))
    if made.features != "auto":
        return made
    if data.space.dim <= 3 and len(train) <= MOST_LANDMARKS and not isinstance(data.space, mf.Torus):
        return replace(made, features="landmarks", finest=made.finest or 1e-3, waves=2, wave_length=2.0)
    if isinstance(data.space, mf.Torus):
        torus = replace(made, features="coordinates", network="resnet", depth=max(made.depth, 4), harmonics=6)
        return replace(torus, finest=made.finest or 0.02, late=False, low_variance=True)
    return replace(made, features="waves", finest=made.finest or 0.03)


def fit_density(
    data: DataSet,
    parts: Split,
    config: DensityConfig,
    training: TrainConfig,
    out: str | Path,
    *,
    batch_size: int = 256,
    resume: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> mf.Flow:
    """Train a flow; its weights are those with the best validation NLL.

    Args:
        data: the set.
        parts: its rows for training, validation and testing.
        config: of the flow; see :func:`suited` for what it may leave open.
        training: as in :func:`manifoldflow.training.fit`.
        out: folder of the run.
        batch_size: points in a batch.
        resume: continue the run in ``out``.
        facts: kept in the checkpoint.
    """
    train, val = data.x[parts.train].float(), data.x[parts.val].float()
    config = suited(config, data, train)
    torch.manual_seed(training.seed)
    flow = build(config, train)
    return fit(
        flow,
        batches(train, min(batch_size, len(train)), training.seed, with_rows=config.features == "landmarks"),
        training,
        out=out,
        score=validation_score(val, training.seed),
        resume=resume,
        facts=facts,
    )


def batches(train: Tensor, size: int, seed: int, with_rows: bool) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    """Rows drawn with replacement, the draws of a step depending on the seed and the step alone.

    Args:
        train: points ``(n, *event)``.
        size: of a batch.
        seed: of the draws.
        with_rows: hand the row numbers to the network as ``cond``, which hides these landmarks.
    """

    def after(step: int) -> Iterator[dict[str, Tensor]]:
        while True:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            rows = torch.randint(len(train), (size,), generator=generator)
            yield {"x": train[rows], **({"cond": rows} if with_rows else {})}
            step += 1

    return after


def validation_score(val: Tensor, seed: int) -> Callable[[mf.Flow], float]:
    """The mean NLL of up to 256 validation points."""
    rows = torch.randperm(len(val), generator=torch.Generator().manual_seed(seed))[:CHOOSING_ROWS]

    def score(flow: mf.Flow) -> float:
        device = next(flow.parameters()).device
        return -float(flow.log_prob(val[rows].to(device), steps=CHOOSING_STEPS).mean())

    return score


def flow_score(flow: mf.Flow, x: Tensor, steps: int) -> dict[str, float]:
    """NLL of points in nats with respect to the Riemannian volume, its standard error over the points, and what the solver
    leaves: the mean difference to half as many steps, over 64 of them."""
    points = x.float().to(next(flow.parameters()).device)
    with torch.no_grad():
        value = flow.log_prob(points, steps=steps)
        coarse = flow.log_prob(points[:CHECKED_ROWS], steps=max(1, steps // 2))
    error = (value[:CHECKED_ROWS] - coarse).abs()
    return {
        "nll": -float(value.mean()),
        "standard_error": float(value.std(correction=0)) / math.sqrt(max(len(x) - 1, 1)),
        "solver_error": float(error.mean()),
    }


def baselines(data: DataSet, parts: Split, rows: Tensor | None = None, seed: int = 0) -> dict[str, float]:
    """NLL of the uniform law (compact spaces) and of kernel density estimates with one and with two scales.

    Args:
        data, parts: the set and its split; scales are chosen on validation rows.
        rows: which to score; those for testing by default.
        seed: of the choice of validation rows.
    """
    made: dict[str, float] = {}
    if math.isfinite(data.space.log_volume):
        made["uniform"] = data.space.log_volume
    if has_kernel(data.space):
        x = data.x[parts.test if rows is None else rows]
        kernels = fit_all(data.space, data.x[parts.train], data.x[parts.val], ("one", "two"), seed=seed)
        made |= {f"kde_{kind}": -float(law.log_prob(x).mean()) for kind, law in kernels.items()}
    return made
