"""Train a density flow on a split of a data set, and score it beside kernel density estimates."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.base import Manifold
from manifoldflow.tasks.common.splits import Split, chosen_rows, drawn_batches
from manifoldflow.tasks.densities.data import DataSet
from manifoldflow.tasks.densities.flow import DensityConfig, build
from manifoldflow.tasks.densities.spaces import name_of
from manifoldflow.training import TrainConfig, fit

TRAINING = TrainConfig(
    max_steps=5000, schedule="cosine", warmup_steps=100, validate_every=1000, checkpoint_every=1000, log_every=100
)
"""Two to five minutes on one core."""

CHOOSING_ROWS, CHOOSING_STEPS = 256, 80
"""Validation points, and solver steps, of the score that the weights are chosen by. With few steps the solver's error grows as
training sharpens the field, and the score would choose what was learned first."""

MOST_LANDMARKS = 8000
"""Above this many training points landmarks are looked at only where the data are clumped; where they are not, plane waves do."""

MOST_SEEN = 20_000
"""Above this many only a sample of the landmarks and the nearest ones are, which costs less and learns more slowly."""

NEAREST = 32
"""Neighbours that are looked at then."""

COARSE = 0.03
"""Radians that plane waves resolve."""


def suited(config: DensityConfig, data: DataSet, train: Tensor) -> DensityConfig:
    """The configuration with what was left open filled in: the manifold, for ``features="auto"`` all about features, and the
    finest detail where it is needed.

    Few points on a space of two or three dimensions are told apart by landmarks, and many points where they are clumped below
    what waves resolve. On tori the harmonics of the angles do best, in a residual network with the mean velocities of the batch
    as targets. Elsewhere plane waves.
    """
    made = replace(config, manifold=name_of(data.space))
    if made.features == "landmarks" and not made.finest:
        return replace(made, finest=detail(data.space, train))
    if made.features != "auto":
        return made
    if isinstance(data.space, mf.Torus):
        torus = replace(made, features="coordinates", network="resnet", depth=max(made.depth, 4), harmonics=6)
        return replace(torus, finest=made.finest or 0.02, late=False, low_variance=True)
    is_large = len(train) > MOST_LANDMARKS
    if data.space.dim <= 3 and (not is_large or clumping(data.space, train) > 2):
        near = made.nearest or (NEAREST if len(train) > MOST_SEEN else 0)
        finest = made.finest or detail(data.space, train)
        return replace(made, features="landmarks", finest=finest, waves=2, wave_length=2.0, nearest=near)
    return replace(made, features="waves", finest=made.finest or COARSE)


def detail(space: Manifold, train: Tensor) -> float:
    """The finest detail of points ``(n, *event)`` in radians: a tenth of them have another place closer than this.

    Between 1e-4 and 1e-3: what is coarser needs no more steps for being resolved, and what is finer costs single precision.
    """
    places = np.unique(space.embed(train.double()).numpy(), axis=0)
    if len(places) < 2:
        return 1e-3
    distance = cKDTree(places).query(places, k=2)[0][:, 1]
    return float(np.clip(np.quantile(distance, 0.1), 1e-4, 1e-3))


def clumping(space: Manifold, train: Tensor, coarse: float = COARSE, ratio: float = 10.0) -> float:
    """How many more pairs of points there are within ``coarse / ratio`` than a density without detail below ``coarse`` would have
    (Ripley's K at two radii, less three standard deviations of the count): 1 where it is smooth, ``ratio**dim`` where all pairs
    are closer than that."""
    tree = cKDTree(space.embed(train.double()).numpy())
    near, far = (tree.count_neighbors(tree, r) - tree.n for r in (coarse / ratio, coarse))
    return max(0.0, near - 3 * math.sqrt(2 * near)) / max(far, 1) * ratio**space.dim  # every pair is counted twice


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
    with_rows = config.features == "landmarks"  # the network hides these landmarks

    def batch(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"x": train[rows], **({"cond": rows} if with_rows else {})}

    return fit(
        flow,
        drawn_batches(len(train), min(batch_size, len(train)), training.seed, batch),
        training,
        out=out,
        score=validation_score(val, training.seed),
        resume=resume,
        facts=facts,
    )


def validation_score(val: Tensor, seed: int) -> Callable[[mf.Flow], float]:
    """The mean NLL of up to 256 validation points."""
    rows = chosen_rows(len(val), CHOOSING_ROWS, seed)

    def score(flow: mf.Flow) -> float:
        weight = next(flow.parameters())
        return -float(flow.log_prob(val[rows].to(weight.device, weight.dtype), steps=CHOOSING_STEPS).mean())

    return score
