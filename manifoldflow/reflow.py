r"""Rectified flow for any flow: train again on its own pairs (source, sample), and the trajectories become straighter.

Liu, Gong & Liu 2023 (Flow Straight and Fast). A trained flow carries x0 to x1 along curves that may not cross. Training on
these pairs keeps the law of both ends and lets the geodesic between them be followed in a few steps:

    pairs = make_pairs(flow, 50_000, generator=generator)
    faster = reflow(flow, pairs)
    straightness(flow, pairs), straightness(faster, make_pairs(faster, 1_000))

With ``ReflowConfig(times="start")`` the student only learns where trajectories end, and samples in one evaluation of the network:
the distillation of Dirichlet flow matching (Stark et al. 2024, section 3.5), for every flow that predicts endpoints or logits.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from manifoldflow.flow import Flow
from manifoldflow.state import State, fields, first_tensor, float_dtype, like, map_state, masked_mean, where_mask
from manifoldflow.training.config import TrainConfig
from manifoldflow.training.fit import fit


class Pairs(NamedTuple):
    """Source points and the samples that a flow made of them, row by row.

    Attributes:
        x0, x1: states ``(n, ..., *event)`` per field.
        mask: bool ``(n, N)`` of real elements, or None.
        cond: condition of each row (a tensor, or a dict of them), or None.
    """

    x0: State
    x1: State
    mask: Tensor | None = None
    cond: Any = None

    @property
    def size(self) -> int:
        """Number of pairs."""
        return first_tensor(self.x0).shape[0]

    def take(self, rows: Any) -> "Pairs":
        """Some of the pairs: an index tensor or a slice."""
        return Pairs(_take(self.x0, rows), _take(self.x1, rows), _take(self.mask, rows), _take(self.cond, rows))

    def to(self, device: torch.device | str) -> "Pairs":
        """The same pairs on another device."""
        return Pairs(*(_each(part, lambda v: v.to(device)) for part in self))

    def batches(self, size: int, *, generator: torch.Generator | None = None) -> Iterator[dict[str, Any]]:
        """Shuffled batches ``{"x", "x0", "mask", "cond"}`` for ever, as :func:`manifoldflow.training.fit` takes them."""
        if size < 1:
            raise ValueError(f"the batch size must be at least 1, got {size}")
        device = first_tensor(self.x0).device
        while True:
            # Drawn on the generator's device: a host generator then serves pairs on any device.
            where = generator.device if generator is not None else device
            order = torch.randperm(self.size, generator=generator, device=where).to(device)
            for rows in order.split(min(size, self.size)):
                if len(rows) == min(size, self.size):
                    part = self.take(rows)
                    batch = {"x": part.x1, "x0": part.x0, "mask": part.mask, "cond": part.cond}
                    yield {key: value for key, value in batch.items() if value is not None}


@torch.no_grad()
def make_pairs(
    flow: Flow,
    n: int | Sequence[int] | None = None,
    *,
    steps: int = 100,
    method: Any = "euler",
    batch_size: int = 1024,
    mask: Tensor | None = None,
    cond: Any = None,
    x0: State | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Draw source points, sample from each, and keep both.

    Args:
        flow: the trained flow.
        n: number of pairs, or batch shape ``(n, N)`` for sets.
        steps, method: of the sampler. Pairs should be near the exact solution: better many steps here than in use.
        batch_size: pairs that are sampled at once.
        mask: bool ``(n, N)`` of real elements.
        cond: condition of each pair, ``(n, ...)`` or a dict of such.
        x0: source points to start from, instead of ``n``.
        generator: of every random draw.
        callback: called with the numbers of finished and wanted pairs after each batch, for progress bars.

    Raises:
        ValueError: ``n`` and ``x0`` are both absent or both given, or a size is not positive.
    """
    if (n is None) == (x0 is None):
        raise ValueError("make_pairs needs either n, the number of pairs, or x0, their source points")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    shape = (n,) if isinstance(n, int) else tuple(n or ())
    if n is not None and min(shape, default=0) < 1:
        raise ValueError(f"the number and size of pairs must be at least 1, got {n}")
    count = shape[0] if x0 is None else first_tensor(x0).shape[0]
    was_training = flow.training
    flow.eval()
    parts: list[Pairs] = []
    try:
        for at in range(0, count, batch_size):
            rows = slice(at, min(at + batch_size, count))
            m, c = _take(mask, rows), _take(cond, rows)
            given = {"shape": (rows.stop - at, *shape[1:])} if x0 is None else {"x0": _take(x0, rows)}
            start, end = flow.sample_pairs(**given, steps=steps, method=method, mask=m, cond=c, generator=generator)
            parts.append(Pairs(start, end, m, c))
            if callback is not None:
                callback(rows.stop, count)
    finally:
        flow.train(was_training)
    ends = [map_state(lambda *v: torch.cat(v), *(getattr(p, name) for p in parts)) for name in ("x0", "x1")]
    return Pairs(ends[0], ends[1], mask, cond)


@torch.no_grad()
def straightness(flow: Flow, pairs: Pairs, *, times: int = 20, batch_size: int = 4096) -> State:
    r"""How far the flow is from following the conditional paths between its own ends,

    .. math:: S = \int_0^1 E\, |u_t(x_t \mid x_0, x_1) - v(x_t, t)|_g^2\, dt.

    0 if and only if every trajectory is the geodesic between its ends (Liu et al. 2023, section 2.1). Pairs of
    *this* flow belong here (:func:`make_pairs`): with independent pairs S is the flow-matching loss.

    Args:
        flow: its paths give x_t and u_t, its model v; both on the training schedule.
        pairs: x0 and x1 of the flow itself.
        times: number of nodes of the midpoint rule in t.
        batch_size: pairs that go through the network at once.

    Returns:
        A scalar in squared units of the metric (radians, angstrom) per element, or one for each field.
    """
    if times < 1:
        raise ValueError(f"times must be at least 1, got {times}")
    paths = {n: p.on_training_clock() for n, p in flow.path.items()}
    was_training = flow.training
    flow.eval()
    totals: dict[str, Tensor] = {}
    try:
        for at in range(0, pairs.size, batch_size):
            part = pairs.take(slice(at, at + batch_size))
            x0, x1 = fields(part.x0), fields(part.x1)
            share: float | Tensor = part.size / pairs.size / times
            if part.mask is not None and pairs.mask is not None:  # the mean is one over real elements, as in the loss
                share = part.mask.sum() / pairs.mask.sum() / times
            for node in range(times):
                t = torch.full_like(first_tensor(part.x0).flatten(1)[:, 0], (node + 0.5) / times)
                points = {n: paths[n].sample(x0[n], x1[n], t) for n in x0}
                xt = like({n: where_mask(part.mask, p.x, x1[n]) for n, p in points.items()}, part.x1)
                pred = fields(flow.predict(xt, t, mask=part.mask, cond=part.cond))
                for n, point in points.items():
                    gap = paths[n].velocity(pred[n], point.x, t) - point.velocity
                    square = paths[n].space.inner(point.x, gap, gap)
                    totals[n] = totals.get(n, torch.zeros_like(square[:1].sum())) + share * masked_mean(
                        square, part.mask
                    )
    finally:
        flow.train(was_training)
    return like(totals, pairs.x1)


@torch.no_grad()
def transport_cost(flow: Flow, pairs: Pairs) -> State:
    r"""Mean squared distance :math:`E\, d(x_0, x_1)^2` of the pairs, which reflow does not raise on flat space
    (Liu et al. 2023, theorem 3.5): a scalar, or one for each field."""
    x0, x1 = fields(pairs.x0), fields(pairs.x1)
    cost = {n: masked_mean(flow.path[n].space.dist(x0[n], x1[n]).square(), pairs.mask) for n in x0}
    return like(cost, pairs.x1)


def u_shaped_times(
    n: int,
    sharpness: float = 4.0,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Times in [0, 1] with density proportional to :math:`e^{at} + e^{a(1-t)}` (Lee et al. 2024, improved rectified flow).

    Along straight pairs both ends are hard (one is noise, one is data) and the middle is a mixture of both. Drawn by the
    inverse of :math:`F(t) = \tfrac12 + \sinh(a(t - \tfrac12)) / 2\sinh(a/2)`.

    Args:
        n: number of times.
        sharpness: a; 0 is uniform.
    """
    u = torch.rand(n, generator=generator, dtype=dtype, device=device)
    if sharpness == 0:
        return u
    half = 0.5 * sharpness
    return (0.5 + ((2 * u - 1) * math.sinh(half)).asinh() / sharpness).clamp(0, 1)


@dataclass(frozen=True)
class ReflowConfig:
    """How to train on pairs.

    Args:
        steps: optimiser steps.
        batch_size: pairs a step.
        learning_rate: of AdamW without weight decay; falls to zero along a cosine after a short rise.
        ema: decay of the averaged weights that are returned, warmed up as (1 + n) / (10 + n).
        gradient_clip: bound on the norm of the gradient.
        times: law of the training times on the flow's ``time_range``: ``"uniform"``, ``"u_shaped"``, or ``"warped"`` by the
            flow's ``time_warp``, which is for curved trajectories: straight ones have no fine detail near t = 1; or
            ``"start"``, t = 0 alone, for a student that is only asked there: ``sample(..., steps=1)``.
        sharpness: of the U shape, see :func:`u_shaped_times`.
    """

    steps: int = 3000
    batch_size: int = 1024
    learning_rate: float = 1e-3
    ema: float = 0.999
    gradient_clip: float = 1.0
    times: Literal["uniform", "u_shaped", "warped", "start"] = "uniform"
    sharpness: float = 4.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}")
        if not (self.learning_rate > 0 and self.gradient_clip > 0):
            raise ValueError(
                f"learning_rate and gradient_clip must be positive, got {self.learning_rate} and {self.gradient_clip}"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if self.times not in ("uniform", "u_shaped", "warped", "start"):
            raise ValueError(f"times must be 'uniform', 'u_shaped', 'warped' or 'start', got {self.times!r}")
        if not self.sharpness >= 0:
            raise ValueError(f"sharpness must not be negative, got {self.sharpness}")


def reflow(
    flow: Flow,
    pairs: Pairs,
    config: ReflowConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> Flow:
    """A copy of ``flow``, trained on from its weights to follow the pairs: ``flow.loss(x1, x0=x0)``.

    The network, spaces, paths, weights and auxiliary losses stay. The coupling and averaged targets play no part, since the
    pairs are the coupling. For checkpoints, curves, or several devices give ``pairs.batches(...)`` to
    :func:`manifoldflow.training.fit` instead.

    Args:
        flow: the flow that made the pairs; it is left as it is.
        pairs: from :func:`make_pairs`, possibly filtered.
        config: how to train.
        generator: of the batches, times and other draws.
        callback: called with the number of the step (from 1) and the loss every hundred steps and at the last.

    Returns:
        The new flow with averaged weights, in evaluation mode.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
        ValueError: a path draws its noisy points without the source point, so pairs mean nothing to it: tokens, bridges, and the
            Dirichlet path but for ``times="start"``.
    """
    config = config or ReflowConfig()
    student = copy.deepcopy(flow).train()
    for name, path in student.path.items():
        try:
            student.path[name] = path.for_pairs(only_start=config.times == "start")
        except ValueError as error:
            raise ValueError(f"field {name!r}: {error}") from None
    reference = first_tensor(pairs.x0)
    low, high = flow.time_range

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for batch in pairs.batches(config.batch_size, generator=generator):
            if config.times == "warped":
                yield batch
                continue
            sharpness = config.sharpness if config.times == "u_shaped" else 0.0
            size, where = len(first_tensor(batch["x"])), generator.device if generator is not None else reference.device
            t = u_shaped_times(size, sharpness, generator=generator, dtype=float_dtype(pairs.x0), device=where)
            t = torch.zeros_like(t) if config.times == "start" else low + (high - low) * t
            yield {**batch, "t": t.to(reference.device)}

    def told(row: dict[str, Any]) -> None:
        if callback is not None:
            callback(row["step"], row["loss"])

    device = next((p.device for p in student.parameters()), torch.device("cpu"))
    # The draws of a step come from its number and this seed, which comes from the generator.
    where = generator.device if generator is not None else None
    seed = int(torch.randint(2**31, (), generator=generator, device=where))
    training = TrainConfig(
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=0.0,
        warmup_steps=min(100, config.steps),
        schedule="cosine",
        gradient_clip=config.gradient_clip,
        ema=config.ema,
        precision="32-true" if reference.dtype != torch.float64 else "64-true",
        log_every=min(100, config.steps),
        seed=seed,
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=f"{device.index or 0}," if device.type == "cuda" else 1,
        progress=False,
    )
    try:
        return fit(student, batches, training, out=None, callback=told).to(device)
    except FloatingPointError as error:
        raise FloatingPointError(f"reflow: {str(error).split(';')[0]}; lower learning_rate") from None


def _take(value: Any, rows: Any) -> Any:
    """Rows of a tensor or of a (nested) mapping of tensors; anything else belongs to all rows and stays."""
    return _each(value, lambda v: v[rows])


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _each(v, function) for key, v in value.items()}
    return value
